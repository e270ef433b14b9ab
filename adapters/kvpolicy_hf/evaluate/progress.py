"""Progress where no bar can be drawn, as in a log: a plain line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console

from .._progress import Bar
from .processes import Processes

__all__ = ["Lines", "shown_on"]

INSTANT = 0.05  # seconds; a unit that takes less was measured before, and says nothing of the pace
PATIENCE = 60.0  # seconds without a line


class Lines:
    """A line at each tenth of what is being done, and once a minute, with the time that the rest of it will take.

    Args:
        write: takes a line.
        clock: seconds, as `time.monotonic` counts them.
    """

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._write, self._clock = write, clock
        self._what = ""
        self._last = self._told = clock()
        self._tenth = self._measured = 0
        self._spent = 0.0

    def show(self, what: str, done: int, total: int) -> None:
        """So many of so many are done; call it after each. Something else has tenths and a pace of its own."""
        if what != self._what:
            self._what, self._tenth, self._measured, self._spent = what, 0, 0, 0.0
        now = self._clock()
        if now - self._last > INSTANT:
            self._measured += 1
            self._spent += now - self._last
        self._last = now
        tenth = 10 * done // total
        if tenth > self._tenth or now - self._told >= PATIENCE:
            self._tenth, self._told = tenth, now
            self._write(f"{what}: {done} of {total}{self._rest(total - done)}")

    def _rest(self, left: int) -> str:
        """``, about 5 min to go``; nothing where nothing is left or the pace is not known."""
        if not left or not self._measured:
            return ""
        seconds = left * self._spent / self._measured
        return f", about {seconds:.0f} s to go" if seconds < 90 else f", about {seconds / 60:.0f} min to go"


def shown_on(errors: Console, bar: Bar) -> Callable[[str, int, int], None]:
    """What shows how far a long run is: the bar, and where no terminal draws it, lines of the first process alone."""
    return bar.show if errors.is_terminal or not Processes().first else Lines(errors.print).show
