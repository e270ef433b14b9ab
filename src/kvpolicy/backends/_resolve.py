"""Which backend serves an array: chosen by the array's own type, never importing a framework that is not loaded."""

from __future__ import annotations

import importlib
from typing import Any

from .._errors import BackendUnavailableError
from .._protocols import Backend

__all__ = ["BACKENDS", "backend_by_name", "backend_for"]

BACKENDS = {"numpy": ("numpy", "NumpyBackend"), "torch": ("torch", "TorchBackend")}


def backend_by_name(name: str) -> Backend:
    """The backend called ``name``.

    Raises:
        BackendUnavailableError: if there is none of that name, or its framework is not installed; never another one.
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
    """The backend of an array's own type.

    Raises:
        BackendUnavailableError: if no backend serves that type.
    """
    root = type(array).__module__.partition(".")[0]
    if root not in BACKENDS:
        raise BackendUnavailableError(
            f"no backend serves {type(array).__module__}.{type(array).__name__}. Known: {', '.join(BACKENDS)}."
        )
    return backend_by_name(root)
