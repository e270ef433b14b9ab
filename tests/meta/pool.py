"""A few rich examples, small ones, at every edge that the kit's strategies have."""

from __future__ import annotations

from typing import Any

from kvpolicy.testing import Law, Request, Table
from kvpolicy.testing.traces import Crop, Decode, Prefill, Reorder, Reset, Trace, Turn

__all__ = ["examples"]

# In the middle of decoding; a turn; a padded prompt with an image. The first ones have something for every law.
TABLES = (
    Table(
        seed=2,
        layers=2,
        batch=2,
        heads=2,
        tokens=6,
        padding=(0, 2),
        evicted=0.2,
        empty=1,
        merged=True,
        shuffled=True,
        vectors="axes",
        scores="ties",
        quota=2,
        phase="decode",
    ),
    Table(
        seed=3,
        batch=2,
        heads=2,
        groups=2,
        value_dim=2,
        tokens=7,
        now=3,
        padding=(3, 0),
        evicted=0.3,
        empty=1,
        merged=True,
        vectors="zeros",
        scores="infinite",
        quota=2,
    ),
    Table(seed=1, layers=2, batch=2, heads=2, groups=2, dim=4, tokens=5, now=5, padding=(0, 2), image=(1, 3), quota=2),
    Table(),
    Table(
        seed=4,
        batch=2,
        heads=2,
        tokens=7,
        padding=(0, 3),
        evicted=0.3,
        empty=1,
        shuffled=True,
        vectors="equal",
        scores="equal",
        quota=3,
        phase="decode",
    ),
    Table(
        seed=5,
        layers=2,
        batch=2,
        heads=3,
        groups=2,
        tokens=8,
        now=8,
        padding=(0, 3),
        merged=True,
        image=(2, 6),
        vectors="dominant",
        scores="dominant",
        quota=4,
    ),
    Table(
        seed=6,
        batch=2,
        heads=2,
        dim=4,
        tokens=5,
        padding=(4, 1),
        merged=True,
        shuffled=True,
        scores="worthless",
        quota=2,
        phase="decode",
    ),
    Table(
        seed=7,
        layers=2,
        batch=2,
        heads=2,
        tokens=9,
        now=5,
        padding=(2, 6),
        evicted=0.7,
        empty=2,
        vectors="axes",
        scores="denormal",
        quota=None,
    ),
)
REQUESTS = (
    Request(seed=1, layers=2, batch=2, heads=2, groups=2, prompt=5, steps=2, padding=(0, 2), image=(1, 3)),
    Request(seed=2, batch=2, heads=2, dim=4, value_dim=2, prompt=6, steps=1, turn=2, padding=(3, 0)),
    Request(seed=4, prompt=1, steps=3),
)


TRACES = (
    Trace(
        ops=(
            Prefill(5, (3, 2)),
            Decode(2),
            Reorder((1, 0)),
            Turn(2),
            Decode(1),
            Crop(1),
            Reset(),
            Prefill(4),
            Decode(1),
        ),
        layers=2,
        batch=2,
        heads=2,
        groups=2,
        padding=(0, 2),
        image=(1, 3),
        prompt_length=5,
    ),
    Trace(ops=(Prefill(1), Decode(2))),
)


def examples(law: Law, kind: type, *, most: int) -> list[Any]:
    """Those that are large enough for a law; at most so many."""
    every: tuple[Any, ...] = {Table: TABLES, Request: REQUESTS, Trace: TRACES}[kind]
    return [one for one in every if all(getattr(one, name) >= size for name, size in law.least.items())][:most]
