"""Each allocator against its formula, and the exact total for all."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvpolicy import (
    IMAGE,
    AdaptiveHeads,
    BySparsity,
    ByStrengthAndSkew,
    ByVariance,
    CacheView,
    Column,
    FixedRows,
    HeadTable,
    LikePrompt,
    MissingColumnError,
    Nested,
    Phase,
    Pipeline,
    PolicyError,
    Pyramid,
    Recency,
    Scored,
    Step,
    Uniform,
    backend_by_name,
)

ANY = [
    Uniform(),
    Pyramid(beta=3.0),
    Pyramid(least=2),
    ByVariance(),
    ByStrengthAndSkew(),
    AdaptiveHeads(),
    AdaptiveHeads(floor=0.0),
    LikePrompt(),
    Nested(layers=Pyramid(), heads=AdaptiveHeads()),
    Nested(layers=ByVariance(), heads=AdaptiveHeads(floor=0.5)),
]


def layers_of(scores: np.ndarray, held: np.ndarray | None = None, images: int = 0) -> tuple[list[Scored], Step]:
    """Scores [L, B, H, S]; ``held`` [L, B, H] of the rows are valid, the first ``images`` are image rows."""
    num, batch, heads, rows = scores.shape
    held = np.full((num, batch, heads), rows) if held is None else held
    made = []
    for layer in range(num):
        valid = np.arange(rows) < held[layer][..., None]
        view = CacheView(
            keys=np.zeros((batch, heads, rows, 1)),
            values=np.zeros((batch, heads, rows, 1)),
            positions=np.where(valid, np.arange(rows), -1),
            valid=valid,
            columns={"segment": Column(np.broadcast_to(np.where(np.arange(rows) < images, IMAGE, 0), valid.shape))},
            layer=layer,
            num_layers=num,
        )
        made.append(Scored(view, np.where(valid, scores[layer], np.nan)))
    seen = np.full(batch, rows)
    step = Step(
        phase=Phase.PREFILL,
        seen=seen,
        prompt=seen,
        prompt_kept=np.zeros((batch, heads), np.int64),
        queries=np.zeros((batch, heads, 1, 1)),
        query_positions=np.full((batch, 1), rows - 1),
        query_valid=np.ones((batch, 1), bool),
        scale=1.0,
        ops=backend_by_name("numpy"),
        held=tuple(held),
        prompt_quota=tuple(np.zeros((num, batch, heads), np.int64)),
    )
    return made, step


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[Scored], Step]:
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 2), st.integers(1, 3), st.integers(1, 12)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scores = rng.exponential(size=shape)
    if draw(st.booleans()):
        scores[:] = 1.0
    if draw(st.booleans()):
        scores[..., -1] = np.inf
    return layers_of(scores, images=draw(st.integers(0, shape[-1])))


def quotas(allocator, budget, layers, step) -> np.ndarray:
    """[L, B, H]."""
    if allocator.whole_model:
        return np.stack(allocator.allocate(budget, layers, step))
    return np.stack([allocator.allocate(budget, [layer], step)[0] for layer in layers])


@pytest.mark.parametrize("allocator", ANY, ids=repr)
@given(table=tables(), data=st.data())
def test_totals_are_exact_and_no_head_gets_more_than_it_holds(allocator, table, data) -> None:
    layers, step = table
    budget = np.array([data.draw(st.integers(1, int(seen))) for seen in step.seen])
    rows = quotas(allocator, budget, layers, step)
    assert np.array_equal(rows.sum(axis=(0, 2)), budget * rows.shape[0] * rows.shape[2])
    assert np.all((rows >= 0) & (rows <= np.stack(step.held)))


@pytest.mark.parametrize("allocator", ANY, ids=repr)
def test_a_budget_of_everything_is_everything(allocator) -> None:
    layers, step = layers_of(np.random.default_rng(0).exponential(size=(3, 2, 2, 7)))
    assert np.all(quotas(allocator, step.seen, layers, step) == 7)


class TestPyramid:
    @given(st.integers(2, 12), st.integers(1, 100), st.floats(1, 50))
    def test_it_is_a_line_of_the_papers_slope(self, num, budget, beta) -> None:
        _, step = layers_of(np.zeros((1, 1, 1, 1)))
        step = replace(step, seen=np.array([2 * budget]))
        rows = [int(Pyramid(beta=beta).ahead(np.array([budget]), n, num, 1, step)[0, 0]) for n in range(num)]
        last = budget / beta
        line = [2 * budget - last + n * (last - (2 * budget - last)) / (num - 1) for n in range(num)]
        assert sum(rows) == budget * num
        assert all(abs(got - wanted) < 1 for got, wanted in zip(rows, line, strict=True))
        assert rows == sorted(rows, reverse=True)

    def test_every_layer_gets_the_least(self) -> None:
        _, step = layers_of(np.zeros((1, 1, 1, 100)))
        rows = [int(Pyramid(least=8).ahead(np.array([10]), n, 5, 1, step)[0, 0]) for n in range(5)]
        assert min(rows) >= 8
        assert sum(rows) == 50

    def test_short_prompts_are_shared_evenly(self) -> None:
        _, step = layers_of(np.zeros((1, 1, 1, 19)))
        assert [int(Pyramid().ahead(np.array([10]), n, 3, 1, step)[0, 0]) for n in range(3)] == [10, 10, 10]

    @pytest.mark.parametrize("beta", [0.5, float("nan"), float("inf"), "20", True])
    def test_bad_beta(self, beta) -> None:
        with pytest.raises(PolicyError, match="beta must be a finite number >= 1"):
            Pyramid(beta=beta)


class TestAdaptiveHeads:
    def test_heads_compete(self) -> None:
        scores = np.array([[[[9, 8, 7, 6.0], [1, 2, 3, 4.0]]]])
        layers, step = layers_of(scores)
        assert AdaptiveHeads(floor=0.0).allocate(np.array([2]), layers, step)[0].tolist() == [[4, 0]]
        assert AdaptiveHeads(floor=0.5).allocate(np.array([2]), layers, step)[0].tolist() == [[3, 1]]
        assert AdaptiveHeads(floor=1.0).allocate(np.array([2]), layers, step)[0].tolist() == [[2, 2]]

    @given(tables(), st.floats(0, 1), st.data())
    def test_it_is_the_formula(self, table, floor, data) -> None:
        layers, step = table
        budget = data.draw(st.integers(1, int(step.seen[0])))
        got = AdaptiveHeads(floor=floor).allocate(np.full(len(step.seen), budget), layers[:1], step)[0]
        scores = layers[0].scores
        for b in range(scores.shape[0]):
            ranked = sorted(
                ((scores[b, h, n], n, -h) for h in range(scores.shape[1]) for n in range(scores.shape[2])), reverse=True
            )[: budget * scores.shape[1]]
            for h in range(scores.shape[1]):
                ties = len({entry[0] for entry in ranked}) < len(ranked)
                share = (1 - floor) * sum(entry[2] == -h for entry in ranked) + floor * budget
                assert ties or abs(got[b, h] - share) < 1


class TestByVariance:
    def test_spread_attention_gets_more(self) -> None:
        scores = np.ones((2, 1, 2, 8))
        scores[0, 0, 0] = [8, 0, 0, 0, 0, 0, 0, 0]  # layer 0: one head peaked, v = mean(1, 0) = 0.5; layer 1: v = 0
        layers, step = layers_of(scores)
        rows = quotas(ByVariance(), np.array([4]), layers, step)[:, 0]
        share = 8 * math.exp(-0.5) / (math.exp(-0.5) + 1)
        assert rows.tolist() == [[round(share)] * 2, [8 - round(share)] * 2]

    def test_heads_are_scaled_between_the_least_and_the_greatest(self) -> None:
        off = np.tile([-1.0, 1.0], 20)
        scores = np.stack([[[5 + spread * off for spread in heads]] for heads in ((1, 2, 2), (1, 1, 1))])
        layers, step = layers_of(scores)  # variances 1, 4 and 4 are 0, 1 and 1 when scaled
        rows = quotas(ByVariance(), np.array([20]), layers, step)[:, 0]
        share = round(40 * math.exp(-2 / 3) / (math.exp(-2 / 3) + 1))
        assert rows.tolist() == [[share] * 3, [40 - share] * 3]

    def test_exempt_layers_count_inside_the_total(self) -> None:
        layers, step = layers_of(np.random.default_rng(0).exponential(size=(4, 1, 2, 10)))
        rows = quotas(ByVariance(exempt=(1,)), np.array([5]), layers, step)[:, 0, 0]
        assert rows[1] == 10
        assert rows.sum() == 20

    def test_too_many_exempt_layers(self) -> None:
        layers, step = layers_of(np.ones((3, 1, 1, 10)))
        with pytest.raises(PolicyError, match=r"exempt=\(0, 1\).*hold 20 rows a head; the budget of all layers is 15"):
            ByVariance(exempt=(0, 1)).allocate(np.array([5]), layers, step)


class TestByStrengthAndSkew:
    def test_by_hand(self) -> None:
        scores = np.array([[[[3.0, 0, 0, 1, 1, 1]]], [[[1.0, 1, 1, 9, 9, 9]]]])
        layers, step = layers_of(scores, images=3)  # only the first three rows are measured
        rows = quotas(ByStrengthAndSkew(), np.array([3]), layers, step)[:, 0, 0]
        # strength: 3 and 3, a half each; skewness: 0.707 and 0, so all to the first. Weights 0.75 and 0.25 of 6 rows.
        assert rows.tolist() in ([5, 1], [4, 2])
        assert rows.sum() == 6

    @pytest.mark.parametrize("images", [0, 3], ids=["no image", "an image"])
    def test_without_segments_all_rows_are_measured_as_in_a_prompt_without_an_image(self, images: int) -> None:
        scores = np.array([[[[3.0, 0, 0, 1, 1, 1]]], [[[1.0, 1, 1, 9, 9, 9]]]])
        layers, step = layers_of(scores, images=images)
        bare = [replace(layer, view=replace(layer.view, columns={})) for layer in layers]
        told, untold = (quotas(ByStrengthAndSkew(), np.array([3]), given, step).tolist() for given in (layers, bare))
        assert (told == untold) == (images == 0)


def asked(layer: Scored, queries: float, strong: float) -> Scored:
    """The layer where each valid row was asked so often, and so often with at least a quarter of the attention."""
    shape, stray = layer.view.shape, ~layer.view.valid * 99.0  # what other rows say is nonsense
    data = {"strong@0.25": np.full(shape, strong) + stray, "asked_after": np.full(shape, queries) + stray}
    return replace(layer, view=layer.view.with_columns({name: Column(held) for name, held in data.items()}))


class TestBySparsity:
    def test_layers_share_by_how_many_entries_are_not_negligible(self) -> None:
        layers, step = layers_of(np.zeros((3, 2, 2, 8)), held=np.array([[[8, 8], [6, 6]]] * 3))
        # Of 32 entries asked in layer 0 all are strong, in layer 1 half of them, in layer 2 none: the least is 1 %.
        given = [asked(layer, 4.0, strong) for layer, strong in zip(layers, (4.0, 2.0, 0.0), strict=True)]
        rows = quotas(BySparsity(0.25), np.array([3, 3]), given, step)
        shares = 9 * np.array([1, 0.5, 0.01]) / 1.51  # 5.96, 2.98, 0.06
        assert rows[:, :, 0].T.tolist() == [np.round(shares).tolist()] * 2
        assert (rows[..., 0] == rows[..., 1]).all()

    def test_a_layer_that_nobody_asked_counts_as_the_sparsest(self) -> None:
        layers, step = layers_of(np.zeros((2, 1, 1, 100)))
        given = [asked(layer, number, number) for layer, number in zip(layers, (1.0, 0.0), strict=True)]
        assert quotas(BySparsity(0.25), np.array([50]), given, step).ravel().tolist() == [99, 1]

    def test_a_column_that_is_not_there_is_named(self) -> None:
        layers, step = layers_of(np.zeros((2, 1, 1, 4)))
        with pytest.raises(MissingColumnError, match=r"BySparsity needs column 'strong@0\.01'"):
            BySparsity().allocate(np.array([2]), layers, step)

    @pytest.mark.parametrize("threshold", [0, 1.5, "x", True, float("nan")])
    def test_bad_thresholds(self, threshold: Any) -> None:
        with pytest.raises(PolicyError, match="threshold"):
            BySparsity(threshold)


class TestHeadTable:
    def test_shares_of_the_whole_model(self) -> None:
        _, step = layers_of(np.zeros((1, 1, 1, 100)))
        table = HeadTable(((4, 2), (1, 1)))
        assert [table.ahead(np.array([10]), n, 2, 2, step)[0].tolist() for n in (0, 1)] == [[20, 10], [5, 5]]

    def test_another_shape_than_the_models(self) -> None:
        _, step = layers_of(np.zeros((1, 1, 1, 100)))
        with pytest.raises(PolicyError, match="1 layers of 2 key/value heads; this model has 3 layers"):
            HeadTable(((1, 1),)).ahead(np.array([10]), 0, 3, 2, step)

    @pytest.mark.parametrize("table", [(), ((),), ((1, 2), (3,)), ((0, 0),), ((Fraction(1, 10**400),),), "ab", 3])
    def test_bad_tables(self, table) -> None:
        with pytest.raises(PolicyError, match="rectangle"):
            HeadTable(table)

    def test_what_is_no_table_of_numpy(self) -> None:
        with pytest.raises(PolicyError, match="rectangle"):
            HeadTable((np.ones((2, 2)), np.ones((2, 3))))

    @pytest.mark.parametrize("weight", [-1, float("nan"), 10**400, "1", True, np.True_, None, 1j], ids=repr)
    def test_bad_weights(self, weight: Any) -> None:
        says = f"HeadTable(table[1][0]={weight!r}): table[1][0] must be a finite number >= 0."
        with pytest.raises(PolicyError, match=f"^{re.escape(says)}$"):
            HeadTable(((2, 1), (weight, 1)))

    def test_any_numbers_become_floats(self) -> None:
        due = HeadTable(((2.0, 1.0), (0.5, 0.0)))
        for table in (
            ((2, np.float32(1)), (Fraction(1, 2), np.int8(0))),
            np.array([[2, 1], [0.5, 0]]),
            [np.array([2.0, 1.0]), [0.5, 0]],
        ):
            assert repr(HeadTable(table)) == repr(due)

    def test_a_table_of_layers_is_nested_over_heads_that_compete(self) -> None:
        scores = np.zeros((2, 1, 2, 100))
        scores[:, :, 0] = 1.0  # of the layers' rows, as many as there are best ones go to the first head
        layers, step = layers_of(scores)
        nested = Nested(layers=HeadTable(((3, 3), (1, 1))), heads=AdaptiveHeads(floor=0.0))
        assert quotas(nested, np.array([10]), layers, step).tolist() == [[[30, 0]], [[10, 0]]]
        uneven = Nested(layers=HeadTable(((3, 2), (1, 1))), heads=AdaptiveHeads())
        with pytest.raises(PolicyError, match="different budgets"):
            quotas(uneven, np.array([10]), layers, step)


class TestLikePrompt:
    def test_it_keeps_the_proportions(self) -> None:
        _, step = layers_of(np.zeros((2, 1, 2, 30)))
        step = replace(step, phase=Phase.DECODE, prompt_quota=(np.array([[9, 3]]), np.array([[6, 6]])))
        assert [LikePrompt().ahead(np.array([6]), n, 2, 2, step)[0].tolist() for n in (0, 1)] == [[9, 3], [6, 6]]
        assert [LikePrompt().ahead(np.array([8]), n, 2, 2, step)[0].tolist() for n in (0, 1)] == [[12, 4], [8, 8]]

    def test_without_a_plan_it_is_uniform(self) -> None:
        _, step = layers_of(np.zeros((2, 1, 2, 30)))
        assert LikePrompt().ahead(np.array([6]), 1, 2, 2, step).tolist() == [[6, 6]]


@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_nested_takes_the_shares_of_layers_from_either_library(kind: str) -> None:
    class Thirds:
        whole_model = True

        def allocate(self, budget: np.ndarray, layers: list[Scored], step: Step) -> list[object]:
            made = [np.repeat(budget[:, None] + more, 2, axis=1) for more in (1, -1)]
            return [torch.tensor(rows) for rows in made] if kind == "tensor" else made

    layers, step = layers_of(np.random.default_rng(0).exponential(size=(2, 1, 2, 8)))
    step = replace(step, ops=backend_by_name("torch" if kind == "tensor" else "numpy"))
    rows = Nested(layers=Thirds(), heads=Uniform()).allocate(np.array([3]), layers, step)
    assert [np.asarray(quota).tolist() for quota in rows] == [[[4, 4]], [[2, 2]]]


@dataclass(frozen=True)
class Needy:
    """Allocates evenly, and says that it reads these columns."""

    needs: tuple[str, ...]
    whole_model: bool = False

    def allocate(self, budget: np.ndarray, layers: list[Scored], step: Step) -> Any:
        return Uniform().allocate(budget, layers, step)


@pytest.mark.parametrize(
    ("nested", "needs"),
    [
        (Nested(layers=Pyramid(), heads=AdaptiveHeads()), ()),
        (Nested(layers=BySparsity(), heads=AdaptiveHeads()), BySparsity().needs),
        (Nested(layers=Pyramid(), heads=Needy(("a",))), ("a",)),
        (Nested(layers=Needy(("a", "b")), heads=Needy(("c",))), ("a", "b", "c")),
    ],
    ids=repr,
)
def test_nested_needs_what_either_needs_and_a_pipeline_checks_it(nested: Nested, needs: tuple[str, ...]) -> None:
    assert nested.needs == needs
    if not needs:
        Pipeline(schedule=FixedRows(4), score=Recency(), allocate=nested)
        return
    with pytest.raises(PolicyError, match=rf"Nested\(.*needs the column '{needs[0]}', which Recency"):
        Pipeline(schedule=FixedRows(4), score=Recency(), allocate=nested)


def test_nested_refuses_what_cannot_work() -> None:
    with pytest.raises(PolicyError, match="must work within one layer"):
        Nested(layers=Pyramid(), heads=ByVariance())
    layers, step = layers_of(np.random.default_rng(0).exponential(size=(2, 1, 2, 8)))
    with pytest.raises(PolicyError, match="different budgets"):
        Nested(layers=AdaptiveHeads(floor=0.0), heads=Uniform()).allocate(np.array([3]), layers, step)
