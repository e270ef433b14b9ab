"""Rows that leave under a recaller: they wait in an archive, whole, and come back when they are called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from custom_stages import ByHead, Loudness, Recall, every, recalling
from driving import Request, feed, make_request, requests, same_tables, table_of
from hypothesis import given
from hypothesis import strategies as st
from ledger import run

from kvpolicy import (
    Assignment,
    CacheView,
    Fold,
    KeepRatio,
    Mean,
    NearestPosition,
    Pipeline,
    Plan,
    PlanError,
    Policy,
    PolicyError,
    Recency,
    Scored,
    Selection,
    Session,
    Step,
    backend_by_name,
)
from kvpolicy.backends.torch import TorchBackend

BOTH = pytest.mark.parametrize("backend", ["numpy", "torch"])
BACKENDS = st.sampled_from(["numpy", "torch"])


@given(
    requests(max_batch=2, padded=True, max_prompt=14, max_steps=7),
    BACKENDS,
    st.integers(1, 6),
    st.integers(1, 4),
    st.booleans(),
    st.booleans(),
)
def test_no_token_is_ever_lost(
    request_: Request, backend: str, rows: int, often: int, ragged: bool, check: bool
) -> None:
    heads, layers = request_.keys.shape[2], len(request_.keys)
    extra = ((heads - 1, *(-1,) * (heads - 1)),) * layers
    stage = recalling(every(often), rows, **({"allocate": ByHead(extra)} if ragged else {}))
    session, counts = run(Policy(prefill=stage, decode=stage), request_, backend, check=check)
    report = session.report()
    assert report.evicted == counts[-1][1]
    assert report.merged == 0
    assert (report.archive_bytes > 0) == (counts[-1][1] > 0) or backend == "torch"


@BOTH
def test_what_comes_back_competes_for_its_place(backend: str) -> None:
    request = make_request(layers=2, batch=2, heads=3, prompt=20, steps=8, padding=(0, 6))
    stage = recalling(Recall(lambda archive, step: archive.valid), rows=4, score=Loudness())
    session, _ = run(Policy(prefill=stage, decode=stage), request, backend)
    loud = request.values[..., 0]
    for layer, b, h in np.ndindex(2, 2, 3):
        seen = np.arange(request.left[b], 28)
        best = sorted(seen[np.argsort(loud[layer, b, h, seen])[-4:]].tolist())
        assert table_of(session._layers[layer].store.view(), b, h, session.ops.host).positions == best
    report = session.report()
    # At every step all that was archived comes back, and all but four of them leave again.
    back = sum(2 * 3 * (20 - left + step - 4) for left in request.left for step in range(8))
    assert report.recalled == back
    assert sum(layer.recalled for layer in report.layers) == back
    assert report.evicted == sum(2 * 3 * (28 - left - 4) for left in request.left)
    assert "rows came back from the archive" in str(report)


@BOTH
def test_a_recalled_row_is_attended_to_from_the_next_token(backend: str) -> None:
    request = make_request(heads=1, prompt=8, steps=3)
    called = Recall(lambda archive, step: (archive.positions == 2) & archive.valid & bool(step.seen[0] == 9))
    # Row 2 is old: it only stays because the budget has grown.
    decode = Pipeline(schedule=KeepRatio(1.0), score=Recency(), recall=called)
    session = Session(Policy(prefill=recalling(called, 3, score=Recency()), decode=decode), backend_by_name(backend), 1)
    tables = [feed(session, request, start, n).tables[0][0][0].positions for start, n in ((0, 8), (8, 1), (9, 1))]
    assert tables == [[5, 6, 7], [2, 5, 6, 7, 8], [2, 5, 6, 7, 8, 9]]


@BOTH
def test_the_recaller_sees_the_archive_with_all_its_columns(backend: str) -> None:
    seen: list[Any] = []

    def look(archive: CacheView, step: Step) -> Any:
        host = step.ops.host
        seen.append((host(archive.columns["mass"].data).copy(), host(archive.positions).copy(), archive.layer, step))
        return archive.positions < 0  # nothing that is real

    request = make_request(layers=2, prompt=9, steps=2)
    stage = recalling(Recall(look), 4)
    session, _ = run(Policy(prefill=stage, decode=stage), request, backend)
    assert [layer for *_, layer, _ in seen] == [0, 1, 0, 1]  # not before anything has left
    for mass, positions, _, step in seen:
        assert (mass[positions >= 0] > 0).all()
        assert step.held[0].tolist() in ([[5, 5]], [[4, 4]])
    assert session.report().recalled == 0


@BOTH
@pytest.mark.parametrize("recalled", [True, False])
def test_what_leaves_under_a_pipeline_without_recall_is_gone(backend: str, recalled: bool) -> None:
    request = make_request(prompt=9, steps=3)
    everything = Recall(lambda archive, step: archive.valid)
    stages = {"prefill": recalling(None, 4), "decode": recalling(everything if recalled else None, 4)}
    session = Session(Policy(**stages), backend_by_name(backend), 1)
    for start, length in ((0, 9), (9, 1), (10, 1), (11, 1)):
        feed(session, request, start, length)
    (state,) = session._layers
    assert (state.archive is not None) == recalled
    if recalled:
        assert state.archived.tolist() == [[3, 3]]
        assert session.report().evicted == 2 * (9 + 3 - 4)


@dataclass(frozen=True)
class EvenOnes:
    """Rows at even positions fold into the nearest kept row; the others do not."""

    def assign(self, scored: Any, selection: Any, step: Any) -> Assignment:
        into = NearestPosition().assign(scored, selection, step).into
        xp, even = scored.view.xp, scored.view.positions % 2 == 0
        return Assignment(xp.where(even[..., None], into, xp.full_like(into, -1)))


@BOTH
@pytest.mark.parametrize("assign", [NearestPosition(), EvenOnes()], ids=["all", "even"])
def test_a_folded_row_is_not_archived(backend: str, assign: Any) -> None:
    request = make_request(prompt=12, steps=4)
    merge = Fold(assign, Mean())
    stage = recalling(Recall(lambda archive, step: archive.positions < 0), 3, score=Recency(), merge=merge)
    session = Session(Policy(prefill=stage, decode=stage), backend_by_name(backend), 1)
    for start, length in ((0, 12), (12, 1), (13, 1), (14, 1), (15, 1)):
        feed(session, request, start, length)
    (state,) = session._layers
    report = session.report()
    assert state.archive is not None
    if isinstance(assign, EvenOnes):
        for h in range(2):
            assert table_of(state.archive.view(), 0, h, session.ops.host).positions == [1, 3, 5, 7, 9, 11]
        assert (report.merged, report.evicted) == (2 * 7, 2 * 6)
        assert report.archive_bytes > 0
    else:
        assert state.archive.slots == report.archive_bytes == report.evicted == 0
        assert report.merged == 2 * 13


def test_the_archive_is_in_host_memory_and_counted() -> None:
    request = make_request(layers=2, heads=2, dim=4, prompt=30, steps=5)
    stage = recalling(Recall(lambda archive, step: archive.positions < 0), 10)
    session, counts = run(Policy(prefill=stage, decode=stage), request, "torch")
    total = 0
    for state in session._layers:
        assert state.archive is not None
        view = state.archive.view()
        assert view.keys.device == view.values.device == torch.device("cpu")
        rows = int(view.valid.sum())
        assert rows == 2 * 25
        size = state.archive.nbytes()[0]
        assert rows * 8 * 8 <= size <= rows * 8 * 8 * 9 / 8 + 2 * 4 * 8 * 8
        total += size
    report = session.report()
    assert report.archive_bytes == total
    assert report.kv_bytes == sum(state.store.nbytes()[0] for state in session._layers)
    scalars = sum(store.nbytes()[1] for state in session._layers for store in (state.store, state.archive) if store)
    assert report.column_bytes == scalars  # those of the archive stay on the device
    assert counts[-1] == (2 * 2 * 10, 2 * 2 * 25)
    plain = Session(Policy(prefill=recalling(None, 10)), backend_by_name("torch"), 2)
    feed(plain, request, 0, 30)
    assert plain.report().archive_bytes == 0
    assert "archive" not in str(plain.report())


@given(requests(max_batch=2, padded=True, max_prompt=12, max_steps=6), st.integers(1, 5), st.integers(1, 3))
def test_both_backends_agree(request_: Request, rows: int, often: int) -> None:
    stage = recalling(every(often), rows)
    policy = Policy(prefill=stage, decode=stage)
    sessions = [Session(policy, backend_by_name(backend), len(request_.keys)) for backend in ("torch", "numpy")]
    start = 0
    for length in (request_.prompt, *(1,) * (request_.tokens - request_.prompt)):
        same_tables(*(feed(session, request_, start, length) for session in sessions), tolerance=1e-9)
        start += length
    one, other = (session.report() for session in sessions)
    assert (one.recalled, one.evicted) == (other.recalled, other.evicted)


class PaidNow:
    """What the queries of this pass pay, asked when the table is scored and not when they attend; notes what it was."""

    def __init__(self) -> None:
        self.paid: list[list[dict[int, float]]] = []

    def score(self, view: CacheView, step: Step) -> Any:
        mass = step.ops.attention_mass(view, step)
        heads = zip(step.ops.host(view.positions)[0], step.ops.host(mass)[0], strict=True)
        self.paid.append([{p: m for p, m in zip(*head, strict=True) if p >= 0} for head in heads])
        return mass


@pytest.mark.parametrize("turn", [1, 3])
def test_recalled_rows_stand_anywhere_in_the_table(turn: int) -> None:
    request = make_request(prompt=14, steps=turn)
    one_query_at_a_time = TorchBackend(chunk_elements=1)  # each could be thought to see no further than itself
    paid = []
    for ops in (one_query_at_a_time, backend_by_name("numpy")):
        score = PaidNow()
        stage = recalling(Recall(lambda archive, step: archive.valid), 6, score=score)
        session = Session(Policy(prefill=stage, decode=stage), ops, 1)
        for start, length in ((0, 14), (14, turn)):
            feed(session, request, start, length)
        paid.append(score.paid[-1])
    for mine, due in zip(*paid, strict=True):
        assert mine == pytest.approx(due, rel=1e-9)
        assert sum(due.values()) == pytest.approx(turn)


@BOTH
@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda archive, step: None, "NoneType"),
        (lambda archive, step: archive.positions, "int64"),
        (lambda archive, step: archive.valid[..., :1], "shape"),
    ],
)
def test_a_wrong_answer_is_named_with_its_layer(backend: str, answer: Any, says: str) -> None:
    stage = recalling(Recall(answer), 4)
    session = Session(Policy(prefill=stage, decode=stage), backend_by_name(backend), 1)
    request = make_request(prompt=9, steps=1)
    feed(session, request, 0, 9)
    with pytest.raises(PlanError, match="rows recalled by Recall at layer 0") as caught:
        feed(session, request, 9, 1)
    assert says in str(caught.value)


@pytest.mark.parametrize("value", [Recency(), Recall, 3])
def test_what_is_no_recaller_is_refused(value: Any) -> None:
    with pytest.raises(PolicyError, match="recall="):
        recalling(value)


@BOTH
def test_a_plan_that_is_wrong_is_named_before_anything_is_archived(backend: str) -> None:
    class Forgets:
        def merge(self, scored: Scored, selection: Selection, step: Step) -> Plan:
            return Plan(selection.keep & (scored.view.positions != 9))

    stage = recalling(every(3), score=Recency(), merge=Forgets())
    request = make_request(prompt=10, steps=0)
    with pytest.raises(PlanError, match="plan of Forgets at layer 0 does not keep the rows that were selected"):
        feed(Session(Policy(prefill=stage), backend_by_name(backend), 1), request, 0, 10)
