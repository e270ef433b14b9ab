"""What loading may raise."""

from kvpolicy import KVPolicyError

__all__ = ["LoadingError"]


class LoadingError(KVPolicyError):
    """There is no model where one was looked for, or its files cannot be read."""
