"""Tables that no model would make: the same one in numpy and in torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from kvpolicy import CacheView, Column, Plan
from kvpolicy.backends.numpy import NumpyBackend
from kvpolicy.backends.torch import TorchBackend

__all__ = ["DTYPES", "OPS", "ORACLE", "ROUNDING", "Case", "cases", "in_torch", "representable", "some_plan"]

Arr = np.ndarray[Any, np.dtype[Any]]
ORACLE, OPS = NumpyBackend(), TorchBackend()

# One rounding of a result in each dtype of keys and values; sums are formed in float32 at least.
ROUNDING = {"float16": 2**-10, "bfloat16": 2**-7, "float32": 2**-21, "float64": 2**-48}
DTYPES = st.sampled_from(sorted(ROUNDING))


@dataclass(frozen=True)
class Case:
    """A random table in numpy (keys and values in float64 that the dtype can hold) and the same one in torch."""

    numpy: CacheView
    torch: CacheView
    rng: np.random.Generator


def in_torch(data: Arr, dtype: str | None = None) -> torch.Tensor:
    made = torch.tensor(data)
    return made.to(getattr(torch, dtype)) if dtype else made


def representable(data: Arr, dtype: str) -> Arr:
    rounded: Arr = in_torch(data, dtype).double().numpy()
    return rounded


@st.composite
def cases(draw: st.DrawFn, *, dtypes: st.SearchStrategy[str] = DTYPES, max_rows: int = 12) -> Case:
    """Unordered rows, padding, empty slots; merged counts, a float column that sums and an int column that stays."""
    batch, heads, rows, dim, value_dim = (draw(st.integers(1, most)) for most in (2, 3, max_rows, 5, 5))
    dtype, rng = draw(dtypes), np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (batch, heads, rows)
    valid = rng.random(shape) < draw(st.sampled_from([0.3, 0.8, 1.0]))
    positions = np.stack([rng.permutation(3 * rows)[:rows] for _ in range(batch * heads)]).reshape(shape)
    positions[~valid & (rng.random(shape) < 0.5)] = -1
    keys, values = (representable(rng.standard_normal((*shape, width)), dtype) for width in (dim, value_dim))
    columns = {
        "count": Column(np.where(valid, rng.integers(1, 5, shape), 0).astype(np.float32), "sum"),
        "mass": Column(np.where(valid, rng.random(shape), 0), "sum"),
        "segment": Column(rng.integers(0, 3, shape), "keep"),
    }
    registers = {"share": rng.random((batch, heads))}
    mine = CacheView(keys, values, positions, valid, columns, registers, layer=3, num_layers=7)
    theirs = replace(
        mine,
        keys=in_torch(keys, dtype),
        values=in_torch(values, dtype),
        positions=in_torch(positions),
        valid=in_torch(valid),
        columns={name: replace(c, data=in_torch(c.data)) for name, c in columns.items()},
        registers={"share": in_torch(registers["share"])},
    )
    return Case(mine, theirs, rng)


def some_plan(case: Case, *, targets: int, merge_keys: bool, share: float, scaled: bool = False) -> Plan:
    """Any legal plan: dropped rows fold into some kept rows, or into none, with any weights.

    What the plan says of rows that it does not concern is deliberate nonsense.
    """
    rng, view = case.rng, case.numpy
    keep = (rng.random(view.shape) < share) & view.valid
    registers = {"tau": rng.random(view.shape[:2])}
    if not targets:
        return Plan(keep=keep, registers=registers)
    into = np.full((*view.shape, targets), -1)
    weight = np.full(into.shape, np.nan)
    own = np.full(view.shape, np.nan)
    for b, h in np.ndindex(*view.shape[:2]):
        kept = np.flatnonzero(keep[b, h])
        for s in range(view.shape[2]):
            if keep[b, h, s]:
                own[b, h, s] = rng.choice([1.0, rng.random()])
            elif view.valid[b, h, s]:
                for m, n in enumerate(rng.permutation(kept)[:targets]):
                    if rng.random() < 0.7:
                        into[b, h, s, m], weight[b, h, s, m] = n, rng.standard_normal()
    scales = [rng.choice([1.0, 0.5, rng.random()], view.shape) if scaled else None for _ in range(2)]
    return Plan(keep, into, weight, own, merge_keys, scales[0], scales[1], registers)
