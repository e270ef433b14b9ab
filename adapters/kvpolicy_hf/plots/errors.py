"""What the pictures raise on purpose."""

from __future__ import annotations

from kvpolicy import KVPolicyError

__all__ = ["PlotError"]


class PlotError(KVPolicyError, ValueError):
    """A picture cannot be drawn from what it was given."""
