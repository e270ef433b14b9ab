"""Where a column that is missing comes from."""

from __future__ import annotations

import numpy as np
import pytest
from stock import controller

from kvpolicy import CacheView, MissingColumnError
from kvpolicy.scorers import AttentionMass, GRUController, PostImageMass

ONE = np.zeros((1, 1, 1), dtype=np.int64)
EMPTY = CacheView(ONE[..., None] * 0.0, ONE[..., None] * 0.0, ONE, ONE == 0, {})


def refused(column: str, hint: str = "") -> str:
    with pytest.raises(MissingColumnError) as caught:
        EMPTY.column(column, needed_by="Mine", hint=hint)
    return str(caught.value)


def test_one_of_ones_own_is_observed_or_brought() -> None:
    assert refused("mine") == (
        "Mine needs column 'mine'; this cache has: none. Hint: return it from `observe` of the scorer, "
        "{'mine': Column(...)}, or bring it with the tokens, Pass(columns={'mine': ...})."
    )


def test_a_hint_of_the_stage_goes_first() -> None:
    assert refused("mine", "ask again.") == "Mine needs column 'mine'; this cache has: none. Hint: ask again."


def test_segments_come_with_the_inputs() -> None:
    assert refused("segment").endswith("Hint: pass inputs= to PolicyCache, or segments=.")


@pytest.mark.parametrize(
    "scorer",
    [
        AttentionMass(),
        AttentionMass(reduce="mean"),
        AttentionMass(reduce="moving", decay=0.25),
        PostImageMass(),
        PostImageMass(threshold=0.05),
        controller(3, size=12),
    ],
    ids=lambda scorer: type(scorer).__name__,
)
def test_the_scorer_that_observes_it_is_named(scorer: AttentionMass | PostImageMass | GRUController) -> None:
    for column in scorer.columns:
        name = refused(column).partition("Hint: ")[2].partition(" observes it: ")[0]
        assert name.partition("(")[0] == type(scorer).__name__
