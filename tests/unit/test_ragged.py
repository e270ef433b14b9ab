"""Heads that keep different numbers of rows: the memory is that of the rows, and nothing else changes."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from custom_stages import ByHead, Loudness
from driving import Request, drive, feed, make_request, requests, same_tables, table_of
from hypothesis import given
from hypothesis import strategies as st
from storing import arriving, kept_by

from kvpolicy import (
    AttentionMass,
    Column,
    FixedRows,
    Fold,
    KeepRatio,
    Mean,
    MemoryBudget,
    NearestPosition,
    Pipeline,
    Plan,
    Policy,
    Recency,
    Rows,
    Session,
    TopK,
    backend_by_name,
)
from kvpolicy.backends._torch_vectors import Ragged, Window

DIM = 8
ROW = 2 * DIM * 4  # bytes of a row of float32 keys and values


def ragged(kept: Any, *, tokens: int = 64, dtype: Any = np.float32) -> Any:
    """A torch store of which each head has kept its first so many rows."""
    kept = np.atleast_2d(kept)
    store = backend_by_name("torch").store(0, 1)
    store.append(arriving("torch", 0, tokens, batch=len(kept), heads=kept.shape[1], dim=DIM, dtype=dtype))
    store.apply(Plan(keep=torch.arange(tokens) < torch.tensor(kept)[..., None]), kept)
    return store


def policy_of(*extra: tuple[int, ...], rows: int = 8, score: Any = None, **stages: Any) -> Policy:
    """Both pipelines, with ``rows + extra[layer][head]`` rows for a head."""
    stages = {"score": score or Loudness(), "allocate": ByHead(extra), **stages}
    return Policy(**{phase: Pipeline(schedule=FixedRows(rows), **stages) for phase in ("prefill", "decode")})


@pytest.mark.parametrize(
    "kept", [[60, 10, 10, 10], [0, 0, 0, 40], [[5, 9], [30, 2]], [33, 20, 12, 40], [1, 0], [[0, 0], [0, 60]], [7, 5]]
)
def test_bytes_are_those_of_the_rows(kept: Any) -> None:
    store = ragged(kept)
    slots = np.sum(kept) + np.size(kept)  # and one a head for the next row
    assert store.nbytes()[0] == slots * ROW
    assert store.capacity == slots / np.size(kept)
    assert store.slots == np.max(kept)


@pytest.mark.parametrize("kept", [[40, 40, 40], [40, 39, 38], [40, 40, 29], [[40], [36]]])
def test_heads_that_nearly_agree_are_one_block_for_an_eighth_at_most(kept: Any) -> None:
    store, slots = ragged(kept), np.sum(kept) + np.size(kept)
    assert store.nbytes()[0] == np.size(kept) * 41 * ROW
    assert store.nbytes()[0] * 7 <= slots * ROW * 8
    view = store.view()
    assert view.keys.untyped_storage().nbytes() == store.nbytes()[0] // 2, "the view of a block is no copy"


# A view of ragged heads copies nothing before somebody looks at keys or values ------------------------------------


@pytest.fixture
def gathered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The width of each window that was gathered."""
    widths, gather = [], Ragged.gather
    monkeypatch.setattr(Ragged, "gather", lambda ragged, used: widths.append(used) or gather(ragged, used))
    return widths


def test_who_does_not_look_at_vectors_pays_for_none(gathered: list[int]) -> None:
    store = ragged([30, 4, 11])
    view = store.append(arriving("torch", 64, 1, heads=3, dim=DIM))
    view = replace(view.with_columns({"mass": Column(torch.ones(view.shape))}), layer=2)
    assert view.keys.shape == (*view.shape, DIM)
    assert (view.values.dtype, view.values.device, view.values.ndim) == (torch.float32, torch.device("cpu"), 4)
    evict_one_a_head(store, 0)
    assert isinstance(view.keys, Window)
    assert not gathered


def test_who_looks_pays_once(gathered: list[int]) -> None:
    view = ragged([30, 4, 11]).view()
    other = replace(view, layer=2)
    rows = [[min(slot, room) for slot in range(30)] for room in (30, 4, 11)]
    due = torch.tensor(rows)[None, ..., None] + 1000 * torch.arange(3)[:, None, None] + torch.zeros(DIM)
    for looked in (view.keys + 0, other.keys[:], torch.cat([view.keys]), torch.tensor(np.asarray(view.keys))):
        assert type(looked) is torch.Tensor
        assert torch.equal(torch.where(view.valid[..., None], looked, -1), torch.where(view.valid[..., None], due, -1))
    assert view.keys.data_ptr() == other.keys.data_ptr() == copy.copy(view).keys.data_ptr()
    assert gathered == [30]


def test_what_goes_past_torch_function_finds_nothing_that_looks_like_rows() -> None:
    view = ragged([30, 4, 11]).view()
    with torch._C.DisableTorchFunctionSubclass():
        assert (view.keys + 0).isnan().all()


@pytest.mark.parametrize("looks", [False, True])
def test_a_compiled_program_may_look_or_not(looks: bool) -> None:
    store = ragged([30, 4, 11])

    def program(vectors: Ragged) -> torch.Tensor:
        keys = vectors.window(7)
        return keys.sum(2) if looks else keys.ragged.data.sum() * keys.shape[2]

    vectors, nodes = store._table.keys, []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        nodes.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    torch.compiler.reset()
    assert torch.equal(torch.compile(program, fullgraph=True, backend=backend)(vectors), program(vectors))
    assert looks == any("index_select" in node for node in nodes)


def evict_one_a_head(store: Any, step: int) -> None:
    keep = store.view().valid.clone()
    for head in range(keep.shape[1]):
        held = keep[0, head].nonzero()[:, 0]
        keep[0, head, held[(step + 3 * head) % len(held)]] = False
    store.apply(Plan(keep=keep), kept_by(keep))


@pytest.mark.parametrize("limit", [None, 31])
def test_single_rows_are_written_in_place(limit: int | None) -> None:
    store = ragged([30, 4, 11])
    held = [list(range(count)) for count in (30, 4, 11)]
    addresses = [vectors.data.data_ptr() for vectors in (store._table.keys, store._table.values)]
    for step in range(40):
        view = store.append(arriving("torch", 64 + step, 1, heads=3, dim=DIM), limit=limit)
        for head, rows in enumerate(held):
            rows.append(64 + step)
            table = table_of(view, 0, head, np.asarray)
            assert table.positions == rows
            assert table.keys[:, 0].tolist() == [p + 1000 * head for p in rows]
            assert table.values[:, 0].tolist() == [-(p + 1000 * head) for p in rows]
        evict_one_a_head(store, step)
        held = [table_of(store.view(), 0, head, np.asarray).positions for head in range(3)]
        assert [len(rows) for rows in held] == [30, 4, 11]
        assert [vectors.data.data_ptr() for vectors in (store._table.keys, store._table.values)] == addresses
        assert store.nbytes()[0] == (30 + 4 + 11 + 3) * ROW


def test_growth_is_each_heads_own_and_rare() -> None:
    store, sizes = ragged([60, 6, 0]), []
    for step in range(40):
        store.append(arriving("torch", 64 + step, 1, heads=3, dim=DIM))
        sizes.append(store.capacity)
    rows = 60 + 6 + 3 * 40
    assert len(set(sizes)) <= 12
    assert sizes[-1] * 3 <= (rows + 3 * 3) * 9 / 8
    for head, count in enumerate((60, 6, 0)):
        due = [*range(count), *range(64, 104)]
        assert table_of(store.view(), 0, head, np.asarray).positions == due


def test_growth_of_one_head_loses_no_row_of_another() -> None:
    store = ragged([12, 3])
    view = store.view()
    keep = view.valid & ((view.positions > 2) | (torch.arange(2) == 1)[None, :, None])
    store.apply(Plan(keep=keep), np.array([[9, 3]]))  # leaves holes at the start of the first head
    for start in (64, 65):  # the second head has room for one of these
        store.append(arriving("torch", start, 1, dim=DIM))
    tables = [table_of(store.view(), 0, head, np.asarray).positions for head in range(2)]
    assert tables == [[*range(3, 12), 64, 65], [0, 1, 2, 64, 65]]


def test_storage_that_is_no_longer_needed_is_given_back() -> None:
    store = ragged([60, 20, 20])
    keep = store.view().valid & (store.view().positions < 10)
    store.apply(Plan(keep=keep), kept_by(keep))
    assert store.nbytes()[0] == 3 * 11 * ROW  # and the heads agree again
    store = ragged([60, 20, 20])
    keep = store.view().valid & (store.view().positions < 55)
    store.apply(Plan(keep=keep), kept_by(keep))
    assert store.nbytes()[0] == (60 + 20 + 20 + 3) * ROW  # not for a few rows
    assert store.nbytes()[0] * 4 <= (55 + 20 + 20 + 3) * ROW * 5


@given(
    requests(max_batch=2, padded=True, max_prompt=24, max_steps=6),
    st.integers(1, 9),
    st.integers(0, 9),
    st.sampled_from(["drop", "fold"]),
    st.booleans(),
)
def test_both_backends_agree(request_: Request, rows: int, more: int, merge: str, check: bool) -> None:
    layers, _, heads = request_.keys.shape[:3]
    # One head has what the others lack, a different one in each layer.
    lacks = min(more, rows)
    extra = tuple(
        tuple((heads - 1) * lacks if h == layer % heads else -lacks for h in range(heads)) for layer in range(layers)
    )
    stages = {"merge": Fold(NearestPosition(), Mean())} if merge == "fold" else {}
    policy = policy_of(*extra, rows=rows, score=AttentionMass(), **stages)
    mine, due = (drive(policy, request_, backend=backend, check=check) for backend in ("torch", "numpy"))
    for a, b in zip(mine.passes, due.passes, strict=True):
        same_tables(a, b, tolerance=1e-9)
        np.testing.assert_allclose(a.outputs, b.outputs, rtol=1e-9, atol=1e-9)
    one, other = mine.session.report(), due.session.report()
    assert (one.evicted, one.merged, one.exceeded) == (other.evicted, other.merged, other.exceeded)


def test_quotas_of_a_head_are_kept_and_reported() -> None:
    request = make_request(layers=2, heads=4, prompt=40, steps=5)
    trace = drive(policy_of((12, -4, -8, 0), (0, 0, 4, -4)), request)
    for done in trace.passes:
        assert [[len(table.positions) for table in layer[0]] for layer in done.tables] == [[20, 4, 0, 8], [8, 8, 12, 4]]
    report = trace.session.report()
    for layer, most in zip(report.layers, (20, 12), strict=True):
        assert (layer.rows, layer.most, layer.capacity, layer.exceeded) == (8, most, 9, 0)
        assert layer.kv_bytes == 4 * 9 * (4 + 4) * 8
    assert not trace.session.all_valid(0)


@pytest.mark.parametrize("score", [Recency(), AttentionMass()], ids=repr)
def test_a_second_turn_of_several_tokens(score: Any) -> None:
    request = make_request(layers=2, batch=2, heads=3, prompt=30, steps=20, padding=(0, 4))
    policy = policy_of((10, -5, -5), (-3, 0, 3), score=score, select=TopK(last=1))
    sessions = [Session(policy, backend_by_name(backend), 2) for backend in ("torch", "numpy")]
    start = 0
    for length in (30, 1, 1, 7, 1, 4, 6):
        done = [feed(session, request, start, length) for session in sessions]
        same_tables(*done, tolerance=1e-9)
        np.testing.assert_allclose(done[0].outputs, done[1].outputs, rtol=1e-9, atol=1e-9)
        assert [len(table.positions) for table in done[0].tables[0][1]] == [18, 3, 3]
        assert sessions[0].report().layers[0].kv_bytes == 2 * (18 + 3 + 3 + 3) * (4 + 4) * 8
        start += length


@pytest.mark.parametrize("extra", [(0, 0, 0), (1, 0, -1), (9, -4, -5)])
def test_a_memory_budget_holds_to_within_what_nearly_equal_heads_waste(extra: tuple[int, ...]) -> None:
    memory = 21 * 3 * (4 + 4) * 8
    stage = Pipeline(schedule=MemoryBudget(memory), score=Recency(), allocate=ByHead((extra,)))
    session = Session(Policy(prefill=stage, decode=stage), backend_by_name("torch"), 1)
    request, start = make_request(heads=3, prompt=40, steps=12), 0
    for length in (40, *(1,) * 8, 3, 1):
        feed(session, request, start, length)
        start += length
        assert session.report().kv_bytes <= memory * (8 / 7 if extra[0] == 1 else 1)


def test_beams_of_ragged_heads() -> None:
    kept = np.array([[40, 3], [5, 30]])
    store = ragged(kept)
    store.select_batch(torch.tensor([1, 1, 0]))
    for b, source in enumerate((1, 1, 0)):
        for head in range(2):
            table = table_of(store.view(), b, head, np.asarray)
            assert table.positions == list(range(kept[source, head]))
            assert table.keys[:, 0].tolist() == [p + 1000 * head for p in table.positions]
    assert store.nbytes()[0] == (kept[[1, 1, 0]] + 1).sum() * ROW


def test_a_copy_stands_by_itself() -> None:
    request = make_request(heads=3, prompt=30, steps=6)
    session = drive(policy_of((10, -5, -5)), request).session
    twin = copy.deepcopy(session)
    other = make_request(seed=9, heads=3, prompt=30, steps=6)
    before = feed(copy.deepcopy(session), request, 30, 1)
    feed(twin, other, 30, 3)
    same_tables(feed(session, request, 30, 1), before)


@pytest.mark.parametrize("inside", [(True, False, True), (False, True, False)])
def test_storage_survives_a_change_of_inference_mode(inside: tuple[bool, ...]) -> None:
    request = make_request(heads=3, prompt=30, steps=9)
    policy = policy_of((10, -5, -5), score=AttentionMass())
    session, plain = (Session(policy, backend_by_name("torch"), 1) for _ in range(2))
    for start, length, mode in ((0, 30, inside[0]), (30, 1, inside[1]), (31, 1, inside[2]), (32, 5, inside[1])):
        with torch.inference_mode(mode):
            done = feed(session, request, start, length)
        same_tables(done, feed(plain, request, start, length))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_rows_keep_their_bits(dtype: str) -> None:
    kept, arriving_rows = np.array([[50, 3, 20]]), torch.randn(1, 3, 64, DIM).to(getattr(torch, dtype))
    store = backend_by_name("torch").store(0, 1)
    positions = torch.arange(64)[None]
    store.append(Rows(arriving_rows, -arriving_rows, positions, positions >= 0))
    store.apply(Plan(keep=torch.arange(64) < torch.tensor(kept)[..., None]), kept)
    view = store.view()
    assert view.keys.dtype == view.values.dtype == getattr(torch, dtype)
    for head, count in enumerate(kept[0]):
        assert torch.equal(view.keys[0, head, :count], arriving_rows[0, head, :count])
        assert torch.equal(view.values[0, head, :count], -arriving_rows[0, head, :count])
    assert store.nbytes()[0] == (kept + 1).sum() * 2 * DIM * arriving_rows.element_size()


def test_a_ratio_grows_each_head() -> None:
    request = make_request(heads=2, prompt=20, steps=20)
    stage = Pipeline(schedule=KeepRatio(0.5), score=Recency(), allocate=ByHead(((6, -6),)))
    trace = drive(Policy(prefill=stage, decode=stage), request)
    for number, done in enumerate(trace.passes):
        budget = round((20 + number) / 2)
        assert [len(table.positions) for table in done.tables[0][0]] == [budget + 6, budget - 6]
        newest = 19 + number
        assert done.tables[0][0][0].positions == list(range(newest - budget - 5, newest + 1))
