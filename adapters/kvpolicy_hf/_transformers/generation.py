"""What `generate` expects of a cache."""

from __future__ import annotations

from transformers.cache_utils import Cache
from transformers.generation.utils import ALL_CACHE_NAMES

__all__ = ["GenerateCache", "as_argument"]


def as_argument(cache: Cache) -> dict[str, Cache]:
    """A cache by the name that `generate` has for it: from 5.24 on it warns of ``past_key_values``."""
    return {"cache" if "cache" in ALL_CACHE_NAMES else "past_key_values": cache}


class GenerateCache(Cache):
    """A cache that hears when `generate` is called with it: transformers then marks it as the user's."""

    @property
    def _is_user_defined(self) -> bool:
        return True

    @_is_user_defined.setter
    def _is_user_defined(self, value: bool) -> None:
        self.generation_begins()

    def generation_begins(self) -> None:
        """Called before any token is run."""
        raise NotImplementedError
