"""Charts: what is in them, that nothing is cut off or overlaps, and what is refused."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import polars as pl
import pytest
from made_rows import frame, realistic, simple
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from kvpolicy import PolicyError
from kvpolicy_hf.evaluate.charts import by_task, differences, draw_charts, png, quality_against_bytes
from kvpolicy_hf.evaluate.drawing import BETTER, COLOURS, FAINT, GREY, WORSE
from kvpolicy_hf.evaluate.summary import summarise
from kvpolicy_hf.evaluate.texts import short

MANY = [
    *("elastic_cache", "h2o", "streaming_llm", "snapkv", "pyramid_kv", "ada_kv", "tova", "cam", "k_norm", "key_diff"),
    *("look_m", "d2o", "kv_merger", "keep_kv", "vl_cache", "air_cache", "expected_attention", "adore", "random"),
    *("$\\frac$ is no formula", "a_policy_with_a_name_that_has_no_end(window=8, kernel=7)"),
]


@pytest.fixture(scope="module")
def many() -> pl.DataFrame:
    """A summary of 22 policies and seven tasks; some names are long, and one looks like a formula."""
    tasks = (
        "photo-where",
        "grid-row",
        "needle-1k",
        "pydoc",
        "photo-password",
        "a-task-whose-name-is-much-too-long",
        "z",
    )
    rows = realistic(tasks=tasks, policies=MANY, own=("mine",), samples=2)
    rest = ("correct", "rouge", "same", "agreement", "nats", "mass", "error", "seconds")
    return summarise(rows.with_columns(pl.lit(None).alias(name) for name in rest), resamples=100)


@pytest.fixture(scope="module")
def lines(many: pl.DataFrame) -> Figure:
    return quality_against_bytes(many)


@pytest.fixture(scope="module")
def few() -> pl.DataFrame:
    return summarise(realistic(tasks=("needle",), samples=8), resamples=100)


def texts(figure: Figure) -> list[Text]:
    """What can be read: also matplotlib's labels of ticks, but for those outside the view, which it does not draw."""
    figure.draw_without_rendering()
    found = [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    for axes in figure.axes:
        found += [*axes.texts, axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks():
                found += [label for label in (tick.label1, tick.label2) if low <= tick.get_loc() <= high]
    return [text for text in found if text.get_visible() and text.get_text()]


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in texts(figure)]


def assert_readable(figure: Figure) -> None:
    """No text is cut off or over another one, and none is small."""
    page = figure.bbox
    boxes = []
    for text in texts(figure):
        box = text.get_window_extent()
        what = repr(text.get_text())
        assert page.x0 <= box.x0 < box.x1 <= page.x1, f"{what} is cut off at a side"
        assert page.y0 <= box.y0 < box.y1 <= page.y1, f"{what} is cut off above or below"
        assert text.get_fontsize() >= 7, f"{what} is small"
        if not text.get_rotation():
            boxes.append((box.x0, box.x1, box.y0 + 2, box.y1 - 2, what))  # an em box has air above and below
    x0, x1, y0, y1 = (np.array([box[n] for box in boxes]) for n in range(4))
    over = (x0 < x1[:, None]) & (x0[:, None] < x1) & (y0 < y1[:, None]) & (y0[:, None] < y1)
    over &= ~np.eye(len(boxes), dtype=bool)
    assert not over.any(), [f"{boxes[a][4]} over {boxes[b][4]}" for a, b in np.argwhere(over)[:4]]


class TestReadable:
    def test_many_policies_and_tasks(self, many: pl.DataFrame, lines: Figure) -> None:
        for figure in (lines, differences(many, 0.2), by_task(many, 0.5)):
            assert_readable(figure)

    @pytest.mark.parametrize("metric", ["perplexity", "error"])
    def test_few_policies_and_one_task(self, few: pl.DataFrame, metric: str) -> None:
        for figure in (quality_against_bytes(few, metric), differences(few, 0.2, metric), by_task(few, 0.5, metric)):
            assert_readable(figure)

    @pytest.mark.parametrize("nats", [0.9, 2.0, 9.0, 30.0, 5000.0])
    def test_perplexities_of_any_range(self, nats: float) -> None:
        arms = [("full", 1.0, 0.8), ("h2o", 0.2, nats), ("h2o", 0.5, nats / 2)]
        rows = frame(
            [
                {"task": "t", "sample": n, "policy": policy, "keep": keep, "nats": each + n / 9, "scored": 1}
                for policy, keep, each in arms
                for n in range(3)
            ]
        )
        summary = summarise(rows, resamples=100)
        figure = quality_against_bytes(summary, "perplexity")
        assert_readable(figure)
        axes = figure.axes[0]
        low, high = axes.get_ylim()
        assert sum(low <= tick <= high for tick in axes.get_yticks()) >= 2

    def test_they_are_1200_pixels_wide_on_white(self, few: pl.DataFrame) -> None:
        for figure in (quality_against_bytes(few), differences(few, 0.2), by_task(few, 0.2)):
            assert figure.get_size_inches()[0] * 100 == 1200
        with Image.open(BytesIO(png(figure))) as image:
            assert image.format == "PNG"
            assert image.width == 1800
            assert image.convert("RGB").getpixel((2, 2)) == (255, 255, 255)


class TestLines:
    def test_every_policy_has_its_name_beside_the_panel_and_every_task_a_panel(self, lines: Figure) -> None:
        assert len(lines.axes) == 8
        shown = words(lines)
        for name in ("mine", "full", "$\\frac$ is no formula", short(MANY[-1]), *MANY[:19]):
            assert shown.count(name) == 1, name

    def test_those_to_highlight_are_in_colour_and_the_others_grey(self, few: pl.DataFrame) -> None:
        colours = {
            text.get_text(): text.get_color() for text in texts(quality_against_bytes(few, highlight=["random"]))
        }
        assert colours["random"] == COLOURS[0]
        assert colours["h2o"] == colours["snapkv"] == FAINT

    def test_without_a_choice_those_on_the_front_stand_out(self, many: pl.DataFrame, lines: Figure) -> None:
        bright = [text.get_text() for text in texts(lines) if to_hex(text.get_color()) in COLOURS]
        assert 1 <= len(bright) <= 6
        best = many.filter(pl.col("task") == "all", pl.col("metric") == "quality", pl.col("policy") != "full")
        assert short(best.sort("value")["policy"].last()) in bright

    def test_few_policies_are_all_in_colour(self, few: pl.DataFrame) -> None:
        lines = [to_hex(line.get_color()) for line in quality_against_bytes(few).axes[0].lines]
        assert GREY not in lines
        assert set(COLOURS[:3]) <= set(lines)

    def test_bars_are_the_intervals(self) -> None:
        rows = simple({("full", 1.0): [1, 1, 0, 1], ("h2o", 0.2): [1, 0, 0, 1]})
        summary = summarise(rows, resamples=200)
        found = summary.filter(pl.col("policy") == "h2o", pl.col("task") == "all").row(0, named=True)
        bars = quality_against_bytes(summary).axes[0].collections[0].get_segments()
        np.testing.assert_allclose(bars, [[[found["kept"], found["low"]], [found["kept"], found["high"]]]])

    def test_full_alone_is_a_line(self) -> None:
        figure = quality_against_bytes(summarise(simple({("full", 1.0): [1, 0]})))
        assert "full" in words(figure)

    def test_perplexity_is_on_a_logarithmic_scale(self, few: pl.DataFrame) -> None:
        assert [axes.get_yscale() for axes in quality_against_bytes(few, "perplexity").axes] == ["log", "log"]


class TestDifferences:
    ROWS = simple(
        {
            ("full", 1.0): [0.5] * 6,
            ("worst", 0.2): [0.1, 0.2, 0.1, 0.2, 0.1, 0.0],
            ("best", 0.2): [0.9, 0.8, 0.9, 1.0, 0.9, 0.7],
            ("even", 0.2): [0.4, 0.6, 0.5, 0.5, 0.3, 0.7],
            ("own", None): [0.9, 0.8, 0.9, 1.0, 0.9, 0.8],
            ("elsewhere", 0.7): [1.0] * 6,
        }
    )

    def marks(self, figure: Figure) -> list[str]:
        return [line.get_color() for line in figure.axes[0].lines if line.get_marker() == "o"]

    def test_the_best_is_on_top_and_colours_say_what_the_intervals_do(self) -> None:
        figure = differences(summarise(self.ROWS), 0.2)
        names = ["own (own budget)", "best", "even", "worst"]
        assert [word for word in words(figure) if word in names] == names
        assert self.marks(figure) == [BETTER, BETTER, FAINT, WORSE]
        assert "elsewhere" not in words(figure)

    def test_less_is_better_for_errors(self) -> None:
        rows = self.ROWS.rename({"quality": "error", "error": "quality"}).select(self.ROWS.columns)
        assert self.marks(differences(summarise(rows), 0.2, "error")) == [BETTER, FAINT, WORSE, WORSE]

    def test_one_group_decides_nothing(self) -> None:
        summary = summarise(self.ROWS.with_columns(group=pl.lit("a")))
        assert self.marks(differences(summary, 0.2)) == [FAINT] * 4

    def test_policies_with_own_budgets_may_be_alone(self) -> None:
        assert "own (own budget)" in words(differences(summarise(self.ROWS), None))


class TestTasks:
    def test_numbers_are_the_values_and_what_is_missing_is_blank(self) -> None:
        rows = pl.concat(
            [
                simple({("full", 1.0): [1, 1], ("a", 0.2): [1, 0], ("b", 0.2): [1, 1]}, task="one"),
                simple({("full", 1.0): [0, 1], ("a", 0.2): [0, 0]}, task="two"),
            ]
        )
        mean, tasks = by_task(summarise(rows), 0.2).axes
        assert [text.get_text() for text in mean.get_yticklabels()] == ["full", "a", "b"]
        assert [text.get_text() for text in mean.texts] == ["75.0%", "25.0%"]
        assert [text.get_text() for text in tasks.texts] == ["100.0%", "50.0%", "50.0%", "0.0%", "100.0%"]

    def test_names_that_are_cut_alike_stay_apart(self) -> None:
        names = [f"elastic_cache(last=8, anchors={n}, window=16, kernel=7)" for n in (1, 2)]
        rows = simple({("full", 1.0): [1, 1], (names[0], 0.2): [1, 0], (names[1], 0.2): [0, 0]})
        assert short(names[0]) == short(names[1])
        mean = by_task(summarise(rows), 0.2).axes[0]
        assert [text.get_text() for text in mean.texts] == ["100.0%", "50.0%", "0.0%"]

    @pytest.mark.parametrize("metric", ["quality", "error"])
    def test_the_darker_the_better(self, metric: str) -> None:
        rows = simple({("full", 1.0): [0.3, 0.3], ("a", 0.2): [0.9, 0.9], ("b", 0.2): [0.6, 0.6]}, metric=metric)
        summary = summarise(rows)
        axes = by_task(summary, 0.2, metric).axes[0]
        names = [text.get_text() for text in axes.get_yticklabels()]
        shades = dict(zip(names, axes.images[0].get_array()[:, 0, :3].sum(axis=-1), strict=True))
        assert names == ["full", "a", "b"] if metric == "quality" else names == ["full", "b", "a"]
        assert (shades["a"] < shades["b"] < shades["full"]) == (metric == "quality")


class TestAll:
    @pytest.fixture(autouse=True)
    def _quick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("kvpolicy_hf.evaluate.charts.png", lambda figure: str(figure).encode())

    def test_each_has_a_caption(self, few: pl.DataFrame) -> None:
        drawn = draw_charts(few)
        assert [caption for caption, _ in drawn] == [
            "Quality against the share of K/V bytes kept",
            "Perplexity against the share of K/V bytes kept",
            "Difference to the full cache at a budget of 50%",
            "Quality by task at a budget of 50%",
            "Difference to the full cache at a budget of 20%",
            "Quality by task at a budget of 20%",
        ]
        assert all(data.startswith(b"Figure") for _, data in drawn)

    def test_what_nobody_has_over_all_tasks_is_left_out(self) -> None:
        rows = pl.concat(
            [
                simple({("full", 1.0): [1, 1], ("a", 0.2): [1, 0]}, task="one"),
                simple({("full", 1.0): [0, 1]}, task="two"),
            ]
        )
        captions = [caption for caption, _ in draw_charts(summarise(rows), highlight=["a", "failed"])]
        assert captions == ["Quality against the share of K/V bytes kept", "Quality by task at a budget of 20%"]

    def test_only_own_budgets(self) -> None:
        rows = simple({("full", 1.0): [1, 1], ("a", None): [1, 0]})
        captions = [caption for caption, _ in draw_charts(summarise(rows))]
        assert captions[1] == "Difference to the full cache at budgets of their own"


class TestRefused:
    def test_what_is_not_there_is_named(self, few: pl.DataFrame) -> None:
        with pytest.raises(PolicyError, match=r"highlight names 'cam', which .* Hint: it has h2o, snapkv, random\."):
            quality_against_bytes(few, highlight=["h2o", "cam"])
        for draw in (differences, by_task):
            with pytest.raises(PolicyError, match=r"keep=0.3: no policy was run at this budget. Hint: .* 0.5, 0.2\."):
                draw(few, 0.3)
            with pytest.raises(PolicyError, match="no metric 'wit'"):
                draw(few, 0.2, "wit")
        with pytest.raises(PolicyError, match="no metric 'wit'"):
            quality_against_bytes(few, "wit")
        with pytest.raises(PolicyError, match=r"at keep=0\.2 nothing has a difference to 'full' .* on task 'thread'"):
            differences(few, 0.2, task="thread")
        with pytest.raises(PolicyError, match=r"no policy at keep=0\.2 has 'mass'"):
            by_task(few.filter(pl.col("metric") != "mass"), 0.2, "mass")
