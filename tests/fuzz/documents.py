"""Policies and documents of them: what the tests of files share."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from compositions.stages import FACTORS, policy_of, why_refused
from hypothesis import strategies as st

from kvpolicy import (
    ByVariance,
    ColumnScore,
    FixedRows,
    GRUController,
    HeadTable,
    Noise,
    Pipeline,
    Policy,
    Pyramid,
    Recency,
    TopK,
    from_json,
    from_toml,
    to_json,
    to_toml,
)

GRU = GRUController(2, 1, np.arange(24, dtype="<f4").tobytes()[: 4 * (2 * 3 + 3 + 3 + 1 + 2 + 1 + 1)])
BOTH: list[Any] = [(to_json, from_json), (to_toml, from_toml)]


@dataclass(frozen=True)
class Mine:
    """A user's scorer that takes whatever it is given."""

    of: Any = 1.0
    rest: Any = ()

    def score(self, view: Any, step: Any) -> Any:
        return view.values.sum(-1)


ALLOW = (Mine,)
MINE = f"{Mine.__module__}:Mine"


def scored(score: Any, **others: Any) -> Policy:
    return Policy(decode=Pipeline(schedule=FixedRows(4), score=score, **others))


# What is drawn ------------------------------------------------------------------------------------------------------

shares = st.floats(0, 1, exclude_min=True)
integers = st.integers(0, 2**1000) | st.integers(0, 40)
words = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20)
finite = st.floats(allow_nan=False, allow_infinity=False)
plain = st.none() | st.booleans() | integers | st.integers() | finite | words | st.binary(max_size=9)
loose = st.recursive(
    plain | st.sampled_from([TopK(first=2), Recency(), GRU]),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.builds(Mine, of=inner, rest=inner),
    max_leaves=6,
)
stages = st.one_of(
    st.builds(scored, st.builds(Noise, seed=integers) | st.builds(ColumnScore, name=words) | st.just(GRU)),
    st.builds(scored, st.just(Recency()), select=st.builds(TopK, first=integers, recent=shares)),
    st.builds(
        scored,
        st.just(Recency()),
        allocate=st.builds(Pyramid, beta=st.floats(1, allow_infinity=False), least=integers)
        | st.builds(HeadTable, table=st.lists(st.tuples(shares, finite.map(abs)), min_size=1).map(tuple))
        | st.builds(ByVariance, exempt=st.lists(integers).map(tuple)),
    ),
)
compositions = (
    st.fixed_dictionaries({name: st.sampled_from(options) for name, options in FACTORS.items()})
    .filter(lambda choice: why_refused(choice) is None)
    .map(policy_of)
)
policies = compositions | stages | st.builds(scored, st.builds(Mine, of=loose, rest=loose))


def document(**decode: Any) -> dict[str, Any]:
    stages = {"schedule": {"stage": "FixedRows", "rows": 4}, "score": {"stage": "Recency"}}
    return {"format": "kvpolicy-policy", "version": 1, "policy": {"decode": stages | decode}}


def written(**decode: Any) -> str:
    return json.dumps(document(**decode))


GOOD = written()


class NoDataclass:
    def score(self, view: Any, step: Any) -> Any:
        return view.values.sum(-1)


@dataclass(frozen=True)
class Doubled(Mine):
    of: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "of", 2 * self.of)
