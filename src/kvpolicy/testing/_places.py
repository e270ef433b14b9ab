"""Where components run: a backend, and perhaps a device."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from .._protocols import Backend
from ..backends import LIBRARIES, backend_by_name

__all__ = ["known_backends", "place_of"]


def place_of(backend: str | Backend) -> tuple[Backend, str | None]:
    """The backend and the device of ``"torch"`` or ``"torch:cuda"``; a backend itself is at its default device.

    Raises:
        BackendUnavailableError: if there is no such backend, or it is not installed.
    """
    if not isinstance(backend, str):
        return backend, None
    name, _, device = backend.partition(":")
    return backend_by_name(name), device or None


def known_backends() -> Sequence[str]:
    """Every array library that is installed here; a further backend of the same arrays is tried if it is named."""
    return [name for name in LIBRARIES if find_spec(name) is not None]
