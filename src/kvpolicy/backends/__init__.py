"""The heavy operations, once per array library. Nothing here is imported until an array asks for it."""

from ._resolve import BACKENDS, LIBRARIES, backend_by_name, backend_for

__all__ = ["BACKENDS", "LIBRARIES", "backend_by_name", "backend_for"]
