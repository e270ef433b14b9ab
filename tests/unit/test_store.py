"""Where rows live: the torch store against the plain one, and what it costs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from driving import table_of, to
from hypothesis import given
from hypothesis import strategies as st
from storing import HEADS, Pair, arriving, kept_by
from torch.utils._python_dispatch import TorchDispatchMode

from kvpolicy import CacheError, Column, Plan, backend_by_name

APPEND, ONE, EVICT, MERGE, OBSERVE, SELECT, JOIN = "append one evict merge observe select join".split()


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 3),
    st.lists(st.sampled_from([APPEND, ONE, ONE, ONE, EVICT, EVICT, MERGE, OBSERVE, SELECT, JOIN, JOIN]), max_size=16),
    st.sampled_from([None, 1, 6, 50]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_any_sequence_leaves_the_rows_of_the_plain_store(
    seed: int, batch: int, commands: list[str], limit: int | None, segments: bool, on_host: bool, joins_first: bool
) -> None:
    pair = Pair.new(seed, batch, on_host=on_host)
    if joins_first:  # as an archive begins
        pair.join(int(pair.rng.integers(1, 9)))
    else:
        pair.append(int(pair.rng.integers(1, 9)), limit=limit, segments=segments)
    pair.compare()
    for command in commands:
        if command in (APPEND, ONE):
            pair.append(
                1 if command == ONE else int(pair.rng.integers(2, 5)),
                limit=limit,
                segments=segments or bool(pair.rng.random() < 0.3),
            )
        elif command == JOIN:
            pair.join(int(pair.rng.integers(1, 5)))
        elif command in (EVICT, MERGE):
            alike = pair.rng.random() < 0.5
            shares = pair.rng.choice([0.3, 0.8, 0.95] if alike else [0.0, 0.2, 1.0], (pair.batch, HEADS))
            pair.apply(np.full_like(shares, shares[0, 0]) if alike else shares, merge=command == MERGE)
        elif command == OBSERVE:
            pair.observe("mass", "sum" if pair.rng.random() < 0.5 else "keep")
        else:
            pair.select()
        pair.compare()


def steady(*, prompt: int = 40, keep: int = 12, heads: int = 2, dim: int = 16) -> Any:
    """A torch store that holds ``keep`` rows of a prompt."""
    store = backend_by_name("torch").store(0, 1)
    view = store.append(arriving("torch", 0, prompt, heads=heads, dim=dim))
    store.observe({"mass": Column(torch.ones(view.shape), "sum")})
    stays = torch.zeros(view.shape, dtype=torch.bool)
    stays[..., :: prompt // keep] = True
    stays &= stays.cumsum(-1) <= keep
    store.apply(Plan(keep=stays), np.full((1, heads), keep))
    return store


def evict_one_a_head(store: Any, step: int) -> None:
    """Another row in every head, so that their free slots differ."""
    view = store.view()
    keep = view.valid.clone()
    for head in range(view.shape[1]):
        held = keep[0, head].nonzero()[:, 0]
        keep[0, head, held[(step + 5 * head) % len(held)]] = False
    store.apply(Plan(keep=keep), kept_by(keep))


def test_decode_under_a_budget_writes_in_place() -> None:
    store = steady()
    held = [set(store.view().positions[0, head].tolist()) for head in range(2)]
    addresses = None
    for step in range(50):
        view = store.append(arriving("torch", 40 + step, 1, dim=16), limit=13)
        places = [view.keys, view.values, view.positions, view.valid, *(c.data for c in view.columns.values())]
        now = (store.capacity, view.shape, [place.data_ptr() for place in places])
        assert addresses is None or now == addresses
        addresses = now
        assert not view.columns["mass"].data[view.positions == 40 + step].any(), "a slot's old column stayed"
        for head in range(2):
            rows = table_of(view, 0, head, np.asarray)
            assert rows.keys[:, 0].tolist() == [p + 1000 * head for p in rows.positions]
            assert set(rows.positions) == held[head] | {40 + step}
        store.observe({"mass": Column(torch.ones(view.shape), "sum")})
        evict_one_a_head(store, step)
        held = [set(table_of(store.view(), 0, head, np.asarray).positions) for head in range(2)]
        assert [len(rows) for rows in held] == [12, 12]
    assert store.capacity == 13


class Fresh(TorchDispatchMode):
    """Bytes of the largest storage that an operation made, those of the given tensors aside."""

    def __init__(self, *known: torch.Tensor) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(made, torch.Tensor) and made.untyped_storage().data_ptr() not in self.known:
                self.largest = max(self.largest, made.untyped_storage().nbytes())
        return out


def test_a_decode_step_makes_nothing_of_the_caches_size() -> None:
    store, kept = steady(prompt=400, keep=200), np.full((1, 2), 200)
    for step in range(4):
        rows = arriving("torch", 400 + step, 1, dim=16)
        view = store.view()
        with Fresh(view.keys, view.values, view.positions, view.valid) as fresh:
            store.append(rows, limit=201)
            keep = store.view().valid.clone()
            keep[..., step] = False
            store.apply(Plan(keep=keep), kept)
        # Masks and indices of one row's width may be made; keys and values are 16 floats wide.
        assert 0 < fresh.largest <= view.keys.nbytes // 8


def test_growth_without_a_bound_is_rare_and_with_one_exact() -> None:
    free, bound = (backend_by_name("torch").store(0, 1) for _ in range(2))
    for store in (free, bound):
        store.append(arriving("torch", 0, 80))
    sizes = []
    for step in range(40):
        free.append(arriving("torch", 80 + step, 1))
        bound.append(arriving("torch", 80 + step, 1), limit=100)
        sizes.append(free.capacity)
        assert free.view().shape[2] == bound.view().shape[2] == 81 + step
        assert bound.capacity == max(min(bound.capacity, 100), 81 + step)
    assert len(set(sizes)) <= 5
    assert max(sizes) < 120 * 1.2


def test_a_view_does_not_grow_while_it_has_a_free_slot() -> None:
    store = backend_by_name("torch").store(0, 1)
    for start, count in ((0, 40), (40, 1)):
        view = store.append(arriving("torch", start, count))
    assert store.capacity > view.shape[2] == 41
    keep = view.valid & (view.positions != 7)
    store.apply(Plan(keep=keep), kept_by(keep))
    assert store.append(arriving("torch", 41, 1)).shape[2] == 41


@pytest.mark.parametrize("merge", [False, True])
def test_a_plan_gives_memory_back(merge: bool) -> None:
    store = backend_by_name("torch").store(0, 1)
    view = store.append(arriving("torch", 0, 64, heads=HEADS, dim=8))
    before = store.nbytes()
    scalars = 64 * HEADS * (8 + 1 + 4)
    assert before == (2 * 64 * HEADS * 8 * 4, scalars + 64 * 8)  # ranks, as long as rows stand in order, for all heads
    keep = torch.arange(64).expand(view.shape) < 15
    plan = Plan(keep=keep)
    if merge:
        into = torch.where(keep, -1, 3)[..., None]
        plan = Plan(keep, into, torch.full(into.shape, 0.02), torch.full(view.shape, 0.02))
    store.apply(plan, kept_by(keep))
    assert store.nbytes() == (before[0] // 4, scalars // 4)  # 15 rows and the slot for the next
    assert store.view().shape[2] == store.slots == 15


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("batch", [1, 2])
def test_positions_and_validity_stay_the_callers(batch: int, heads: int) -> None:
    # All layers are given the same Rows.positions: a hole in one layer's table must not reach the next layer.
    rows = arriving("torch", 0, 10, batch=batch, heads=heads)
    store = backend_by_name("torch").store(0, 1)
    view = store.append(rows)
    keep = view.valid.clone()
    keep[..., 4] = False
    store.apply(Plan(keep=keep), kept_by(keep))
    assert rows.positions.tolist() == [list(range(10))] * batch
    assert rows.valid.all()
    assert store.view().valid.sum() == 9 * batch * heads


def test_an_empty_store_says_so_and_a_cleared_one_is_empty() -> None:
    store = backend_by_name("torch").store(4, 8)
    for _ in range(2):
        assert (store.capacity, store.slots, store.nbytes()) == (0, 0, (0, 0))
        store.select_batch(torch.tensor([0]))
        with pytest.raises(CacheError, match="layer 4"):
            store.view()
        store.append(arriving("torch", 0, 3))
        store.apply(Plan(keep=store.view().valid, registers={"tau": torch.ones(1, 2)}), np.full((1, 2), 3))
        store.clear()
    assert not store.append(arriving("torch", 0, 3)).registers


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("comes", [APPEND, ONE, JOIN])
def test_a_column_that_comes_late_is_zero_for_the_rows_before_and_one_left_out_for_those_after(
    backend: str, comes: str
) -> None:
    def later(start: int, name: str, number: int) -> None:
        rows = arriving(backend, start, 2 if comes == APPEND else 1)
        rows = replace(rows, columns={name: to(backend, np.full(np.shape(rows.positions), number))})
        if comes == JOIN:
            other = backend_by_name(backend).store(0, 1)
            store.join(other.append(rows), np.ones((1, 2), np.int64))
        else:
            store.append(rows)

    store = backend_by_name(backend).store(0, 1)
    store.append(arriving(backend, 0, 4))
    keep = np.asarray(store.view().positions) % 2 == 0  # the slots that are filled anew had another row before
    store.apply(Plan(keep=to(backend, keep)), np.full((1, 2), 2))
    later(4, "segment", 7)
    later(6, "other", 9)
    late = {position: (7, 0) if position < 6 else (0, 9) for position in (4, 5, 6, 7)}
    for head in range(2):
        table = table_of(store.view(), 0, head, np.asarray)
        assert table.positions == ([0, 2, 4, 5, 6, 7] if comes == APPEND else [0, 2, 4, 6])
        said = zip(table.columns["segment"].tolist(), table.columns["other"].tolist(), strict=True)
        assert list(said) == [late.get(position, (0, 0)) for position in table.positions]
        assert table.columns["count"].tolist() == [1] * len(table.positions)
