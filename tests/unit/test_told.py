"""What the attention has told is what the backends would compute; and how the kernels' tiles are chosen."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from driving import make_request, to

from kvpolicy import (
    AttentionMass,
    FixedRows,
    Pass,
    Pipeline,
    Policy,
    Recency,
    Session,
    WindowMass,
    _engine,
    backend_by_name,
    h2o,
    streaming_llm,
    tova,
)

REQUEST = make_request(batch=2, groups=2, prompt=12, steps=1)
DATA = (REQUEST.keys, REQUEST.values, REQUEST.queries)


def after(told: bool, policy: Policy, backend: str = "torch") -> torch.Tensor:
    """Positions that one decoded token leaves, where its attention tells the shares or not."""
    session = Session(policy, backend_by_name(backend), 1)
    for start, length in ((0, 12), (12, 1)):
        now = np.s_[start : start + length]
        places = torch.arange(start, start + length).expand(2, length)
        step = Pass(start, places, places >= 0, np.full(2, length), {})
        keys, values, queries = (
            to("torch", d[0][:, :, now], "float32") for d in (REQUEST.keys, REQUEST.values, REQUEST.queries)
        )
        view = session.append(0, keys, values, step)
        shares = sums = None
        logits = (queries.unflatten(1, (2, 2)) @ view.keys.mT[:, :, None]) * REQUEST.scale
        seen = view.positions[:, :, None, None] <= places[:, None, None, :, None]
        logits = logits.masked_fill(~seen, -torch.inf)
        if told and length == 1:
            shares = logits.softmax(-1).mean(2)[:, :, 0]
        elif told:
            sums = logits.logsumexp(-1).flatten(1, 2)
        session.advance(0, queries, REQUEST.scale, step, shares=shares, log_sums=sums)
    left = session._layers[0].store.view()
    return torch.where(left.valid, left.positions, -1).sort(-1).values


@pytest.mark.parametrize("score", [AttentionMass(), AttentionMass(reduce="moving"), WindowMass(window=1)], ids=repr)
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_shares_and_sums_that_are_told(score: AttentionMass | WindowMass, backend: str) -> None:
    pipeline = Pipeline(schedule=FixedRows(6), score=score)
    policy = Policy(prefill=pipeline, decode=pipeline)
    assert torch.equal(after(True, policy, backend), after(False, policy))


def test_a_session_says_what_it_wants_to_be_told() -> None:
    asks = Session(h2o(rows=6), backend_by_name("torch"), 1)
    assert (asks.wants_shares, asks.wants_sums) == (True, True)
    goes_by_place = Session(streaming_llm(rows=6), backend_by_name("torch"), 1)
    assert (goes_by_place.wants_shares, goes_by_place.wants_sums) == (False, False)
    looks = Session(tova(rows=6), backend_by_name("torch"), 1)  # at the latest query, and observes nothing
    assert (looks.wants_shares, looks.wants_sums) == (True, False)


@pytest.mark.parametrize("name", ["shares", "log_sums"])
def test_a_stage_hears_what_is_told(name: str) -> None:
    heard: list[Any] = []

    class Hears:
        def observe(self, view: Any, step: Any) -> Any:
            heard.append((step.shares, step.log_sums))
            return {}

        def score(self, view: Any, step: Any) -> Any:
            return view.positions

    session = Session(Policy(decode=Pipeline(schedule=FixedRows(6), score=Hears())), backend_by_name("torch"), 1)
    places, told = torch.arange(3)[None], torch.ones(1, 2, 3)
    now = Pass(0, places, places >= 0, np.array([3]), {})
    session.append(0, *(torch.ones(1, 2, 3, 4) for _ in range(2)), now)
    session.advance(0, torch.ones(1, 2, 3, 4), 1.0, now, **{name: told})
    assert [one is told for one in heard[0]] == [name == "shares", name == "log_sums"]


def test_scores_that_cross_no_layers_stay_as_they_are() -> None:
    pipeline = Pipeline(schedule=FixedRows(6), score=Recency())
    layers: list[Any] = [object(), object()]
    assert _engine.across(pipeline, layers, layers[0], check=True) is layers


def test_the_backend_attends_as_softmax_does() -> None:
    backend = backend_by_name("triton")
    session = Session(Policy(), backend, 1)
    places = torch.arange(12).expand(2, 12)
    keys, values, queries = (
        to("torch", d[0][:, :, :12], "float32") for d in (REQUEST.keys, REQUEST.values, REQUEST.queries)
    )
    view = session.append(0, keys, values, Pass(0, places, places >= 0, np.full(2, 12), {}))
    counted = replace(
        view, columns={"count": replace(view.columns["count"], data=view.columns["count"].data + places[:, None])}
    )
    out, shares = backend.attend(  # type: ignore[attr-defined]
        counted, queries[:, :, -1:], scale=0.5, softcap=None, sinks=None, count_bias=True, want_shares=True
    )
    logits = (
        0.5 * queries[:, :, -1:].unflatten(1, (2, 2)) @ keys.mT[:, :, None]
        + counted.columns["count"].data.log()[:, :, None, None]
    )
    due = logits.softmax(-1)
    torch.testing.assert_close(shares, due.mean(2)[:, :, 0])
    torch.testing.assert_close(out, (due @ values[:, :, None]).flatten(1, 2))


def test_tiles_go_by_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from kvpolicy.backends.triton import SEARCHES, TILINGS, backend, launch, mass
    from kvpolicy.backends.triton.kernels.nearest import SEARCH

    wide, narrow = (mass._tiling(dim, torch.bfloat16, 999) for dim in (256, 128))
    assert wide[0].queries < narrow[0].queries
    assert mass._tiling(128, torch.bfloat16, 32) == TILINGS["64x64, 4 warps"]
    assert backend._search(torch.bfloat16) == SEARCHES[SEARCH]
    assert mass._tiling(256, torch.float32, 99)[0].queries < mass._tiling(64, torch.float32, 99)[0].queries
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(multi_processor_count=7))
    assert launch.programs(torch.device("cuda")) == 14
