"""What a component made of an example, for the next law that asks: laws that see the same examples share their runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, final

__all__ = ["Memo"]

T = TypeVar("T")


@final
class Memo:
    """Remembers the latest examples of one component on one backend.

    Args:
        most: examples that are remembered.
    """

    def __init__(self, most: int = 128) -> None:
        self._most = most
        self._arrays: dict[Any, Any] = {}
        self._known: dict[int, dict[str, Any]] = {}  # by the identity of arrays that are remembered themselves

    def arrays(self, example: Any, make: Callable[[], T]) -> T:
        """The arrays of an example: the same object each time."""
        if example not in self._arrays:
            if len(self._arrays) >= self._most:
                oldest = next(iter(self._arrays))
                del self._known[id(self._arrays.pop(oldest))]
            self._arrays[example] = make()
            self._known[id(self._arrays[example])] = {}
        found: T = self._arrays[example]
        return found

    def recall(self, what: str, arrays: Any, make: Callable[[], T]) -> T:
        """What was made of these arrays before; of others, such as a changed copy, nothing is remembered."""
        known = self._known.get(id(arrays))
        if known is None:
            return make()
        if what not in known:
            known[what] = make()
        found: T = known[what]
        return found
