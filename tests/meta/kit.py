"""Components for the tests of the kit, here and as the text of a user's module."""

from __future__ import annotations

from typing import Any

import kvpolicy as kv
from kvpolicy.testing import Check, Law
from kvpolicy.testing._subject import subject_of

__all__ = ["FEW", "ROWS", "STAGES", "TEST", "OfLength", "check", "words"]

FEW = 8  # examples

STAGES = '''
from dataclasses import dataclass

import numpy as np

from kvpolicy import FixedRows, Pipeline, Recency
from kvpolicy.testing import parametrize_with_checks


@dataclass(frozen=True)
class Fine:
    rows: int = 3

    def budget(self, step):
        return self.rows


@dataclass(frozen=True)
class OfLength:
    """Counts padding."""

    def budget(self, step):
        return max(1, step.length // 2)


@dataclass(frozen=True)
class Zero:
    def budget(self, step):
        return 0


fine = Fine(2)
pipeline = Pipeline(schedule=FixedRows(2), score=Recency())
number = 3


def make(rows=4):
    return Fine(rows)
'''

TEST = "\ndef test_laws(component, check):\n    check(component)\n"


def words(text: str) -> str:
    """The text on one line."""
    return " ".join(text.split())


class OfLength:
    """A schedule that counts padding."""

    def budget(self, step: Any) -> int:
        return max(1, step.length // 2)

    def __repr__(self) -> str:
        return "OfLength()"


ROWS = kv.FixedRows(2)


def check(about: Law, component: Any = ROWS, **options: Any) -> Check:
    """A check of a law that may be none of the kit's."""
    given_ = {"backend": "numpy", "profile": "ci", "sizes": {}, **options}
    return Check(law=about, component=component, _subject=subject_of(component, "numpy"), **given_)
