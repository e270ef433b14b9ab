"""Which backend serves an array: by the array's own type, importing no framework that is not loaded; or by name."""

from __future__ import annotations

import importlib
from typing import Any

from .._errors import BackendUnavailableError
from .._protocols import Backend

__all__ = ["BACKENDS", "LIBRARIES", "backend_by_name", "backend_for"]

LIBRARIES = {"numpy": ("numpy", "NumpyBackend"), "torch": ("torch", "TorchBackend")}  # each serves its own arrays
BACKENDS = {**LIBRARIES, "triton": ("triton", "TritonBackend")}  # this one serves torch's, if it is asked for


def backend_by_name(name: str) -> Backend:
    """The backend called ``name``.

    Args:
        name: ``"numpy"``, ``"torch"`` or ``"triton"``.

    Raises:
        BackendUnavailableError: if there is none of that name, its framework is not installed, or the device that it
            needs is missing; never another one.
    """
    if name not in BACKENDS:
        raise BackendUnavailableError(f"backend={name!r}: there is no such backend. Known: {', '.join(BACKENDS)}.")
    module, cls = BACKENDS[name]
    try:
        made: Backend = getattr(importlib.import_module(f"{__package__}.{module}"), cls)()
    except ModuleNotFoundError as error:
        raise BackendUnavailableError(
            f'backend={name!r} needs {error.name}, which is not installed. Hint: pip install "kvpolicy[{name}]".'
        ) from error
    return made


def backend_for(array: Any) -> Backend:
    """The backend of an array's own type, ``numpy`` or ``torch``.

    Args:
        array: a `numpy.ndarray` or a `torch.Tensor`; its values are not looked at.

    Raises:
        BackendUnavailableError: if no backend serves that type.
    """
    root = type(array).__module__.partition(".")[0]
    if root not in LIBRARIES:
        raise BackendUnavailableError(
            f"no backend serves {type(array).__module__}.{type(array).__name__}. Known: {', '.join(LIBRARIES)}."
        )
    return backend_by_name(root)
