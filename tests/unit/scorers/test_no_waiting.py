"""No scorer waits for the device: on the meta device, where there is nothing to wait for, each gives its scores.

A tensor of that device has a shape and no data, so that whatever would bring a number to the host fails.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from driving import make_request, with_image
from scoring import watch

from kvpolicy import AttentionMass, CacheView, Observer, Queries, Scored, Step
from kvpolicy.scorers import (
    ColumnScore,
    EliteMass,
    ExpectedAttention,
    FixedPoint,
    KeyDifference,
    KeyNorm,
    Noise,
    Pooled,
    PostImageMass,
    Recency,
    Shared,
    WindowMass,
)

SCORERS: list[Any] = [
    *(AttentionMass(heads=heads, reduce=how) for heads in ("each", "mean") for how in ("sum", "mean", "moving")),  # type: ignore[arg-type]
    WindowMass(3),
    Pooled(WindowMass(3)),
    Pooled(AttentionMass(), mode="max"),
    Shared(Pooled(AttentionMass())),
    PostImageMass(),
    EliteMass(),
    ExpectedAttention(),
    KeyNorm(),
    KeyDifference(),
    Noise(),
    ColumnScore("count"),
    Recency(),
    FixedPoint(),
]


def turn(x: Any, by: Any) -> Any:
    """Any function of both will do."""
    return x * by[..., None].cos()


@pytest.mark.parametrize("queries", [1, 12])
@pytest.mark.parametrize("scorer", SCORERS, ids=repr)
def test_it_gives_scores_without_data(scorer: Any, queries: int) -> None:
    request = with_image(make_request(groups=2, prompt=12, steps=0), 2, 5)
    (said,) = watch(Recency(), request)
    view, step = on_meta(said.view), said.step
    step = replace(
        step,
        queries=step.queries[:, :, -queries:].to("meta"),
        query_positions=step.query_positions[:, -queries:].to("meta"),
        query_valid=step.query_valid[:, -queries:].to("meta"),
        rotate=turn,
        earlier=Queries(
            torch.empty(1, 4, 2, 4, dtype=torch.float64, device="meta"),
            torch.empty(1, 2, dtype=torch.int64, device="meta"),
            torch.empty(1, 2, dtype=torch.bool, device="meta"),
        ),
    )
    if isinstance(scorer, Observer):
        for _ in range(2):  # once without the columns there, and once with
            view = view.with_columns(scorer.observe(view, step))
    scores = scorer.score(view, step)
    assert scores.device.type == "meta"
    assert scores.shape == view.shape
    if isinstance(scorer, Shared):
        layers = [Scored(replace(view, layer=n), scores) for n in range(3)]
        assert [out.shape for out in scorer.across(layers, step)] == [view.shape] * 3


def on_meta(view: CacheView) -> CacheView:
    return replace(
        view,
        keys=view.keys.to("meta"),
        values=view.values.to("meta"),
        positions=view.positions.to("meta"),
        valid=view.valid.to("meta"),
        columns={name: replace(column, data=column.data.to("meta")) for name, column in view.columns.items()},
        rank=None if view.rank is None else view.rank.to("meta"),
    )


def test_the_check_would_notice() -> None:
    class Waits:
        def score(self, view: CacheView, step: Step, /) -> Any:
            return view.values.sum(-1) * float(view.values.sum())

    with pytest.raises((RuntimeError, NotImplementedError)):
        Waits().score(on_meta(watch(Recency(), make_request())[-1].view), None)  # type: ignore[arg-type]
