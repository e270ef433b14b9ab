"""The references themselves: small cases worked out by hand, and what must hold whatever the numbers are."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from reference import IMAGE, TEXT, Inputs, Outcome, Row, budgets, common, expected, folding, merging, selection
from reference import statistics as stats

Arr = np.ndarray[Any, np.dtype[Any]]

EVERY: dict[str, Callable[..., list[Outcome]]] = {
    "elastic_cache": reference.elastic_cache,
    "h2o": reference.h2o,
    "streaming_llm": reference.streaming_llm,
    "snapkv": lambda inputs, **budget: reference.snapkv(inputs, window=4, **budget),
    "pyramid_kv": lambda inputs, **budget: reference.pyramid_kv(inputs, window=2, beta=5, **budget),
    "ada_kv": lambda inputs, **budget: reference.ada_kv(inputs, window=4, **budget),
    "head_kv": lambda inputs, **budget: reference.head_kv(inputs, table=((3, 1), (1, 1), (0, 1)), window=4, **budget),
    "tova": reference.tova,
    "cam": reference.cam,
    "k_norm": reference.k_norm,
    "key_diff": reference.key_diff,
    "random": reference.random,
    "look_m": reference.look_m,
    "d2o": reference.d2o,
    "kv_merger": reference.kv_merger,
    "keep_kv": reference.keep_kv,
    "vl_cache": reference.vl_cache,
    "air_cache": reference.air_cache,
    "expected_attention": lambda inputs, **budget: reference.expected_attention(inputs, future=8, **budget),
}
UNEVEN = ("ada_kv", "air_cache", "d2o", "head_kv", "pyramid_kv", "vl_cache")  # budgets differ from head to head
WHILE_DECODING = (
    "cam",
    "d2o",
    "elastic_cache",
    "h2o",
    "k_norm",
    "keep_kv",
    "key_diff",
    "random",
    "streaming_llm",
    "tova",
)


def make(
    seed: int = 0, *, layers: int = 3, heads: int = 2, groups: int = 2, prompt: int = 20, steps: int = 3
) -> Inputs:
    rng = np.random.default_rng(seed)
    tokens, dim = prompt + steps, 4
    segment = np.zeros(tokens, dtype=np.int64)
    segment[3 : prompt - 2] = IMAGE
    return Inputs(
        q=rng.standard_normal((layers, heads * groups, tokens, dim)),
        k=rng.standard_normal((layers, heads, tokens, dim)),
        v=rng.standard_normal((layers, heads, tokens, 3)),
        prompt=prompt,
        scale=1.0,
        segment=segment,
    )


def flat(prompt: int, steps: int = 0, *, images: tuple[int, ...] = ()) -> Inputs:
    """One layer, one head: queries of zero, keys in no particular direction, the value of a row is its position."""
    tokens = prompt + steps
    keys = np.array([[math.cos(t), math.sin(t)] for t in range(tokens)])
    segment = np.array([IMAGE if t in images else TEXT for t in range(tokens)])
    values = np.arange(float(tokens)).reshape(1, 1, tokens, 1)
    return Inputs(np.zeros((1, 1, tokens, 2)), keys[None, None], values, prompt, 1.0, segment)


def table(*rows: tuple[float, ...]) -> list[Row]:
    """A head with these keys; the value of a row is its place."""
    return [Row(n, np.array(key, dtype=np.float64), np.array([float(n)])) for n, key in enumerate(rows)]


def positions(outcome: Outcome, layer: int = 0, head: int = 0) -> list[int]:
    return [row.position for row in outcome.layers[layer][head]]


def test_the_oracle_shares_no_code_with_its_subject() -> None:
    sources = list(Path(reference.__file__).parent.glob("*.py"))
    assert len(sources) > 10
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            assert {name.partition(".")[0] for name in names}.isdisjoint(
                {"kvpolicy", "kvpolicy_hf", "torch", "driving"}
            )


# ------------------------------------------------------------------------------------------------ what always holds


@pytest.mark.parametrize("name", EVERY)
def test_totals_are_exact(name: str) -> None:
    method = EVERY[name]
    for seed in range(3):
        inputs = make(seed)
        if name in ("air_cache", "look_m"):  # protected text of 5 rows must fit into every head's share
            inputs = replace(inputs, segment=np.array([TEXT if t == 0 else IMAGE for t in range(23)]))
        for number, outcome in enumerate(method(inputs, rows=9)):
            held = [len(head) for layer in outcome.layers for head in layer]
            if number == 0 or name in WHILE_DECODING:
                assert sum(held) == 9 * 6
            else:
                assert sum(held) == (9 + number) * 6
            if name not in UNEVEN:
                assert len(set(held)) == 1


@pytest.mark.parametrize("name", EVERY)
def test_a_budget_of_everything_changes_nothing(name: str) -> None:
    inputs = make(1)
    plain = common.simulate(inputs, lambda now: None)
    for mine, due in zip(EVERY[name](inputs, keep=1.0), plain, strict=True):
        np.testing.assert_array_equal(mine.outputs, due.outputs)
        for heads, due_heads in zip(mine.layers, due.layers, strict=True):
            for head, due_head in zip(heads, due_heads, strict=True):
                assert [row.position for row in head] == [row.position for row in due_head]
                np.testing.assert_array_equal([row.key for row in head], [row.key for row in due_head])
                np.testing.assert_array_equal([row.value for row in head], [row.value for row in due_head])


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("prompt", [1, 2])
@pytest.mark.parametrize("settings", [{"rows": 1}, {"keep": 0.01}, {"keep": 0.5}])
def test_tiny_prompts_and_budgets_are_no_special_case(name: str, prompt: int, settings: dict[str, Any]) -> None:
    if name == "key_diff":  # one of two keys would have to leave, and both are equally far from their mean
        with pytest.raises(reference.UndecidedError):
            EVERY[name](make(2, prompt=prompt, steps=4), **settings)
        return
    for outcome in EVERY[name](make(2, prompt=prompt, steps=4), **settings):
        assert all(np.isfinite(row.value).all() for layer in outcome.layers for head in layer for row in head)


@pytest.mark.parametrize("name", ["d2o", "elastic_cache", "kv_merger", "look_m"])
def test_means_stay_among_what_they_are_means_of(name: str) -> None:
    inputs = make(3)
    for outcome in EVERY[name](inputs, rows=9):
        for layer, heads in enumerate(outcome.layers):
            for h, head in enumerate(heads):
                for row in head:
                    assert (row.value <= inputs.v[layer, h].max(axis=0) + 1e-12).all()
                    assert (row.value >= inputs.v[layer, h].min(axis=0) - 1e-12).all()


@pytest.mark.parametrize("name", ["elastic_cache", "kv_merger", "look_m"])
def test_methods_that_drop_nothing_count_every_token(name: str) -> None:
    for heads in EVERY[name](make(4), rows=9)[0].layers:
        for head in heads:
            assert sum(row.count for row in head) == 20


@pytest.mark.parametrize("name", ["h2o", "kv_merger", "look_m"])
def test_accumulated_attention_is_one_a_query_while_nothing_is_dropped(name: str) -> None:
    rows = 20 if name == "h2o" else 9
    for heads in EVERY[name](make(5, steps=0), rows=rows)[0].layers:
        for head in heads:
            assert sum(row.mass for row in head) == pytest.approx(20)


# ------------------------------------------------------------------------------------------------ selection, budgets


def test_best_rows_beside_protected_ones() -> None:
    head = table(*[(0.0,)] * 8)
    scores = [0.0, 5.0, 4.0, 4.0, 1.0, 0.0, 0.0, 0.0]
    assert selection.stays(head, scores, 3) == [1, 2, 3]
    assert selection.stays(head, scores, 2) == [1, 3], "ties go to the later"
    assert selection.stays(head, scores, 4, first=1, recent=0.5) == [0, 1, 6, 7]
    assert selection.stays(head, scores, 4, first=3, recent=0.5) == [0, 1, 2, 7], "the first rows limit the window"
    assert selection.stays(head, scores, 2, first=3, recent=0.5) == [0, 1, 2], "protected rows exceed the quota"
    assert selection.stays(head, scores, 1, text=True) == [1], "there is no image beside which to protect text"
    head[4].segment = IMAGE
    assert selection.stays(head, scores, 1, text=True) == [0, 1, 2, 3, 5, 6, 7]


@pytest.mark.parametrize(
    ("weights", "total", "caps", "due"),
    [
        ([1, 1, 1], 10, [10] * 3, [4, 3, 3]),
        ([1, 2, 1], 10, [10] * 3, [3, 5, 2]),  # 2.5, 5, 2.5: ties to the lower index
        ([3, 1], 10, [5, 9], [5, 5]),
        ([8, 1, 1], 12, [4, 9, 9], [4, 4, 4]),
        ([6, 3, 1], 12, [4, 5, 9], [4, 5, 3]),  # what the first cap leaves over fills the second
        ([0, 0], 5, [9, 9], [3, 2]),
        ([1, 0, 0], 7, [3, 9, 9], [3, 2, 2]),
        ([0.8 * 3 + 1, 0.8 * 8 + 1, 1.2], 12, [99] * 3, [4, 7, 1]),  # remainders 0.4, 0.4 and 0.2 up to rounding
    ],
)
def test_apportion_by_hand(weights: list[float], total: int, caps: list[int], due: list[int]) -> None:
    assert budgets.apportion(weights, total, caps) == due


@given(st.lists(st.tuples(st.floats(0, 9), st.integers(0, 20)), min_size=1, max_size=7), st.data())
def test_apportion_is_exact_and_within_the_caps(cells: list[tuple[float, int]], data: st.DataObject) -> None:
    weights, caps = [weight for weight, _ in cells], [cap for _, cap in cells]
    total = data.draw(st.integers(0, sum(caps)))
    shares = budgets.apportion(weights, total, caps)
    assert sum(shares) == total
    assert all(0 <= share <= cap for share, cap in zip(shares, caps, strict=True))
    for i in range(len(cells)):
        for j in range(len(cells)):
            if weights[i] >= weights[j] and shares[i] < caps[i]:
                assert shares[i] >= shares[j] - 1


def now_of(layers: int, heads: int, rows: int) -> common.Now:
    held = [[table(*[(0.0,)] * rows) for _ in range(heads)] for _ in range(layers)]
    return common.Now(held, np.zeros((layers, heads, rows, 1)), 1.0, decoding=False)


def test_the_pyramid_falls_in_a_line_to_an_exact_total() -> None:
    now = now_of(4, 1, 100)
    shares = [layer[0] for layer in budgets.pyramid(now, 28, beta=20, least=8)]
    assert shares == [47, 34, 22, 9]  # 8 + 39, 26.33, 13.67, 1: the one row left over goes to the third
    assert budgets.pyramid(now, 8, beta=20, least=8) == [[8]] * 4
    assert budgets.pyramid(now, 51, beta=20, least=8) == [[51]] * 4, "a prompt below twice the budget"
    assert budgets.pyramid(now_of(1, 1, 100), 28, beta=20, least=8) == [[28]]


def test_the_pyramid_gives_a_tie_to_the_lower_layer() -> None:
    assert budgets.pyramid(now_of(2, 2, 50), 10, beta=20, least=0) == [[20, 20], [0, 0]]  # 19.5 and 0.5


def test_layers_by_variance() -> None:
    # Variances 0 and 1 scale to 0 and 1, mean 1/2; a layer of equal heads is 0: weights e^-0.5 and 1, of 20 rows 7.55
    # and 12.45.
    scores = [[[1.0] * 4, [0.0, 2.0] * 2], [[0.0, 1.0] * 2, [0.0, 1.0] * 2]]
    assert budgets.by_variance(now_of(2, 2, 20), 10, scores) == [[8, 8], [12, 12]]
    assert budgets.by_variance(now_of(2, 2, 11), 10, scores) == [[9, 9], [11, 11]]
    assert budgets.by_variance(now_of(2, 2, 12), 10, scores, exempt=(0,)) == [[12, 12], [8, 8]]


def test_layers_by_sparsity() -> None:
    strong, asked = [[[3.0, 1.0]], [[1.0, 0.0]]], [[[4.0, 4.0]], [[4.0, 4.0]]]  # 1/2 and 1/8
    assert budgets.by_sparsity(now_of(2, 1, 20), 10, strong, asked) == [[16], [4]]
    nothing = [[[0.0, 0.0]], [[0.0, 0.0]]]
    assert budgets.by_sparsity(now_of(2, 1, 20), 10, nothing, nothing) == [[10], [10]]


def test_layers_by_strength_and_skew() -> None:
    # Strengths 4 and 4. Skewness of (0, 0, 0, 4): third moment (3 * -1 + 27)/4 = 6 over 3^1.5; of (1, 1, 1, 1): 0.
    now = now_of(2, 1, 20)
    for layer in now.layers:
        for row in layer[0][:4]:
            row.segment = IMAGE
    scores = [[[0.0, 0.0, 0.0, 4.0, *[9.0] * 16]], [[1.0] * 4 + [0.0] * 16]]
    assert budgets.by_strength_and_skew(now, 10, scores) == [[15], [5]]


def test_heads_by_their_best_rows() -> None:
    scores = [[9.0, 8.0, 7.0, 6.0], [5.0, 1.0, 1.0, 1.0]]
    # Of the 4 best, all in head 0: 0.8 * 4 + 0.2 * 2 = 3.6 and 0.4.
    assert budgets.adaptive_heads(scores, 2, floor=0.2) == [4, 0]
    assert budgets.adaptive_heads(scores, 2, floor=1.0) == [2, 2]
    assert budgets.adaptive_heads([[1.0] * 4, [1.0] * 4], 2, floor=0.0) == [2, 2], "ties go to the later arrival"


# ------------------------------------------------------------------------------------------------ statistics


def test_pooling_counts_only_finite_neighbours() -> None:
    inf = float("inf")
    assert stats.pooled([3.0, 0.0, 0.0, inf, inf], 3, "mean") == [1.5, 1.0, 0.0, inf, inf]
    assert stats.pooled([3.0, -inf, 0.0, 1.0, inf], 3, "max") == [3.0, -inf, 3.0, 1.0, inf]
    assert stats.pooled([3.0, 1.0], 1, "mean") == [3.0, 1.0]


def test_a_moving_average_starts_at_nothing() -> None:
    head = table((0.0,), (0.0,))
    head[0].paid, head[1].paid = {0: [1.0], 1: [0.5]}, {1: [0.5]}
    assert stats.moving(head, 2, 0.9) == pytest.approx([0.9 * 0.1 + 0.05, 0.05])


def test_strong_entries_are_counted_for_each_query_head() -> None:
    head = table((0.0,), (0.0,), (0.0,))
    paid = ([0.8, 0.1], [0.1, 0.8], [0.1, 0.1])
    for row, shares in zip(head, paid, strict=True):
        row.paid = {2: shares}
    assert stats.strong(head, [2], 0.5) == [0.5, 0.5, 0.0]
    assert stats.strong(head, [2], 0.1) == [1.0, 1.0, 1.0]


def test_the_elite_are_text_queries_that_the_last_one_reads() -> None:
    head = table(*[(0.0,)] * 5)
    for row, paid in zip(head, (0.5, 0.3, 0.02, 0.08, 0.1), strict=True):
        row.paid = {4: [paid]}
    assert stats.elite_queries([head], 5, 64, 0.1) == [0, 1, 3, 4]
    assert stats.elite_queries([head], 5, 3, 0.9) == [4], "the last query is in the window, and here the largest"
    head[0].segment = head[4].segment = IMAGE
    assert stats.elite_queries([head], 5, 64, 0.5) == [1, 4], "an image query is elite only where it is the last"


def test_the_hash_by_hand() -> None:
    x = 12345  # seed, layer and position 0
    for _ in range(3):
        x = x ^ (x // 2**15)
        x = x * 739982445 % 2**31
        x = x ^ (x // 2**12)
    assert reference.noise(0, 0, 0) == x / 2**31
    many = [reference.noise(seed, layer, t) for seed in range(4) for layer in range(4) for t in range(500)]
    assert len(set(many)) > 0.999 * len(many)
    assert np.histogram(many, bins=8, range=(0, 1))[0] == pytest.approx([1000] * 8, rel=0.1)


def test_a_rotation_turns_and_turns_back() -> None:
    np.testing.assert_allclose(reference.rotate(np.array([1.0, 0.0]), 1), [math.cos(1), math.sin(1)])
    x, y = np.array([1.0, 2.0, 3.0, 4.0]), np.array([-1.0, 0.5, 2.0, 0.0])
    np.testing.assert_allclose(reference.rotate(reference.rotate(x, 7), -7), x)
    assert reference.rotate(x, 9) @ reference.rotate(y, 4) == pytest.approx(x @ reference.rotate(y, -5))


# ------------------------------------------------------------------------------------------------ methods by hand


def test_elastic_cache_statistics() -> None:
    # Query i pays 1/(i+1) to each row: the sum favours the oldest rows. The mean of row j is that of 1/(j+1) .. 1/8:
    # the oldest too. With decay 0.9 the latest: the newest row has had no time, so row 0 is again the best.
    for statistic in ("sum", "mean", "moving"):
        after = reference.elastic_cache(flat(8), rows=4, merge="evict", statistic=statistic)
        assert positions(after[0]) == [0, 1, 2, 7]
    after = reference.elastic_cache(flat(8), rows=4, merge="mean")
    assert [row.count for row in after[0].layers[0][0]] == [1, 1, 5, 1]
    assert [float(row.value[0]) for row in after[0].layers[0][0]] == [0, 1, 4, 7]


def test_elastic_cache_clusters_go_to_the_most_similar_key() -> None:
    (after,) = reference.elastic_cache(flat(7), rows=4, merge="cluster")  # 0, 1, 2 and 6 stay; angles in radians
    # 3 is 1 from 2; 4 is 2 from 2 and from 6, which ties up to rounding; 5 is 1 from 6.
    assert [row.position for row in after.layers[0][0]] == [0, 1, 2, 6]
    assert sum(row.count for row in after.layers[0][0]) == 7
    assert [row.count for row in after.layers[0][0]][:2] == [1, 1]


@pytest.mark.parametrize(
    ("discard", "due"), [("fixed", [0, 1, 7, 8]), ("recent", [0, 2, 7, 8]), ("frequency", [0, 1, 2, 7])]
)
def test_elastic_cache_decoding(discard: str, due: list[int]) -> None:
    settings = {"rows": 4, "merge": "evict", "distance": 2, "discard": discard}
    assert positions(reference.elastic_cache(flat(8, 1), **settings)[1]) == due


def test_elastic_cache_sets() -> None:
    inputs = make(6)
    layer, head, shared = (
        reference.elastic_cache(inputs, rows=6, sets=sets)[0] for sets in ("layer", "head", "shared")
    )
    assert all(positions(layer, n, 0) == positions(layer, n, 1) for n in range(3))
    assert len({tuple(positions(layer, n)) for n in range(3)}) > 1
    assert any(positions(head, n, 0) != positions(head, n, 1) for n in range(3))
    assert len({tuple(positions(shared, n, h)) for n in range(3) for h in range(2)}) == 1


def test_streaming_slots_read_as_if_the_rows_had_arrived_one_after_another() -> None:
    inputs = make(7)
    after = reference.streaming_llm(inputs, rows=6, sinks=2, positions="slots")
    np.testing.assert_allclose(after[0].outputs, reference.streaming_llm(inputs, rows=6, sinks=2)[0].outputs)
    # The first token sees rows 0, 1, 16 .. 20 as a text of seven. Turned back, and then to their slots:
    kept = [0, 1, 16, 17, 18, 19, 20]
    keys = np.array(
        [[reference.rotate(reference.rotate(inputs.k[0, h, t], -t), n) for n, t in enumerate(kept)] for h in (0, 1)]
    )
    query = np.array([[reference.rotate(reference.rotate(inputs.q[0, hq, 20], -20), 6)] for hq in range(4)])
    shares = reference.causal_attention(query, keys, inputs.scale, [20], [kept, kept])
    due = [np.array(shares[hq][0]) @ inputs.v[0, hq // 2, kept] for hq in range(4)]
    np.testing.assert_allclose(after[1].outputs[0, :, 0], due)


def test_snapkv_keeps_its_window_and_pools() -> None:
    # The two last queries pay 1/7 and 1/8 to all before them; equal scores, the later stay.
    assert positions(reference.snapkv(flat(8), rows=4, window=2)[0]) == [4, 5, 6, 7]
    assert positions(reference.snapkv(flat(8), rows=1, window=2)[0]) == [7]
    # One earlier row takes everything; its neighbours come along.
    inputs = flat(10)
    inputs = replace(inputs, q=np.ones((1, 1, 10, 2)), k=np.zeros((1, 1, 10, 2)))
    inputs.k[0, 0, 3] = 50
    assert positions(reference.snapkv(inputs, rows=5, window=2, kernel=3)[0]) == [2, 3, 4, 8, 9]


def test_tova_goes_by_the_last_query_alone() -> None:
    inputs = make(8, layers=1)
    shares = [reference.causal_attention(inputs.q[0, :, 19:20], inputs.k[0, :, :20], 1.0, [19], [list(range(20))] * 2)]
    mean = np.mean([line[0] for line in shares[0]], axis=0)
    after = reference.tova(inputs, rows=7)
    assert positions(after[0], 0, 0) == positions(after[0], 0, 1) == sorted(np.argsort(mean)[-7:].tolist())


def test_keys_alone() -> None:
    inputs = flat(5)
    inputs = replace(inputs, k=np.array([[[[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [3.0, 0.0], [4.0, 0.0]]]]))
    assert positions(reference.k_norm(inputs, rows=2)[0]) == [1, 2]
    assert positions(reference.key_diff(inputs, rows=2)[0]) == [1, 2]  # the mean direction is (2, 1)/5


def test_cam_adds_to_the_next_values() -> None:
    # Rows 0 .. 3 are the first, 7 and 8 are the window of floor(0.5 * 6) as far as 4 rows leave room. Row 4 was paid
    # 1/5 + ... + 1/9 of the 1 + ... + 1/9 of row 0.
    likely = sum(1 / i for i in range(5, 10)) / sum(1 / i for i in range(1, 10))
    seeds = {
        drawn: next(s for s in range(99) if (reference.noise(s, 0, 4) < likely) is drawn) for drawn in (True, False)
    }
    for drawn, seed in seeds.items():
        (after,) = reference.cam(flat(9), rows=6, count=1, seed=seed)
        assert positions(after) == [0, 1, 2, 3, 7, 8]
        gone = [
            t
            for t in (4, 5, 6)
            if reference.noise(seed, 0, t) < sum(1 / i for i in range(t + 1, 10)) / sum(1 / i for i in range(1, 10))
        ]
        assert (4 in gone) is drawn
        assert after.layers[0][0][4].value == 7 + sum(gone)
        assert after.layers[0][0][4].count == 1 + len(gone)
        np.testing.assert_array_equal(after.layers[0][0][4].key, flat(9).k[0, 0, 7])
        (after,) = reference.cam(flat(9), rows=6, count=4, seed=seed)
        assert [float(row.value[0]) for row in after.layers[0][0][4:]] == [7 + sum(gone) / 4, 8 + sum(gone) / 4]
        assert sum(row.count for row in after.layers[0][0]) == pytest.approx(6 + len(gone))


@pytest.mark.parametrize(
    ("merge", "due"),
    [
        ("average", (1 + 2 + 3) / 3),
        ("pivotal", (1 + (2 + 1) / 2 + (3 + 1) / 2) / 3),
        ("weighted", (1 + 2 + 3 * 0.6) / 3),
    ],
)
def test_look_m_merges(merge: str, due: float) -> None:
    inputs = flat(5, images=(1, 2, 3))
    keys = np.array([[[[-1.0, 0.0], [1.0, 0.0], [2.0, 0.0], [0.6, 0.8], [0.0, -1.0]]]])
    (after,) = reference.look_m(replace(inputs, k=keys), rows=3, merge=merge, recent=0.0)
    # Text 0 and 4, and of the images row 1, the most attended; 2 points the same way, 3 has a cosine of 0.6.
    assert positions(after) == [0, 1, 4]
    assert after.layers[0][0][1].value == pytest.approx(due)
    assert [row.count for row in after.layers[0][0]] == [1, 3, 1]


def test_look_m_keeps_all_text() -> None:
    (after,) = reference.look_m(flat(6, images=(2,)), rows=2)
    assert positions(after) == [0, 1, 3, 4, 5]


def test_d2o_gate() -> None:
    # Decode steps of one head: similarities by hand from the angles between keys 1 radian apart.
    inputs = flat(6, 2)
    after = reference.d2o(inputs, rows=3, first=1, recent=0.4, beta=0.7)
    # Row 0 is first, floor(0.4 * 3) = 1 recent row: 5, and row 1 of the others. Row 2: cos 1 with 1. 3: cos 2 with 1
    # and 5. 4: cos 1 with 5. tau = (2 cos 1 + cos 2)/3; row 3 is below it.
    assert positions(after[0]) == [0, 1, 5]
    assert [row.count for row in after[0].layers[0][0]] == [1, 2, 2]
    share = math.exp(math.cos(1)) / (math.e + math.exp(math.cos(1)))
    assert float(after[0].layers[0][0][1].value[0]) == pytest.approx(1 + share)
    assert float(after[0].layers[0][0][2].value[0]) == pytest.approx(5 - share)
    # Token 6: rows 0, 1 and 6 stay, for row 5 was paid less than 1. Its key is between those of 5 and 4.
    tau = (2 * math.cos(1) + math.cos(2)) / 3
    head = after[0].layers[0][0]
    now = max(folding.cosine(head[2].key, other) for other in (head[0].key, head[1].key, inputs.k[0, 0, 6]))
    tau = 0.7 * now + 0.3 * tau
    assert positions(after[1]) == [0, 1, 6]
    assert [row.count for row in after[1].layers[0][0]] == ([1, 2, 3] if now >= tau else [1, 2, 1])


def test_clusters_by_hand() -> None:
    # Keys on the unit circle; the recent row and the best one stay alone, and break the run at place 2.
    head = table(*[(math.cos(a), math.sin(a)) for a in (0.0, 0.1, 0.3, 1.0, 1.2, 2.0, 0.0)])
    scores = [3.0, 3.0, 9.0, 1.0, 2.0, 0.0, 0.0]
    assert merging.clusters(head, scores, 4, None, 0.25, 0.25) == {6: [6], 2: [2], 1: [0, 1], 4: [3, 4, 5]}
    assert merging.clusters(head, scores, 6, None, 0.25, 0.0) == {6: [6], 1: [0, 1], 2: [2], 3: [3], 4: [4], 5: [5]}
    close = merging.clusters(head, scores, 4, math.cos(0.3), 0.25, 0.25)
    assert close == {6: [6], 2: [2], 1: [0, 1], 4: [3, 4], 5: [5]}
    assert merging.clusters(head, scores, 1, None, 0.25, 0.25) == {2: list(range(7))}


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 30), st.floats(0, 0.99), st.floats(0, 1))
def test_clusters_fill_the_quota_exactly(seed: int, held: int, quota: int, recent: float, top: float) -> None:
    rng = np.random.default_rng(seed)
    head = table(*rng.standard_normal((held, 3)).tolist())
    sets = merging.clusters(head, rng.standard_normal(held).tolist(), quota, None, recent, top)
    assert len(sets) == min(quota, held)
    assert sorted(n for one in sets.values() for n in one) == list(range(held))
    assert all(one == list(range(one[0], one[0] + len(one))) and pivot in one for pivot, one in sets.items())


@pytest.mark.parametrize("values", ["mean", "scaled"])
def test_kv_merger_weights(values: str) -> None:
    inputs = flat(3, 1)
    keys = np.array([[[[0.0, 1.0], [0.0, 2.0], [0.0, 4.0], [1.0, 0.0]]]])
    after = reference.kv_merger(replace(inputs, k=keys), rows=1, sigma=2.0, values=values)
    # Row 0 was paid the most; the others are 1 and 3 away.
    g = [1.0, math.exp(-1 / 8), math.exp(-9 / 8)]
    mean = (g[1] + 2 * g[2]) / sum(g)
    row = after[0].layers[0][0][0]
    assert (row.position, row.count) == (0, 3)
    assert float(row.value[0]) == pytest.approx(mean * (3 if values == "scaled" else 1))
    np.testing.assert_allclose(row.key, [0, (1 + 2 * g[1] + 4 * g[2]) / sum(g)])
    # A query of zero reads the merged row three times where it counts its tokens, and the new row once.
    due = (3 * mean + 3) / 4 if values == "mean" else (3 * mean + 3) / 2
    assert after[1].outputs.item() == pytest.approx(due)
    own = reference.kv_merger(replace(inputs, k=keys), rows=1, values=values)[0].layers[0][0][0]  # sigma = (1 + 3)/2
    np.testing.assert_array_equal(own.key, row.key)


def test_equal_keys_in_a_cluster_count_the_same() -> None:
    inputs = replace(flat(3), k=np.ones((1, 1, 3, 2)))
    assert float(reference.kv_merger(inputs, rows=1)[0].layers[0][0][0].value[0]) == pytest.approx(1.0)


@given(st.integers(0, 2**32 - 1), st.integers(2, 5))
def test_zero_perturbation(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    query = rng.standard_normal(4)
    along = query / np.linalg.norm(query)
    head = []
    for n in range(count + 2):  # keys on the query's side, so that there is something to scale
        aside = rng.standard_normal(4)
        key = rng.uniform(0.1, 3) * along + aside - (aside @ along) * along
        head.append(Row(n, key, rng.standard_normal(3), count=int(rng.integers(1, 6))))

    def read(rows: list[Row]) -> Arr:
        weights = [row.count * math.exp(0.5 * float(query @ row.key)) for row in rows]
        return sum(w * row.value for w, row in zip(weights, rows, strict=True)) / sum(weights)

    merged = merging.without_perturbation(head, 0, list(range(1, count)), query, 0.5, math.inf)
    assert merged.count == sum(row.count for row in head[:count])
    np.testing.assert_allclose(read([merged, *head[count:]]), read(head), rtol=1e-8, atol=1e-8)


def test_keep_kv_leaves_the_next_reading_of_the_same_query_unchanged() -> None:
    """The query of the last prompt token again, over the table after the merge, with one group and similar keys."""
    rng = np.random.default_rng(9)
    inputs = make(9, layers=1, groups=1, steps=0)
    base = np.array([1.0, 0.5, -0.5, 1.0])
    inputs = replace(
        inputs,
        q=base + rng.standard_normal(inputs.q.shape) / 3,
        k=base + rng.standard_normal(inputs.k.shape) / 5,
    )
    (after,) = reference.keep_kv(inputs, rows=8, threshold=-1.0)
    for h, head in enumerate(after.layers[0]):
        assert sum(row.count for row in head) == 20
        logits = [float(inputs.q[0, h, -1] @ row.key) + math.log(row.count) for row in head]
        weights = [math.exp(logit) for logit in logits]
        read = sum(w * row.value for w, row in zip(weights, head, strict=True)) / sum(weights)
        np.testing.assert_allclose(read, after.outputs[0, h, -1], rtol=1e-10)


def test_keep_kv_limits_the_scale() -> None:
    head = table((1.0, 0.0), (-1.0, 0.2))
    row = merging.without_perturbation(head, 0, [1], np.array([1.0, 0.0]), 1.0, 2.0)
    w = math.exp(1) + math.exp(-1)
    # ln(cosh 1) over tanh 1 is 0.57: within the limits. Against a query of zero there is nothing to scale.
    np.testing.assert_allclose(
        row.key, math.log(w / 2) / math.tanh(1) * np.array([math.tanh(1), 0.2 * math.exp(-1) / w])
    )
    np.testing.assert_allclose(merging.without_perturbation(head, 0, [1], np.zeros(2), 1.0, 2.0).key, [0.0, 0.1])
    np.testing.assert_allclose(
        merging.without_perturbation(head, 0, [1], np.array([1.0, 0.0]), 1.0, 1.5).key,
        [math.tanh(1), 0.2 * math.exp(-1) / w],
    )


def test_vl_cache_listens_after_the_last_image() -> None:
    inputs = flat(6, images=(1, 2))
    inputs = replace(inputs, q=np.ones((1, 1, 6, 2)), k=np.zeros((1, 1, 6, 2)))
    inputs.k[0, 0, 0] = 1e4
    (after,) = reference.vl_cache(inputs, rows=2, recent=0.0)
    assert positions(after) == [0, 5]  # all others were paid 0: ties go to the later
    ends = reference.vl_cache(flat(6, images=(5,)), rows=2, recent=0.0)
    assert positions(ends[0]) == [4, 5], "nobody asks after the last image row: all tie"
    assert positions(reference.vl_cache(flat(6), rows=2, recent=0.0)[0]) == [0, 1], "without images all queries ask"


def test_air_cache_keeps_text_and_what_the_elite_read() -> None:
    (after,) = reference.air_cache(flat(6, images=(1, 2, 3)), rows=4)
    assert positions(after) == [0, 3, 4, 5]  # all elite queries pay image rows alike: the later stays


def test_expected_attention_by_hand() -> None:
    # One pair of axes, all queries the same before the embedding: no covariance, and the future is a mean of turns.
    inputs = flat(6)
    queries = np.array([[[reference.rotate(np.array([1.0, 0.0]), t) for t in range(6)]]])
    keys = np.array([[[[math.cos(t), math.sin(t)] for t in (7.0, 0.0, 6.5, 3.0, 2.0, 1.0)]]])
    inputs = replace(inputs, q=queries, k=keys, v=np.ones((1, 1, 6, 1)))
    (after,) = reference.expected_attention(inputs, rows=2, first=0, future=2)  # positions 6 and 7: angle 6.5
    assert positions(after) == [1, 2]  # 6.5 is a whole turn and 0.2 from 0
    turn = expected.mean_rotation(2, 5, 2)
    np.testing.assert_allclose(turn @ np.array([1.0, 0.0]), math.cos(0.5) * np.array([math.cos(6.5), math.sin(6.5)]))
    head = table(*keys[0, 0].tolist())
    for row in head:
        row.value = np.array([2.0])
    scores = expected.expected_scores(head, queries[0], 6, 1.0, turn, 0.5, covariance=True)
    powers = [math.exp(math.cos(0.5) * math.cos(6.5 - angle)) for angle in (7.0, 0.0, 6.5, 3.0, 2.0, 1.0)]
    np.testing.assert_allclose(scores, [2 * (power / sum(powers) + 0.5) for power in powers])


def test_expected_attention_is_the_mean_over_a_gaussian() -> None:
    """``E[exp(s k.x)]`` of a Gaussian x by sampling, against the closed form."""
    rng = np.random.default_rng(0)
    queries = rng.standard_normal((1, 30, 4)) / 2
    turned = np.array([[reference.rotate(query, t) for t, query in enumerate(queries[0])]])
    head = table(*(rng.standard_normal((5, 4)) / 2).tolist())
    for row in head:
        row.value = np.ones(1)
    turn = expected.mean_rotation(4, 29, 3)
    scores = expected.expected_scores(head, turned, 30, 0.7, turn, 0.0, covariance=True)
    samples = rng.multivariate_normal(queries[0].mean(axis=0), np.cov(queries[0].T, bias=True), 200_000)
    means = [np.exp(0.7 * samples @ turn.T @ row.key).mean() for row in head]
    np.testing.assert_allclose(scores, np.array(means) / sum(means), rtol=1e-2)
