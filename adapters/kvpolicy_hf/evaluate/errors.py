"""What an evaluation may raise."""

from kvpolicy import PolicyError

__all__ = ["EvaluationError"]


class EvaluationError(PolicyError):
    """An evaluation was asked for that cannot be run, or results that do not belong together."""
