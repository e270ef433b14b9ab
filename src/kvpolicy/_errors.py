"""Everything kvpolicy raises on purpose.

    KVPolicyError
    ├── PolicyError (ValueError)             an argument of a stage, recipe or policy is wrong
    ├── PlanError (ValueError)               a stage returned something that cannot be carried out
    ├── MissingColumnError (LookupError)     a stage needs a column that this cache does not carry
    ├── CacheError (RuntimeError)            a cache is used in a way it cannot serve
    ├── BackendUnavailableError (ImportError) the arrays' backend is not installed
    └── UnsupportedModelError (TypeError)    a model's attention cannot be served

Each message names the stage or argument, the value, and the fix.
"""

from __future__ import annotations

__all__ = [
    "BackendUnavailableError",
    "CacheError",
    "KVPolicyError",
    "MissingColumnError",
    "PlanError",
    "PolicyError",
    "UnsupportedModelError",
]


class KVPolicyError(Exception):
    """Base of every error that kvpolicy raises on purpose."""


class PolicyError(KVPolicyError, ValueError):
    """An argument of a stage, recipe or policy is wrong."""


class PlanError(KVPolicyError, ValueError):
    """A stage returned something that cannot be carried out (NaN scores, a wrong shape, a merge into a dropped row)."""


class MissingColumnError(KVPolicyError, LookupError):
    """A stage needs a column that this cache does not carry."""

    def __init__(self, stage: str, column: str, present: tuple[str, ...], hint: str = "") -> None:
        has = ", ".join(present) or "none"
        super().__init__(
            f"{stage} needs column {column!r}; this cache has: {has}." + (f" Hint: {hint}" if hint else "")
        )


class CacheError(KVPolicyError, RuntimeError):
    """A cache is used in a way that it cannot serve: another model, a rollback, a reset in the middle of a pass."""


class BackendUnavailableError(KVPolicyError, ImportError):
    """No backend for these arrays, or the one that was asked for is not installed."""


class UnsupportedModelError(KVPolicyError, TypeError):
    """A model's attention cannot be served; raised before a token is produced."""
