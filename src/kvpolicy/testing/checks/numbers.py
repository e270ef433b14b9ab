"""Numbers: lower precision gives nearly the same, and every backend agrees with the oracle."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from .._law import ARRAYS, law
from .._numbers import ROUNDING
from .._outcome import Outcome, compare, fail
from .._subject import Example, Subject
from ..requests import Request

__all__ = ["agrees_with_numpy", "dtype_stable"]

_DTYPES = ("float16", "bfloat16", "float32")
_ROUNDINGS = 16  # of the dtype of keys and values; a stage that works in float32 needs one or two


@law(*ARRAYS, "Policy")
def dtype_stable(subject: Subject, example: Example) -> None:
    """|f_dtype(x) - f_float64(x)| <= 16 roundings of the dtype, and what accumulates does so in float32 or wider."""
    dtypes = [name for name in _DTYPES if subject.has(name)]
    dtype = dtypes[example.seed % len(dtypes)]
    if isinstance(example, Request):  # a prompt: what follows a rounded merge may rightly go another way
        arrays = subject.arrays(replace(example, dtype=dtype, steps=0, turn=0))
    else:
        arrays = subject.arrays(replace(example, dtype=dtype))
    got = subject.run(arrays)
    due = subject.run(replace(arrays, dtype="float64"))
    _check_widths(got, dtype)
    if got.keys() != due.keys() and _only_ties_differ(
        subject, arrays, subject, replace(arrays, dtype="float64"), rounding=ROUNDING[dtype]
    ):
        return
    compare(_floats(got), _floats(due), what="float64", tolerance=max(_ROUNDINGS * ROUNDING[dtype], 1e-4))


def _only_ties_differ(subject: Subject, arrays: Any, other: Subject, given: Any, *, rounding: float) -> bool:
    """Whether the first selections of a policy that differ do so only by rows whose scores are equal to rounding.

    What follows may then rightly be different.
    """
    if subject.kind.name != "Policy":
        return False
    for mine, yours in zip(subject.selections(arrays), other.selections(given), strict=False):
        if np.array_equal(mine.keep, yours.keep):
            continue
        if not np.array_equal(mine.keep.sum(-1), yours.keep.sum(-1)):
            return False
        for b, h in np.ndindex(*mine.keep.shape[:2]):
            apart = yours.scores[b, h][mine.keep[b, h] != yours.keep[b, h]]
            if len(apart) and np.ptp(apart) > _ROUNDINGS * max(rounding, 1e-5) * max(1.0, float(np.abs(apart).max())):
                return False
        return True
    return False


def _check_widths(outcome: Outcome, dtype: str) -> None:
    for place, record in outcome.items():
        for name, data in record.items():
            width = getattr(data, "dtype", np.dtype(np.float64))
            if name not in ("score", "key", "value") and width == np.float16:
                fail(place, f"{name} is kept in {width}, from {dtype} rows: sums of many would stand still.")


def _floats(outcome: Outcome) -> Outcome:
    """In float64, of a merger the first merge: what the second is given has been rounded in between."""
    return {
        place: {name: np.asarray(data, np.float64) for name, data in record.items()}
        for place, record in outcome.items()
        if place.when <= 0
    }


def _is_oracle(subject: Subject) -> str | None:
    return "numpy is what others are compared with" if subject.ops.name == "numpy" else None


_EXPLAIN = (
    "merge_mass",
    "head_independent",
    "slot_equivariant",
    "padding_invariant",
    "batch_independent",
    "dtype_stable",
)


@law(*ARRAYS, "Policy", after=_EXPLAIN, unless=_is_oracle)
def agrees_with_numpy(subject: Subject, example: Example) -> None:
    """f_backend(x) = f_numpy(x), to rounding in float64: the numpy backend is loops, written from the formulas."""
    arrays = subject.arrays(replace(example, dtype="float64"))
    oracle = subject.elsewhere("numpy")
    if subject.kind.name == "Backend":
        oracle = replace(oracle, component=oracle.ops)
    got, due = subject.run(arrays), oracle.run(arrays)
    if got.keys() == due.keys() or not _only_ties_differ(subject, arrays, oracle, arrays, rounding=ROUNDING["float32"]):
        compare(got, due, what="the numpy backend", tolerance=1e-6)
