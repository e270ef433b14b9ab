"""Summaries of rows: values, intervals, pairing, the front, and what is refused."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import pytest
from made_rows import frame, realistic, simple
from polars.testing import assert_frame_equal

from kvpolicy import KVPolicyError, PolicyError
from kvpolicy_hf.evaluate.definitions import METRICS
from kvpolicy_hf.evaluate.summary import compare, pareto, summarise

Numbers = Sequence[float]
Groups = Mapping[str, Mapping[str, Sequence[Numbers]]]  # by task and group, the numbers of each sample
SOME = ("h2o", 0.2)


def one(table: pl.DataFrame, **wanted: Any) -> dict[str, Any]:
    """The only row that has these values."""
    return table.row(by_predicate=pl.all_horizontal(pl.col(k).eq_missing(v) for k, v in wanted.items()), named=True)


def loop(
    tasks: Groups, statistic: Callable[[Sequence[Sequence[Numbers]]], float], resamples: int
) -> tuple[float, float]:
    """The ends of the 95% interval, drawn group by group; the statistic takes the samples of each task."""
    rng = random.Random(7)
    values = []
    for _ in range(resamples):
        drawn = []
        for groups in tasks.values():
            names = list(groups)
            drawn.append([sample for _ in names for sample in groups[rng.choice(names)]])
        values.append(statistic(drawn))
    return tuple(np.percentile(values, [2.5, 97.5]))


class TestValues:
    def test_a_mean_its_difference_and_its_bytes(self) -> None:
        rows = simple({("full", 1.0): [1, 1, 0, 1], SOME: [1, 0, 0, 0.5]})
        found = one(summarise(rows), task="cups", policy="h2o", metric="quality")
        assert (found["value"], found["difference"], found["kept"], found["samples"]) == (0.375, -0.375, 0.2, 4)
        full = one(summarise(rows), task="cups", policy="full", metric="quality")
        assert (full["value"], full["difference"], full["difference_low"], full["kept"]) == (0.75, None, None, 1.0)

    def test_tasks_count_alike_whatever_their_samples(self) -> None:
        few = simple({("full", 1.0): [1, 1], SOME: [0, 0]}, task="few").with_columns(
            full_kv_bytes=pl.lit(500, pl.Int64)
        )
        many = simple({("full", 1.0): [1] * 10, SOME: [1] * 10}, task="many")
        found = one(summarise(pl.concat([few, many])), task="all", policy="h2o", metric="quality")
        assert (found["value"], found["difference"], found["samples"]) == (0.5, -0.5, 12)
        assert found["kept"] == pytest.approx((200 / 500 + 200 / 1000) / 2)

    def test_bytes_are_summed_over_samples(self) -> None:
        rows = simple({("full", 1.0): [1, 1], SOME: [0, 0]}).with_columns(
            kv_bytes=pl.when(pl.col("sample") == 0).then(100).otherwise(150),
            full_kv_bytes=pl.when(pl.col("sample") == 0).then(100).otherwise(900),
        )
        assert one(summarise(rows), task="cups", policy="h2o")["kept"] == 0.25

    def test_perplexity_is_a_ratio_of_sums(self) -> None:
        def made(policy: str, keep: float, task: str, nats: Numbers, scored: Numbers) -> list[dict[str, Any]]:
            return [
                {"task": task, "sample": n, "policy": policy, "keep": keep, "nats": a, "scored": b}
                for n, (a, b) in enumerate(zip(nats, scored, strict=True))
            ]

        rows = frame(
            [
                *made("full", 1.0, "one", [1, 30], [1, 10]),
                *made("h2o", 0.2, "one", [2, 33], [1, 10]),
                *made("full", 1.0, "two", [4, 8], [2, 2]),
                *made("h2o", 0.2, "two", [4, 10], [2, 2]),
            ]
        )
        summary = summarise(rows)
        found = one(summary, task="one", policy="h2o", metric="perplexity")
        assert found["value"] == pytest.approx(math.exp(35 / 11))
        assert found["difference"] == pytest.approx(math.exp(35 / 11) - math.exp(31 / 11))
        over = one(summary, task="all", policy="h2o", metric="perplexity")
        assert over["value"] == pytest.approx(math.exp((35 / 11 + 14 / 4) / 2))
        assert over["difference"] == pytest.approx(math.exp((35 / 11 + 3.5) / 2) - math.exp((31 / 11 + 3) / 2))

    def test_a_likelihood_beyond_floats_is_no_overflow(self) -> None:
        rows = frame(
            [
                {"task": "t", "sample": n, "policy": policy, "keep": keep, "nats": nats, "scored": 1}
                for policy, keep, nats in (("full", 1.0, 2.0), (*SOME, 5000.0))
                for n in range(3)
            ]
        )
        found = one(summarise(rows), task="t", policy="h2o", metric="perplexity")
        assert found["value"] > 1e80
        assert found["low"] == found["value"] == found["high"]

    def test_same_is_over_the_tokens_of_the_full_cache(self) -> None:
        rows = frame(
            [
                {"task": "t", "sample": 0, "policy": "full", "keep": 1.0, "new_tokens": 8},
                {"task": "t", "sample": 0, "policy": "h2o", "keep": 0.2, "same": 2, "new_tokens": 4},
                {"task": "t", "sample": 1, "policy": "full", "keep": 1.0, "same": 0, "new_tokens": 0},
                {"task": "t", "sample": 1, "policy": "h2o", "keep": 0.2, "same": 0, "new_tokens": 4},
            ]
        )
        found = one(summarise(rows), task="t", policy="h2o", metric="same")
        assert (found["value"], found["samples"]) == (0.25, 1)

    def test_arms_tasks_and_metrics_keep_their_order(self) -> None:
        summary = summarise(realistic(tasks=("z", "a"), policies=("tova", "h2o"), own=("mine",), samples=4))
        assert summary["task"].unique(maintain_order=True).to_list() == ["z", "a", "all"]
        arms = summary.select("policy", "keep").unique(maintain_order=True).rows()
        assert arms == [("full", 1.0), ("tova", 0.5), ("tova", 0.2), ("h2o", 0.5), ("h2o", 0.2), ("mine", None)]
        order = [list(METRICS).index(name) for name in summary.filter(pl.col("task") == "z")["metric"]]
        assert [order[n] for n in range(9)] == sorted(order[:9])


class TestMissing:
    def test_a_metric_that_nobody_has_is_left_out(self) -> None:
        summary = summarise(simple({("full", 1.0): [1, 1], SOME: [1, 0]}))
        assert set(summary["metric"]) == {"quality"}

    def test_differences_are_on_samples_that_both_have(self) -> None:
        rows = simple({("full", 1.0): [0.2, None, 0.6, 1.0], SOME: [0.1, 0.9, None, 0.5]}, metric="mass")
        found = one(summarise(rows), task="cups", policy="h2o", metric="mass")
        assert found["samples"] == 3
        assert found["value"] == pytest.approx(0.5)
        assert found["difference"] == pytest.approx((0.1 + 0.5 - 0.2 - 1.0) / 2)

    def test_without_a_value_of_full_there_is_no_difference(self) -> None:
        rows = simple({("full", 1.0): [None, None], SOME: [0.1, 0.9]}, metric="error")
        summary = summarise(rows)
        assert set(summary["policy"]) == {"h2o"}
        assert one(summary, task="all")["difference_low"] is None

    def test_groups_that_lack_the_metric_are_not_drawn(self) -> None:
        values = [0.0, 1.0] + [None] * 38
        rows = simple({("full", 1.0): [1.0] * 40, SOME: values, ("tova", 0.2): [0.5] * 40}, metric="mass")
        found = one(summarise(rows), task="cups", policy="h2o", metric="mass")
        assert (found["low"], found["value"], found["high"], found["groups"]) == (0.0, 0.5, 1.0, 2)

    def test_an_arm_without_a_task_is_not_in_the_mean(self) -> None:
        first = simple({("full", 1.0): [1, 1], SOME: [1, 1]}, task="first")
        second = simple({("full", 1.0): [1, 1], ("tova", 0.2): [0, 0]}, task="second")
        summary = summarise(pl.concat([first, second]))
        assert summary.filter(pl.col("task") == "all")["policy"].to_list() == ["full"]
        assert one(summary, task="first", policy="h2o")["value"] == 1.0

    def test_a_task_without_the_metric_does_not_count(self) -> None:
        spoken = simple({("full", 1.0): [1, 1], SOME: [1, 0]}, metric="rouge", task="spoken")
        scored = simple({("full", 1.0): [1, 1], SOME: [0, 0]}, task="scored")
        assert one(summarise(pl.concat([spoken, scored])), task="all", policy="h2o", metric="rouge")["value"] == 0.5


class TestIntervals:
    def test_two_groups_have_a_known_distribution(self) -> None:
        rows = simple({("full", 1.0): [0, 0, 1], SOME: [0, 0, 1]}, groups=["a", "a", "b"])
        found = one(summarise(rows), task="cups", policy="h2o")
        assert (found["low"], found["high"], found["groups"]) == (0.0, 1.0, 2)

    def test_they_are_those_of_a_loop_over_groups(self) -> None:
        rng = random.Random(3)
        tasks: Groups = {
            task: {f"g{g}": [(rng.random() ** 2,) for _ in range(rng.randint(1, 5))] for g in range(groups)}
            for task, groups in (("one", 6), ("two", 9))
        }
        rows = frame(
            [
                {"task": task, "sample": 10 * g + n, "group": name, "policy": "full", "quality": value}
                for task, groups in tasks.items()
                for g, (name, samples) in enumerate(groups.items())
                for n, (value,) in enumerate(samples)
            ]
        )
        summary = summarise(rows, resamples=8_000)

        def mean(drawn: Sequence[Sequence[Numbers]]) -> float:
            return float(np.mean([np.mean(samples) for samples in drawn]))

        for task in ("one", "two", "all"):
            low, high = loop(tasks if task == "all" else {task: tasks[task]}, mean, 5_000)
            found = one(summary, task=task, metric="quality")
            assert found["low"] == pytest.approx(low, abs=0.05 * (high - low))
            assert found["high"] == pytest.approx(high, abs=0.05 * (high - low))

    def test_so_are_those_of_differences_of_perplexity_over_tasks(self) -> None:
        rng = random.Random(4)

        def sample() -> Numbers:
            scored = rng.randint(1, 9)
            nats = scored * rng.uniform(0.5, 2)
            return nats, scored, nats + scored * rng.uniform(-0.1, 1.0)

        tasks: Groups = {
            task: {f"g{g}": [sample() for _ in range(rng.randint(1, 4))] for g in range(8)} for task in ("one", "two")
        }
        rows = frame(
            [
                {
                    "task": task,
                    "sample": 10 * g + n,
                    "group": name,
                    "policy": policy,
                    "keep": keep,
                    "nats": numbers[place],
                    "scored": numbers[1],
                }
                for policy, keep, place in (("full", 1.0, 0), (*SOME, 2))
                for task, groups in tasks.items()
                for g, (name, samples) in enumerate(groups.items())
                for n, numbers in enumerate(samples)
            ]
        )

        def difference(drawn: Sequence[Sequence[Numbers]]) -> float:
            full, ours = (
                float(np.mean([sum(s[place] for s in task) / sum(s[1] for s in task) for task in drawn]))
                for place in (0, 2)
            )
            return math.exp(ours) - math.exp(full)

        low, high = loop(tasks, difference, 4_000)
        found = one(summarise(rows, resamples=8_000), task="all", policy="h2o", metric="perplexity")
        assert found["difference_low"] == pytest.approx(low, abs=0.05 * (high - low))
        assert found["difference_high"] == pytest.approx(high, abs=0.05 * (high - low))

    def test_they_hold_the_truth_where_samples_of_a_group_are_alike(self) -> None:
        rng = np.random.default_rng(5)
        simulations, groups, each = 40, 16, 4

        def made(shared: bool) -> pl.DataFrame:
            rows = []
            for number in range(simulations):
                effects = 0.5 + 0.2 * np.repeat(rng.standard_normal(groups), each)
                values = effects + 0.05 * rng.standard_normal(groups * each)
                names = [f"g{n // each}" if shared else "" for n in range(groups * each)]
                rows.append(simple({("full", 1.0): values.tolist()}, task=f"t{number}", groups=names))
            return summarise(pl.concat(rows), resamples=300).filter(pl.col("task") != "all")

        def coverage(summary: pl.DataFrame) -> float:
            return float(((summary["low"] <= 0.5) & (summary["high"] >= 0.5)).mean())

        clustered, naive = made(True), made(False)
        assert coverage(clustered) >= 0.85
        assert coverage(naive) <= 0.75
        assert (clustered["high"] - clustered["low"]).mean() > 1.6 * (naive["high"] - naive["low"]).mean()

    def test_a_constant_shift_has_no_width(self) -> None:
        rng = np.random.default_rng(6)
        full = rng.random(40)
        rows = simple({("full", 1.0): full.tolist(), SOME: (full - 0.25).tolist()})
        shuffled = rows.sample(fraction=1, shuffle=True, seed=1)
        found = one(summarise(shuffled), task="cups", policy="h2o")
        assert found["high"] - found["low"] > 0.1
        ends = [found[f"difference{end}"] for end in ("_low", "", "_high")]
        assert ends[0] == ends[1] == ends[2] == pytest.approx(-0.25)

    def test_one_group_says_nothing(self) -> None:
        rows = simple({("full", 1.0): [1, 0, 1], SOME: [0, 0, 1]}, groups=["a"] * 3)
        for task in ("cups", "all"):
            found = one(summarise(rows), task=task, policy="h2o")
            assert found["low"] == found["value"] == found["high"] == pytest.approx(1 / 3)
            assert found["groups"] == 0

    def test_without_variation_there_is_no_width(self) -> None:
        rows = simple({("full", 1.0): [0.1] * 7, SOME: [0.3] * 7}, groups=["a", "a", "b", "c", "c", "c", "d"])
        found = one(summarise(rows), task="cups", policy="h2o")
        assert found["low"] == found["value"] == found["high"]
        assert found["difference_low"] == found["difference_high"] == pytest.approx(0.2)

    def test_a_task_of_one_group_stays_as_it_is(self) -> None:
        fixed = simple({("full", 1.0): [1, 0]}, task="fixed", groups=["a", "a"])
        drawn = simple({("full", 1.0): [0, 0, 1]}, task="drawn", groups=["a", "a", "b"])
        found = one(summarise(pl.concat([fixed, drawn])), task="all")
        assert (found["low"], found["high"], found["groups"]) == (0.25, 0.75, 2)

    def test_an_empty_group_is_a_group_of_its_own(self) -> None:
        rows = simple({("full", 1.0): [0, 1, 0, 1]})
        found = one(summarise(rows), task="cups")
        assert found["groups"] == 4
        assert found["low"] < found["high"]

    def test_the_group_is_the_one_of_full(self) -> None:
        rows = simple({("full", 1.0): [0, 1], SOME: [0, 1]}, groups=["a", "b"])
        other = rows.with_columns(group=pl.when(pl.col("policy") == "full").then("group").otherwise(pl.lit("x")))
        assert_frame_equal(summarise(rows), summarise(other))

    def test_the_seed_decides_and_the_order_of_rows_does_not(self) -> None:
        rows = realistic(tasks=("b", "a"), policies=("h2o",), samples=20)
        summary = summarise(rows)
        assert_frame_equal(summary, summarise(rows))
        keys = ["task", "policy", "keep", "metric"]
        shuffled = summarise(rows.sample(fraction=1, shuffle=True, seed=2))
        assert_frame_equal(summary.sort(keys), shuffled.sort(keys))
        assert not summary.equals(summarise(rows, seed=1))

    def test_batches_of_resamples_are_one_draw(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rows = realistic(tasks=("one",), samples=12)
        whole = summarise(rows, resamples=300)
        monkeypatch.setattr("kvpolicy_hf.evaluate.intervals.CELLS", 100)
        assert_frame_equal(whole, summarise(rows, resamples=300))


class TestCompare:
    ROWS = simple(
        {
            ("full", 1.0): [1.0] * 8,
            ("ours", 0.2): [0.9, 0.8, 0.9, 0.7, 0.9, 0.8, 0.6, 0.8],
            ("theirs", 0.5): [0.5, 0.4, 0.6, 0.5, 0.4, 0.3, 0.5, 0.5],
            ("own", None): [0.9, 0.8, 0.9, 0.7, 0.9, 0.8, 0.6, 0.7],
        }
    )

    def test_the_better_arm_is_better_and_the_other_worse(self) -> None:
        forth = one(compare(self.ROWS, "ours", 0.2, "theirs", 0.5), task="all")
        back = one(compare(self.ROWS, "theirs", 0.5, "ours", 0.2), task="all")
        assert (forth["value"], forth["baseline"]) == (pytest.approx(0.8), pytest.approx(0.4625))
        assert (forth["verdict"], back["verdict"]) == ("better", "worse")
        assert forth["difference_low"] == pytest.approx(-back["difference_high"])
        assert forth["difference_low"] > 0

    def test_nearly_the_same_is_undecided(self) -> None:
        assert one(compare(self.ROWS, "own", None, "ours", 0.2), task="all")["verdict"] == "undecided"

    def test_less_is_better_for_errors(self) -> None:
        rows = self.ROWS.rename({"quality": "error", "error": "quality"}).select(self.ROWS.columns)
        found = compare(rows, "ours", 0.2, "theirs", 0.5, "error")
        assert found["verdict"].to_list() == ["worse", "worse"]

    def test_one_group_decides_nothing(self) -> None:
        rows = self.ROWS.with_columns(group=pl.lit("a"))
        found = one(compare(rows, "ours", 0.2, "theirs", 0.5), task="all")
        assert (found["difference_low"], found["verdict"]) == (found["difference"], "undecided")

    def test_against_full_it_is_the_summary(self) -> None:
        rows = realistic(policies=("h2o",), keeps=(0.2,), samples=8)
        columns = ["task", "value", "low", "high", "difference", "difference_low", "difference_high", "kept"]
        summary = summarise(rows, resamples=500).filter(pl.col("policy") == "h2o")
        for metric in ("quality", "perplexity", "same"):
            ours = compare(rows, "h2o", 0.2, "full", 1.0, metric, resamples=500)
            assert_frame_equal(ours.select(columns), summary.filter(pl.col("metric") == metric).select(columns))

    def test_only_common_samples_count(self) -> None:
        rows = simple(
            {("full", 1.0): [1.0] * 4, ("a", 0.2): [0.1, 0.2, None, 0.4], ("b", 0.2): [0.0, 0.0, 1.0, None]},
            metric="mass",
        )
        found = one(compare(rows, "a", 0.2, "b", 0.2, "mass"), task="all")
        assert (found["samples"], found["value"], found["baseline"]) == (2, pytest.approx(0.15), 0.0)

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (("ours", 0.2, "theirs", 0.5, "wit"), r"no metric 'wit'. Hint: the metrics are quality, correct,"),
            (("mine", 0.2, "theirs", 0.5), r"no policy 'mine' among the rows. Hint: they have full, ours, theirs, own"),
            (("ours", 0.3, "theirs", 0.5), r"no 'ours' at keep=0.3 among the rows. Hint: its budgets are 0.2"),
            (("ours", None, "theirs", 0.5), r"no 'ours' at its own budget"),
            (("own", 0.2, "theirs", 0.5), r"no 'own' at keep=0.2 among the rows. Hint: its budgets are None"),
            (("ours", 0.2, "ours", 0.2), r"'ours' at keep=0.2 is compared with itself"),
            (("ours", 0.2, "theirs", 0.5, "mass"), r"share no sample that has 'mass'"),
        ],
    )
    def test_what_is_not_there_is_named(self, arguments: tuple[Any, ...], says: str) -> None:
        with pytest.raises(PolicyError, match=says):
            compare(self.ROWS, *arguments)


class TestPareto:
    @pytest.mark.parametrize("metric", ["quality", "error"])
    def test_none_of_them_is_beaten_and_all_others_are(self, metric: str) -> None:
        rng = np.random.default_rng(8)
        summary = pl.DataFrame(
            {
                "task": "all",
                "policy": [f"p{n}" for n in range(60)],
                "metric": metric,
                "value": rng.integers(0, 8, 60) / 8,
                "kept": rng.integers(1, 9, 60) / 8,
            }
        )
        sign = METRICS[metric].better
        arms = list(zip(summary["policy"], summary["value"] * sign, summary["kept"], strict=True))
        expected = {
            name
            for name, value, kept in arms
            if not any(v >= value and k <= kept and (v > value or k < kept) for _, v, k in arms)
        }
        front = pareto(summary, metric=metric)
        assert set(front["policy"]) == expected
        assert front["kept"].is_sorted()

    def test_a_task_or_metric_that_is_not_there_is_named(self) -> None:
        summary = summarise(simple({("full", 1.0): [1, 1]}))
        with pytest.raises(PolicyError, match=r"no 'quality' on task 'saucers'\. Hint: it is there on: cups, all"):
            pareto(summary, "saucers")
        with pytest.raises(PolicyError, match="no metric 'wit'"):
            pareto(summary, metric="wit")


class TestRefused:
    GOOD = simple({("full", 1.0): [1.0] * 9, SOME: [0.5] * 9})

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (lambda rows: rows.drop("kv_bytes", "group"), "lack the columns group, kv_bytes; they have: task,"),
            (lambda rows: rows.clear(), "there are no rows"),
            (lambda rows: rows.with_columns(group=pl.lit(None, pl.String)), "18 rows have no group"),
            (lambda rows: rows.with_columns(task=pl.lit("all")), "a task is called 'all'"),
            (lambda rows: pl.concat([rows, rows.tail(1)]), "'h2o' at keep=0.2 has sample 8 of 'cups' more than once"),
            (
                lambda rows: rows.filter(pl.col("policy") != "full"),
                "'full', the baseline, lacks sample 0 of 'cups', .*4 more",
            ),
            (
                lambda rows: rows.filter((pl.col("policy") == "full") | ~pl.col("sample").is_in([3, 5])),
                "'h2o' at keep=0.2 lacks sample 3 of 'cups', sample 5 of 'cups', so its means.*Hint: run what",
            ),
            (
                lambda rows: pl.concat([rows, rows.filter(pl.col("policy") == "full").with_columns(keep=pl.lit(0.5))]),
                "'full', the baseline, has 2 budgets",
            ),
            (
                lambda rows: rows.with_columns(nats=pl.when(pl.col("sample") == 2).then(math.nan)),
                "nats is nan in sample 2 of 'cups' for 'full' at keep=1, and not finite in 2 rows.*null stands for",
            ),
            (lambda rows: rows.with_columns(quality=pl.lit(math.inf)), "quality is inf in sample 0"),
        ],
    )
    def test_rows_that_do_not_fit(self, change: Callable[[pl.DataFrame], pl.DataFrame], says: str) -> None:
        with pytest.raises(KVPolicyError, match=says):
            summarise(change(self.GOOD))

    @pytest.mark.parametrize("resamples", [0, 99])
    def test_too_few_resamples(self, resamples: int) -> None:
        with pytest.raises(PolicyError, match=f"resamples={resamples} are too few.*Hint: 100 or more"):
            summarise(self.GOOD, resamples=resamples)

    def test_columns_without_a_value_may_have_no_type(self) -> None:
        rows = self.GOOD.with_columns(mass=pl.lit(None), nats=pl.lit(None), scored=pl.lit(None), same=pl.lit(None))
        assert_frame_equal(summarise(rows), summarise(self.GOOD))
