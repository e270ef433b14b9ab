"""One fault, one failure: a law has nothing to say where one that it rests on has failed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

import pytest

from ._check import Check
from ._law import ConformanceError, Law

__all__ = ["OrderedCheck", "in_order"]


@final
@dataclass(eq=False)
class OrderedCheck:
    """A check that remembers how it went, and which others it rests on.

    Attributes:
        check: what is tried.
        before: those that it rests on; one that is expected to fail is not among them.
        collected: whether it will be run for its own sake.
        outcome: the failure; True: it holds; None: not known yet.
    """

    check: Check
    before: tuple[OrderedCheck, ...] = ()
    collected: bool = False
    outcome: ConformanceError | bool | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        return repr(self.check)

    def __call__(self, component: Any) -> None:
        """Try the law, unless one that it rests on is known to fail.

        Raises:
            ConformanceError: if it does not hold.
            pytest.skip.Exception: if an earlier one does not, and is shown elsewhere.
        """
        __tracebackhide__ = True
        found, earlier = self.settle(component)
        if earlier is not None and earlier.collected:
            pytest.skip(f"not tried: {earlier.check.law.name} fails, and comes first")
        if found is not None:
            raise found.with_traceback(None)

    def settle(self, component: Any) -> tuple[ConformanceError | None, OrderedCheck | None]:
        """The failure, and, if that is an earlier one's, whose.

        Only a law that fails asks whether an earlier one explains it, where that is not known: in another process.
        """
        for earlier in self.before:
            if isinstance(earlier.outcome, ConformanceError):
                return earlier.outcome, earlier
        if isinstance(own := self._tried(component), ConformanceError):
            for earlier in self.before:
                if isinstance(other := earlier._tried(component), ConformanceError):
                    return other, earlier
            return own, None
        return None, None

    def _tried(self, component: Any) -> ConformanceError | bool:
        if self.outcome is None:
            try:
                self.check(component)
                self.outcome = True
            except ConformanceError as error:
                self.outcome = error
        return self.outcome


def in_order(about: Mapping[str, Check | str]) -> Mapping[str, OrderedCheck | str]:
    """The checks of one component on one backend, each with those that it rests on."""
    out: dict[str, OrderedCheck | str] = {}
    for name, check in about.items():
        if isinstance(check, str):
            out[name] = check
            continue
        before = [known for known in out.values() if isinstance(known, OrderedCheck) and _rests(check.law, known.check)]
        out[name] = OrderedCheck(check, tuple(before))
    return out


def _rests(law: Law, earlier: Check) -> bool:
    return earlier.expected is None and (earlier.law.structural or earlier.law.name in law.after)
