"""Values print as the constructor call that makes them, without the arguments that equal their defaults."""

from __future__ import annotations

from dataclasses import MISSING, Field, fields
from typing import Any

__all__ = ["constructor_repr"]


def constructor_repr(self: Any) -> str:
    """``Name(field=value, ...)`` of a dataclass instance, defaults left out; assign it to ``__repr__``."""
    shown = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if f.repr and not _default(self, f))
    return f"{type(self).__name__}({shown})"


def _default(self: Any, f: Field[Any]) -> bool:
    value = getattr(self, f.name)
    if f.default is not MISSING:
        return bool(value == f.default)
    return f.default_factory is not MISSING and bool(value == f.default_factory())
