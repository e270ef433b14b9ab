"""The slow model itself, on requests that are small enough to follow by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from custom_stages import ByHead, Loudness, Recall

from kvpolicy import (
    AttentionMass,
    CacheError,
    CacheView,
    FixedRows,
    Fold,
    KeepRatio,
    LikePrompt,
    Mean,
    NearestPosition,
    Phase,
    Pipeline,
    Policy,
    Recency,
    Scored,
    Step,
    TopK,
    WindowMass,
    backend_by_name,
    full,
    streaming_llm,
)
from kvpolicy.testing._rotary import rotary
from kvpolicy.testing.model import SlowCache

BOTH = pytest.mark.parametrize("backend", ["numpy", "torch"])


def slow(policy: Policy, backend: str = "numpy", *, layers: int = 1, **settings: Any) -> SlowCache:
    return SlowCache(policy, layers=layers, ops=backend_by_name(backend), **settings)


def feed(cache: SlowCache, values: Sequence[Any], *, keys: Any = None, queries: Any = None, valid: Any = None) -> Any:
    """Tokens of one head and one batch row whose value (and key, unless given) is a number; queries of zero."""
    data = np.asarray(values, np.float64)
    shape = (len(cache.layers) or cache._count, 1, 1, len(data), 1)
    given = [data if part is None else np.asarray(part, np.float64) for part in (keys, data)]
    arrays = [np.broadcast_to(part.reshape(1, 1, 1, -1, 1), shape) for part in given]
    asked = np.zeros(shape) if queries is None else np.broadcast_to(np.reshape(queries, (1, 1, 1, -1, 1)), shape)
    real = np.ones((1, len(data)), bool) if valid is None else np.array([valid])
    return cache.forward(*arrays, asked, real, scale=1.0)[..., 0]


def rows(cache: SlowCache, layer: int = 0, b: int = 0, h: int = 0) -> list[int]:
    return [row.position for row in cache.layers[layer].table.heads[b][h]]


def column(cache: SlowCache, name: str) -> list[float]:
    return [row.columns[name] for row in cache.layers[0].table.heads[0][0]]


def values_of(cache: SlowCache) -> list[float]:
    return [float(row.value[0]) for row in cache.layers[0].table.heads[0][0]]


@BOTH
def test_attention_by_hand(backend: str) -> None:
    cache = slow(full(), backend)
    out = feed(cache, [3, 6, 0], keys=[0, np.log(2), 0], queries=[1, 1, 0])
    # Softmax of (0), (0, ln 2), (0, 0, 0): shares 1; 1/3, 2/3; thirds.
    np.testing.assert_allclose(out.ravel(), [3, 3 / 3 + 6 * 2 / 3, 3])
    np.testing.assert_allclose(feed(cache, [7]).ravel(), [(3 + 6 + 0 + 7) / 4])
    assert rows(cache) == [0, 1, 2, 3]


@BOTH
def test_sinks_and_a_window(backend: str) -> None:
    cache = slow(streaming_llm(rows=3, sinks=1), backend)
    feed(cache, range(5))
    assert rows(cache) == [0, 3, 4]
    feed(cache, [5])
    assert rows(cache) == [0, 4, 5]
    (layer,) = cache.layers
    assert (layer.seen.tolist(), layer.prompt.tolist()) == ([6], [5])
    assert (layer.prompt_kept.tolist(), layer.prompt_quota.tolist()) == ([[3]], [[3]])
    assert (layer.left.tolist(), layer.merged.tolist(), layer.exceeded.tolist()) == ([3], [0], [0])


@BOTH
def test_protected_rows_above_the_quota_stay(backend: str) -> None:
    stage = Pipeline(schedule=FixedRows(1), score=Recency(), select=TopK(first=2, last=1))
    cache = slow(Policy(prefill=stage), backend)
    feed(cache, range(6))
    assert rows(cache) == [0, 1, 5]
    assert cache.layers[0].exceeded.tolist() == [2]


@BOTH
def test_mass_and_counts_fold(backend: str) -> None:
    stage = Pipeline(
        schedule=FixedRows(2),
        score=AttentionMass(),
        select=TopK(first=1, last=1),
        merge=Fold(NearestPosition(), Mean()),
    )
    cache = slow(Policy(prefill=stage, count_bias=True), backend)
    feed(cache, [1, 2, 6, 8])
    # Rows 1 and 2 go to 0 and 3: means of two values. Query i pays 1 / (i + 1) to each of the rows 0 .. i.
    assert rows(cache) == [0, 3]
    assert values_of(cache) == [1.5, 7]
    assert column(cache, "count") == [2, 2]
    np.testing.assert_allclose(
        column(cache, "mass"), [(1 + 1 / 2 + 1 / 3 + 1 / 4) + (1 / 2 + 1 / 3 + 1 / 4), 1 / 3 + 1 / 2]
    )
    assert cache.layers[0].merged.tolist() == [2]
    # A row that stands for two tokens weighs as two: (2 * 1.5 + 2 * 7 + 8) / 5.
    np.testing.assert_allclose(feed(cache, [8]).ravel(), [(2 * 1.5 + 2 * 7 + 8) / 5])


@BOTH
@pytest.mark.parametrize(("told", "due"), [(6, [4, 5]), (0, [1, 2, 3, 4, 5])])
def test_a_prompt_in_chunks_is_planned_once_where_its_length_is_known(backend: str, told: int, due: list[int]) -> None:
    cache = slow(Policy(prefill=Pipeline(schedule=FixedRows(2), score=Recency())), backend, prompt_length=told)
    feed(cache, range(3))
    assert rows(cache) == ([0, 1, 2] if told else [1, 2])
    for position in (3, 4, 5):
        feed(cache, [position])  # one token: a chunk of the prompt, or one that is decoded
    assert rows(cache) == due
    assert cache.layers[0].prompt.tolist() == [6 if told else 3]


@BOTH
def test_a_batch_row_within_its_budget_has_no_plan(backend: str) -> None:
    stage = Pipeline(schedule=KeepRatio(0.5), score=Recency(), select=TopK(first=2))
    cache = slow(Policy(prefill=stage, decode=stage), backend)
    data = np.zeros((1, 2, 1, 6, 1))
    valid = np.arange(6) >= np.array([[0], [5]])
    cache.forward(data, data, data, valid, scale=1.0)
    assert [rows(cache, b=b) for b in (0, 1)] == [[0, 1, 5], [5]]
    # The second row has two tokens now, may keep one, and protects both; then five, and may keep two.
    data = np.zeros((1, 2, 1, 1, 1))
    cache.forward(data, data, data, np.ones((2, 1), bool), scale=1.0)
    assert [rows(cache, b=b) for b in (0, 1)] == [[0, 1, 5, 6], [5, 6]]
    assert cache.layers[0].exceeded.tolist() == [0, 1]


@dataclass(frozen=True)
class Given:
    """Quotas of all layers, once all are scored."""

    quotas: tuple[int, ...]
    whole_model: bool = True

    def allocate(self, budget: Any, layers: Sequence[Scored], step: Step) -> list[Any]:
        assert [held.tolist() for held in step.held] == [[[4]], [[4]]], "nothing has been planned yet"
        return [np.full((1, 1), rows) for rows in self.quotas]


@BOTH
def test_layers_wait_for_each_other(backend: str) -> None:
    stage = Pipeline(schedule=FixedRows(2), score=Recency(), allocate=Given((1, 3)))
    cache = slow(
        Policy(prefill=stage, decode=Pipeline(schedule=FixedRows(2), score=Recency(), allocate=LikePrompt())),
        backend,
        layers=2,
    )
    feed(cache, range(4))
    assert [rows(cache, layer) for layer in (0, 1)] == [[3], [1, 2, 3]]
    feed(cache, [4])
    assert [rows(cache, layer) for layer in (0, 1)] == [[4], [2, 3, 4]]


@BOTH
def test_heads_have_rows_of_their_own(backend: str) -> None:
    stage = Pipeline(schedule=FixedRows(2), score=Loudness(), allocate=ByHead(((1, -1),)))
    cache = slow(Policy(prefill=stage), backend)
    values = np.array([[5.0, 1, 4, 3], [5, 1, 4, 6]]).reshape(1, 1, 2, 4, 1)
    cache.forward(values, values, np.zeros((1, 1, 2, 4, 1)), np.ones((1, 4), bool), scale=1.0)
    assert [rows(cache, h=h) for h in (0, 1)] == [[0, 2, 3], [3]]
    # Two query heads share a key/value head.
    keys = np.full((1, 1, 2, 1, 1), 7.0)
    out = cache.forward(keys, keys, np.zeros((1, 1, 4, 1, 1)), np.ones((1, 1), bool), scale=1.0)
    np.testing.assert_allclose(out.ravel(), [(5 + 4 + 3 + 7) / 4] * 2 + [(6 + 7) / 2] * 2)


@BOTH
def test_rows_leave_for_the_archive_and_come_back(backend: str) -> None:
    first = Recall(lambda archive, step: (archive.positions == 0) & archive.valid)
    prefill = Pipeline(schedule=FixedRows(2), score=Recency(), recall=first)
    decode = Pipeline(schedule=FixedRows(2), score=Loudness(), recall=first)
    cache = slow(Policy(prefill=prefill, decode=decode), backend)
    feed(cache, [9, 1, 2, 3])
    (layer,) = cache.layers
    assert rows(cache) == [2, 3]
    assert [row.position for row in layer.archive.heads[0][0]] == [0, 1]
    feed(cache, [4])
    assert rows(cache) == [0, 4], "the loudest comes back, and competes"
    assert [row.position for row in layer.archive.heads[0][0]] == [1, 2, 3]
    assert (layer.recalled, layer.left.tolist()) == (1, [3])


@BOTH
def test_positions_in_slots(backend: str) -> None:
    """After eviction the rows stand at 0, 1 and the new query at 2, whatever their arrival."""
    ops = backend_by_name(backend)
    turn = rotary(backend_by_name("numpy"))
    rng = np.random.default_rng(0)
    keys, queries = rng.standard_normal((2, 1, 1, 1, 6, 2))
    values = rng.standard_normal((1, 1, 1, 6, 1))
    cache = slow(streaming_llm(rows=2, sinks=1, positions="slots"), backend, rotate=rotary(ops))
    valid = np.ones((1, 5), bool)
    cache.forward(*(data[:, :, :, :5] for data in (keys, values, queries)), valid, scale=1.0)
    assert rows(cache) == [0, 4]
    out = cache.forward(*(data[:, :, :, 5:] for data in (keys, values, queries)), valid[:, :1], scale=1.0)
    stand = turn(keys[0][:, :, [0, 4, 5]], np.array([[[0, 1 - 4, 2 - 5]]]))[0, 0]
    query = turn(queries[0][:, :, 5:], np.array([[[2 - 5]]]))[0, 0, 0]
    shares = np.exp(stand @ query)
    np.testing.assert_allclose(out.ravel(), [shares @ values[0, 0, 0, [0, 4, 5], 0] / shares.sum()])
    np.testing.assert_array_equal(cache.layers[0].table.heads[0][0][1].key, keys[0, 0, 0, 5])


@BOTH
def test_queries_are_remembered_as_long_as_somebody_asks(backend: str) -> None:
    prefill = Pipeline(schedule=FixedRows(9), score=WindowMass(window=3))
    decode = Pipeline(schedule=FixedRows(9), score=WindowMass(window=2))
    cache = slow(Policy(prefill=prefill, decode=decode), backend, prompt_length=6)

    def remembered() -> list[int]:
        return [position for position, _ in cache.layers[0].asked[0]]

    feed(cache, range(4))
    assert remembered() == [1, 2, 3]
    feed(cache, range(2))
    assert remembered() == [4, 5]
    feed(cache, [0])
    assert remembered() == [5, 6]


class Noting:
    """A schedule that notes what it is told."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def budget(self, step: Step) -> None:
        self.steps.append(step)


@BOTH
def test_what_stages_are_told(backend: str) -> None:
    note = Noting()
    stage = Pipeline(schedule=note, score=Recency())
    cache = slow(Policy(prefill=stage, decode=stage), backend)
    feed(cache, range(3), valid=[False, True, True])
    feed(cache, [3])
    prompt, token = note.steps
    assert [step.phase for step in note.steps] == [Phase.PREFILL, Phase.DECODE]
    assert (prompt.seen.tolist(), prompt.prompt.tolist(), prompt.prompt_kept.tolist()) == ([2], [2], [[0]])
    assert (token.seen.tolist(), token.prompt.tolist(), token.prompt_kept.tolist()) == ([3], [2], [[2]])
    assert ([held.tolist() for held in token.held], token.length, token.padding.tolist()) == ([[[3]]], 4, [1])
    assert token.row_bytes == 2 * 8


def test_padding_in_a_pass_has_slots_and_no_numbers() -> None:
    seen: list[CacheView] = []

    @dataclass(frozen=True)
    class Looking:
        def score(self, view: CacheView, step: Step) -> Any:
            seen.append(view)
            return view.values[..., 0]

    cache = slow(Policy(prefill=Pipeline(schedule=FixedRows(1), score=Looking())))
    feed(cache, [99, 5, 7], valid=[False, True, True])
    assert seen[0].positions.tolist() == [[[0, 1, 2]]]
    assert seen[0].valid.tolist() == [[[False, True, True]]]
    assert seen[0].values.ravel().tolist() == [0, 5, 7]
    assert rows(cache) == [2]


@BOTH
def test_beams_crop_and_reset(backend: str) -> None:
    stage = Pipeline(schedule=FixedRows(2), score=Recency())
    cache = slow(Policy(prefill=stage), backend)
    data = np.arange(8.0).reshape(1, 2, 1, 4, 1)
    cache.forward(data, data, data * 0, np.ones((2, 4), bool), scale=1.0)
    cache.reorder([1, 1, 0])
    one = np.full((1, 3, 1, 1, 1), 9.0)
    for _ in range(2):
        cache.forward(one, one, one * 0, np.ones((3, 1), bool), scale=1.0)
    heads = cache.layers[0].table.heads
    assert [[row.value[0] for row in row_[0]] for row_ in heads] == [[6, 7, 9, 9], [6, 7, 9, 9], [2, 3, 9, 9]]
    cache.crop(5)
    assert (cache.length, [rows(cache, b=b) for b in range(3)]) == (5, [[2, 3, 4]] * 3)
    assert cache.layers[0].seen.tolist() == [5, 5, 5]
    for length in (3, 6, -1):
        with pytest.raises(CacheError):
            cache.crop(length)
    cache.crop(0)
    assert (cache.length, cache.layers) == (0, [])


@pytest.mark.parametrize(
    ("dtype", "due"), [("float64", 2 / 3), ("float32", float(np.float32(2 / 3))), ("float16", float(np.float16(2 / 3)))]
)
def test_what_arithmetic_makes_is_rounded_to_the_dtype(dtype: str, due: float) -> None:
    merge = Fold(NearestPosition(), Mean())
    stage = Pipeline(schedule=FixedRows(1), score=Recency(), merge=merge)
    cache = slow(Policy(prefill=stage), dtype=dtype)
    feed(cache, [0, 1, 1])
    assert values_of(cache) == [due]
