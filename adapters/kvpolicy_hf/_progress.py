"""The progress bar of every command that loads a model: one look, on stderr, gone when the command is done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["Bar", "progress_bar"]


class Bar:
    """One line: what is being done, how much of it is done, and how long the rest will take.

    Args:
        progress: draws the line.
        what: is done first; how much there is of it is not known yet.
    """

    def __init__(self, progress: Progress, what: str) -> None:
        self._progress = progress
        self._what = what
        self._task = progress.add_task(what, total=None)

    def begin(self, what: str, total: int | None = None) -> None:
        """Go on to something else; its time is estimated anew."""
        self._progress.remove_task(self._task)
        self._what = what
        self._task = self._progress.add_task(what, total=total)

    def advance(self) -> None:
        """One more is done."""
        self._progress.advance(self._task)

    def show(self, what: str, done: int, total: int) -> None:
        """So many of so many are done."""
        if what != self._what:
            self.begin(what, total)
        self._progress.update(self._task, completed=done, total=total)


@contextmanager
def progress_bar(what: str) -> Iterator[Bar]:
    """A bar on stderr, so that stdout holds results alone.

    Args:
        what: is done first, such as ``"loading the model"``.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield Bar(progress, what)
