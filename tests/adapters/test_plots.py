"""The pictures: what the watch notes against the tables themselves, and what is drawn against what was noted."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from driving import Request, Trace, drive, make_request, with_image
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.text import Text
from models import IMAGE_SIDE, LLAMA, LLAVA, QWEN_VL, batch, llava_row, new_tokens, qwen_vl_row, tables, text_row
from PIL import Image

import kvpolicy
from kvpolicy import CacheView, KVPolicyError, Phase, Plan, Policy, Report, Step, backend_by_name
from kvpolicy_hf import PolicyCache, enable
from kvpolicy_hf.demo.cases import drawn_cases
from kvpolicy_hf.demo.prompts import encode
from kvpolicy_hf.loading import load_model
from kvpolicy_hf.plots import (
    Change,
    Fate,
    History,
    Layout,
    PlotError,
    Watch,
    budgets,
    mass_over_steps,
    patches,
    seen_by_model,
    tokens_by_layers,
    tokens_by_steps,
)
from kvpolicy_hf.plots.colours import BACKGROUND, DROPPED, KEPT, MERGED
from kvpolicy_hf.simulate import Replay, record, replay

PADDING = (0, 5)
ACTING = [
    "h2o",
    "elastic_cache",
    "elastic_cache(sets='head')",
    "streaming_llm",
    "pyramid_kv(window=4)",
    "ada_kv(window=4)",
    "vl_cache",
    "look_m",
    "d2o",
    "kv_merger",
    "adore(recall=3)",
    "full",
]
# Each row folds into one other at most, and hands on what it counts: the table itself says how many tokens a row holds.
FOLDING = ["elastic_cache", "elastic_cache(merge='cluster')", "look_m", "d2o", "kv_merger"]


def policy_of(name: str, keep: float = 0.3) -> Policy:
    return kvpolicy.from_text(name, keep=keep)


def request_of(seed: int = 0) -> Request:
    """Two batch rows, the second with padding, an image in both; three layers of two heads."""
    made = make_request(seed=seed, layers=3, batch=2, heads=2, groups=2, prompt=30, steps=9, padding=PADDING)
    return with_image(made, 8, 20)


@functools.cache
def watched(name: str, row: int, **settings: Any) -> tuple[Trace, History]:
    watch = Watch(row)
    trace = drive(policy_of(name), request_of(), listen=watch, **settings)
    return trace, watch.history(trace.session.report())


def in_table(trace: Trace, number: int, layer: int, row: int, tokens: int) -> np.ndarray:
    """bool [H, T]: the tokens whose positions stand in the table after a pass, read from the table."""
    heads = trace.passes[number].tables[layer][row]
    made = np.zeros((len(heads), tokens), bool)
    for head, table in enumerate(heads):
        made[head, np.array(table.positions) - PADDING[row]] = True
    return made


class TestWatch:
    @pytest.mark.parametrize("row", [0, 1])
    @pytest.mark.parametrize("name", ACTING)
    def test_what_it_says_is_kept_is_what_the_tables_hold_at_every_step(self, name: str, row: int) -> None:
        trace, history = watched(name, row)
        prompt = 30 - PADDING[row]
        assert (history.tokens, history.layers) == (prompt + 9, 3)
        assert history.prompt == (None if name == "full" else prompt)
        for layer in range(3):
            for step in range(10):
                fate = history.fate(layer, after=prompt + step)
                expected = in_table(trace, step, layer, row, prompt + step)
                np.testing.assert_array_equal(fate.own, expected[: len(fate.own)])
        assert (history.fate(0).own.all()) == (name == "full")

    @pytest.mark.parametrize("row", [0, 1])
    @pytest.mark.parametrize("name", FOLDING)
    def test_every_row_holds_as_many_tokens_as_the_table_counts(self, name: str, row: int) -> None:
        trace, history = watched(name, row)
        for layer in range(3):
            holder = history.fate(layer).holder
            for head, table in enumerate(trace.passes[-1].tables[layer][row]):
                holds = [(holder[head] == position - PADDING[row]).sum() for position in table.positions]
                assert holds == table.columns["count"].tolist()
                assert (holder[head] >= 0).sum() == sum(holds)

    @pytest.mark.parametrize("name", ["d2o", "adore(recall=3)", "ada_kv(window=4)"])
    def test_a_padded_row_has_the_history_that_it_has_alone(self, name: str) -> None:
        _, history = watched(name, 1)
        watch = Watch()
        trace = drive(policy_of(name), request_of().alone(1), listen=watch)
        alone = watch.history(trace.session.report())
        assert (history.tokens, history.prompt, history.heads) == (alone.tokens, alone.prompt, alone.heads)
        assert history.segments.tolist() == alone.segments.tolist() == [0] * 3 + [1] * 12 + [0] * 19
        for layer in range(3):
            np.testing.assert_array_equal(history.fate(layer).holder, alone.fate(layer).holder)

    def test_a_prompt_in_chunks_has_the_history_that_it_has_whole(self) -> None:
        _, whole = watched("d2o", 1)
        _, chunked = watched("d2o", 1, chunks=(7, 1, 22))
        for layer in range(3):
            np.testing.assert_array_equal(whole.fate(layer).holder, chunked.fate(layer).holder)
        assert chunked.prompt == 25

    def test_recalled_rows_are_there_again(self) -> None:
        _, history = watched("adore(recall=3)", 0)
        back = [tuple(entry) for change in history.changes[0] for entry in change.back.tolist()]
        assert back
        head, token = back[0]
        seen = next(change.seen for change in history.changes[0] if [head, token] in change.back.tolist())
        assert history.fate(0, after=seen - 1).holder[head, token] == -1

    def test_heads_may_hold_different_numbers(self) -> None:
        _, history = watched("ada_kv(window=4)", 0)
        assert any(len(set(rows)) > 1 for rows in history.rows().tolist())
        assert history.fate(0).differs

    def test_full_makes_no_plan(self) -> None:
        _, history = watched("full", 1)
        assert (history.prompt, history.heads, history.changes) == (None, (1, 1, 1), ((), (), ()))
        np.testing.assert_array_equal(history.rows(), np.full((3, 1), 34))

    def test_nothing_changes_it_any_more(self) -> None:
        watch = Watch()
        trace = drive(policy_of("h2o"), request_of(), listen=watch)
        history = watch.history(trace.session.report())
        before = history.fate(0).holder
        with pytest.raises(ValueError, match="read-only"):
            history.changes[0][0].left[:] = 0
        watch._layers.clear()
        np.testing.assert_array_equal(history.fate(0).holder, before)


def hand_made() -> tuple[CacheView, Plan, Step]:
    """Rows in the order 2, 0, (hole), 3, 1 of two heads. In the first, token 1 folds into 0 and, heavier, into 3."""
    positions = np.array([[[2, 0, -1, 3, 1], [2, 0, -1, 3, 1]]])
    keep = np.array([[[True, True, False, True, False], [True, True, False, False, False]]])
    into, weight = np.full((1, 2, 5, 2), -1), np.zeros((1, 2, 5, 2), np.float32)
    into[0, 0, 4], weight[0, 0, 4] = (1, 3), (0.2, 0.8)
    zeros = np.zeros((1, 2, 5, 1))
    step = Step(
        phase=Phase.PREFILL,
        seen=np.array([4]),
        prompt=np.array([4]),
        prompt_kept=np.array([0]),
        queries=zeros,
        query_positions=np.zeros((1, 1), np.int64),
        query_valid=np.ones((1, 1), bool),
        scale=1.0,
        ops=backend_by_name("numpy"),
    )
    return CacheView(zeros, zeros, positions, positions >= 0, {}), Plan(keep, into, weight, weight[..., 0]), step


def report_of(rows: float, tokens: int = 4) -> Report:
    blank = dict.fromkeys(
        ("most", "capacity", "evicted", "merged", "recalled", "exceeded", "kv_bytes", "full_kv_bytes"), 0
    )
    layer = kvpolicy.LayerReport(rows=rows, column_bytes=0, archive_bytes=0, **blank)
    return Report(kvpolicy.full(), "numpy", (tokens,), (layer,))


class TestByHand:
    def test_a_plan_is_told_by_arrival_not_by_row(self) -> None:
        watch = Watch()
        watch(0, *hand_made())
        fate = watch.history(report_of(rows=2.5)).fate(0)
        assert fate.holder.tolist() == [[0, 3, 2, 3], [0, -1, 2, -1]]
        assert fate.kept.tolist() == [1.0, 0.0, 1.0, 0.5]
        assert fate.merged.tolist() == [0.0, 0.5, 0.0, 0.0]
        assert fate.into.tolist() == [-1, 3, -1, -1]

    def test_tokens_after_the_latest_plan_are_there(self) -> None:
        watch = Watch()
        watch(0, *hand_made())
        history = watch.history(report_of(rows=4.5, tokens=6))
        assert history.fate(0).holder.tolist() == [[0, 3, 2, 3, 4, 5], [0, -1, 2, -1, 4, 5]]
        assert history.fate(0, after=5).holder.shape == (2, 5)

    def test_a_row_that_goes_takes_along_what_it_holds_and_brings_it_back(self) -> None:
        """0 goes into 1, 1 into 2; then 2 is dropped, returns, and goes into 4 in the second head only."""
        none = np.zeros((0, 2), np.int64)
        steps = [
            (3, none, [(0, 0, 1), (1, 0, 1)]),
            (4, none, [(0, 1, 2), (1, 1, 2)]),
            (5, none, [(0, 2, -1), (1, 2, -1)]),
            (6, np.array([(0, 2), (1, 2)]), [(1, 2, 4)]),
        ]
        changes = tuple(Change(seen, back, np.array(left)) for seen, back, left in steps)
        history = History(6, 3, (2,), np.zeros(6, np.int64), (changes,))
        told = [history.fate(0, after=seen).holder.tolist() for seen in (3, 4, 5, 6)]
        assert told == [
            [[1, 1, 2]] * 2,
            [[2, 2, 2, 3]] * 2,
            [[-1, -1, -1, 3, 4]] * 2,
            [[2, 2, 2, 3, 4, 5], [4, 4, 4, 3, 4, 5]],
        ]
        assert history.rows().tolist() == [[4.0, 3.0]]

    def test_what_most_heads_say_is_drawn(self) -> None:
        fate = Fate(np.array([[0, 0, 0], [0, 2, 2], [0, 2, -1], [0, 1, 2]]))
        assert fate.into.tolist() == [-1, 2, 0]
        np.testing.assert_array_equal(fate.merged, [0, 0.75, 0.25])
        assert Fate(np.array([[0, 1, 0], [0, 1, 1]])).into.tolist() == [-1, -1, 0]  # of as many the first

    def test_layers_may_have_different_numbers_of_heads(self) -> None:
        left = Change(3, np.zeros((0, 2), np.int64), np.array([(2, 0, -1)]))
        history = History(4, 3, (1, 3), np.zeros(4, np.int64), ((), (left,)))
        np.testing.assert_array_equal(history.rows(), [[4, np.nan, np.nan], [4, 4, 3]])
        assert [text.get_text() for text in tidy(budgets({"x": history})).axes[0].texts] == ["4", "4", "4", "3"]
        assert "2 layers of 1 to 3 heads" in words_of(tidy(tokens_by_layers(history)))


class TestRefusals:
    def test_errors_are_ours(self) -> None:
        assert issubclass(PlotError, KVPolicyError)

    @pytest.mark.parametrize("row", [-1, 1.0, True])
    def test_no_batch_row(self, row: Any) -> None:
        with pytest.raises(PlotError, match=f"row={row}.*integer from 0 on"):
            Watch(row)

    @pytest.mark.parametrize("name", ["h2o", "full"])
    def test_more_batch_rows_than_there_are(self, name: str) -> None:
        with pytest.raises(PlotError, match=r"Watch\(row=2\): the model runs 2 batch rows, 0 .. 1"):
            watched(name, 2)

    def test_nothing_has_passed(self, model_of: Any) -> None:
        cache = PolicyCache(model_of(LLAMA), kvpolicy.h2o(keep=0.3), listen=Watch())
        with pytest.raises(PlotError, match=r"no token has passed yet. Hint: generate first"):
            Watch().history(cache.report())

    def test_a_watch_that_did_not_listen(self) -> None:
        trace = drive(policy_of("h2o"), request_of())
        with pytest.raises(PlotError, match=r"layer 0 holds 11 rows.* holds 36\.5\. Hint: the report of the cache"):
            Watch().history(trace.session.report())

    def test_a_cache_that_was_reset(self, model_of: Any) -> None:
        """The second prompt is longer, so that every count of it could go on from the first."""
        model, watch = model_of(LLAMA), Watch()
        cache = PolicyCache(model, kvpolicy.h2o(keep=0.3), listen=watch)
        for length in (20, 40):
            model(**text_row(length, length), past_key_values=cache)
            cache.reset()
        model(**text_row(40, 1), past_key_values=cache)
        with pytest.raises(PlotError, match="these are two requests"):
            watch.history(cache.report())

    def test_a_shorter_second_request(self, model_of: Any) -> None:
        model, watch = model_of(LLAMA), Watch()
        for length in (40, 20):
            cache = PolicyCache(model, kvpolicy.h2o(keep=0.3), listen=watch)
            model(**text_row(length, 1), past_key_values=cache)
        with pytest.raises(PlotError, match=r"noted 40 tokens.*two requests. Hint: a new Watch\(\)"):
            watch.history(cache.report())

    def test_beams_that_change_places(self, model_of: Any) -> None:
        model, inputs, watch = model_of(LLAMA), text_row(30, 1), Watch(2)
        cache = PolicyCache(model, kvpolicy.h2o(keep=0.3), inputs=inputs, listen=watch)
        new_tokens(model, inputs, 20, num_beams=3, past_key_values=cache)
        with pytest.raises(PlotError, match="beam search has no pictures"):
            watch.history(cache.report())

    def test_decoding_in_place_tells_no_plans(self) -> None:
        model, inputs, watch = LLAMA.new(), text_row(30, 1), Watch()
        enable(model)
        cache = PolicyCache(model, kvpolicy.h2o(rows=10), inputs=inputs, listen=watch)
        cache.compile_up_to(64, model)
        new_tokens(model, inputs, 5, past_key_values=cache, disable_compile=True)
        with pytest.raises(PlotError, match=r"holds 10 rows.* holds 14.*tells no plans"):
            watch.history(cache.report())

    @pytest.mark.parametrize("after", [0, 40, -1, 3.0])
    def test_moments_that_never_were(self, after: Any) -> None:
        _, history = watched("h2o", 0)
        for draw in (tokens_by_layers, lambda history, after: budgets({"h2o": history}, after=after)):
            with pytest.raises(PlotError, match=f"after={after}: 39 tokens were seen, so it must be in 1 .. 39"):
                draw(history, after=after)

    def test_layers_that_are_not_there(self) -> None:
        _, history = watched("h2o", 0)
        for layer in (3, -1, 1.0):
            with pytest.raises(PlotError, match=f"layer={layer}: 3 layers are under the policy, 0 .. 2"):
                tokens_by_steps(history, layer=layer)

    def test_too_few_words(self) -> None:
        _, history = watched("h2o", 0)
        for draw in (tokens_by_layers, tokens_by_steps):
            with pytest.raises(PlotError, match=r"words holds 38 texts, and 39 tokens were seen. Hint"):
                draw(history, ["a"] * 38)

    def test_steps_of_a_history_without_a_plan(self) -> None:
        with pytest.raises(PlotError, match=r"no plan was made while 39 tokens were seen.*Hint: tokens_by_layers"):
            tokens_by_steps(watched("full", 0)[1])

    def test_nothing_to_draw(self) -> None:
        for draw in (budgets, mass_over_steps):
            with pytest.raises(PlotError, match=r"there is nothing to draw. Hint"):
                draw({})

    def test_images_that_are_none(self) -> None:
        _, history = watched("look_m", 0)
        layout = Layout(3, 4, 8, tuple((n, "w") for n in [*range(8), *range(20, 30)]))
        with pytest.raises(PlotError, match=r"image is float64 \[8, 8, 3\].*Hint: np.asarray"):
            patches(history, layout, np.zeros((8, 8, 3)))
        with pytest.raises(PlotError, match="the layout has 30 tokens, and 20 were seen"):
            patches(history, layout, np.zeros((8, 8, 3), np.uint8), after=20)


class Words:
    """As much of a tokenizer as a layout needs."""

    def decode(self, tokens: list[int]) -> str:
        return f" w{tokens[0]} "


class TestLayout:
    MODEL = SimpleNamespace(
        config=SimpleNamespace(
            is_encoder_decoder=False,
            image_token_id=9,
            vision_config=SimpleNamespace(spatial_merge_size=2),
            get_text_config=lambda **_: SimpleNamespace(),
        )
    )

    def layout(self, *rows: list[int], row: int = 0, **inputs: Any) -> Layout:
        return Layout.of({"input_ids": torch.tensor(rows), **inputs}, self.MODEL, Words(), row=row)

    def test_square(self) -> None:
        layout = self.layout([1, 2, *[9] * 16, 3])
        assert layout == Layout(4, 4, 2, ((0, "w1"), (1, "w2"), (18, "w3")))
        assert layout.patches == range(2, 18)
        assert layout.tokens == 19

    def test_qwen_grid(self) -> None:
        layout = self.layout([1, *[9] * 6], image_grid_thw=torch.tensor([[1, 4, 6]]))
        assert (layout.rows, layout.columns, layout.first) == (2, 3, 1)

    def test_a_padded_row_of_a_batch_is_what_it_is_alone(self, model_of: Any) -> None:
        llava = [llava_row(12, 0, 9, 1), llava_row(4, 2, 6, 2), llava_row(3, 1, 5, 3)]
        qwen = [qwen_vl_row(16, [], 9, 1), qwen_vl_row(5, [(8, 6), (4, 4)], 7, 2), qwen_vl_row(6, [(4, 8)], 5, 3)]
        for family, rows in ((LLAVA, llava), (QWEN_VL, qwen)):
            model, inputs = model_of(family), batch(rows)
            alone = Layout.of(rows[2], model, Words())
            assert Layout.of(inputs, model, Words(), row=2) == alone
            assert (alone.rows, alone.columns) == ((4, 4) if family is LLAVA else (2, 4))
            for row in (0, 1):
                with pytest.raises(PlotError, match=f"image tokens of batch row {row} form no single grid. Hint"):
                    Layout.of(inputs, model, Words(), row=row)

    @pytest.mark.parametrize("ids", [[1, 9, 9, 9], [1, 9, 9, 5, 9, 9], [1, 2]], ids=["not square", "in parts", "none"])
    def test_no_grid(self, ids: list[int]) -> None:
        with pytest.raises(PlotError, match=f"the {ids.count(9)} image tokens of batch row 0 form no single grid"):
            self.layout(ids)

    @pytest.mark.parametrize("shape", [(4, 3, 8, 8), (1, 4, 3, 8, 8)])
    def test_tiles_are_no_grid_even_if_their_number_is_a_square(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(PlotError, match="cut into tiles"):
            self.layout([1, *[9] * 16], pixel_values=torch.zeros(shape))
        assert self.layout([1, *[9] * 16], pixel_values=torch.zeros(1, *shape[-3:])).rows == 4

    def test_no_such_row(self) -> None:
        with pytest.raises(PlotError, match=r"row=1\): inputs hold 1 prompts, 0 .. 0"):
            self.layout([1, 9], row=1)

    def test_pictures_of_a_batch_are_told_apart(self) -> None:
        pixels = torch.stack([torch.full((3, 4, 4), share) for share in (0.2, 0.6)])
        processor = SimpleNamespace(image_processor=SimpleNamespace(do_normalize=False))
        seen = [seen_by_model({"pixel_values": pixels}, processor, None, number=n)[0, 0, 0] for n in (0, 1)]
        assert seen == [51, 153]


# The pictures -----------------------------------------------------------------------------------------------------


def words_of(figure: Figure) -> str:
    return " | ".join(text.get_text() for text in figure.findobj(Text) if text.get_visible())


def tidy(figure: Figure) -> Figure:
    """The figure, if all its text lies on the page, and none on other text."""
    for image in figure.findobj(AxesImage):  # they take long, and have no text
        image.set_visible(False)
    renderer: Any = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    figure.draw(renderer)
    texts = [text for text in figure.findobj(Text) if text.get_text().strip() and _is_shown(text)]
    boxes = [text.get_window_extent(renderer) for text in texts]
    page = figure.bbox
    for text, box in zip(texts, boxes, strict=True):
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1, text  # noqa: PT018
    for (one, a), (other, b) in combinations(zip(texts, boxes, strict=True), 2):
        wide, tall = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(wide, tall) <= 1, f"{one} lies on {other}"
    return figure


def _is_shown(text: Text) -> bool:
    axes = text.axes
    ours = axes is None or axes.axison or text in axes.texts
    return text.get_visible() and ours


@pytest.fixture(autouse=True)
def _pyplot_is_left_alone() -> Iterator[None]:
    import matplotlib.pyplot as plt

    before = dict(mpl.rcParams)
    yield
    assert not plt.get_fignums()
    assert dict(mpl.rcParams) == before


@pytest.fixture(scope="module")
def demo() -> SimpleNamespace:
    """The demo's model, its longest answer under several policies, and the caches that gave it."""
    model, processor = load_model("demo")
    enable(model)
    case = next(case for case in drawn_cases(0, pictures=1) if (case.kind, case.task) == ("grid", "row"))
    inputs = encode(processor, case.prompt)
    caches, histories, words = {}, {}, {}
    for name in ("h2o", "look_m", "elastic_cache(last=8)", "pyramid_kv(window=8)", "ada_kv(window=8)", "vl_cache"):
        watch = Watch()
        caches[name] = PolicyCache(model, policy_of(name), inputs=inputs, listen=watch)
        output = model.generate(**inputs, past_key_values=caches[name], max_new_tokens=12, do_sample=False)
        histories[name] = watch.history(caches[name].report())
        words[name] = [processor.tokenizer.decode([token]) for token in output[0].tolist()]
    return SimpleNamespace(
        model=model,
        inputs=inputs,
        caches=caches,
        histories=histories,
        words=words,
        layout=Layout.of(inputs, model, processor.tokenizer),
        image=seen_by_model(inputs, processor, case.prompt.image),
        prompt=inputs["input_ids"].shape[1],
    )


def kept_share(cache: PolicyCache, tokens: int) -> np.ndarray:
    """[L, T]: the share of heads whose table holds each token, read from the tables."""
    made = np.zeros((len(tables(cache)), tokens))
    for layer, view in enumerate(tables(cache)):
        heads = view.positions.shape[1]
        for head in range(heads):
            made[layer, view.positions[0, head][view.valid[0, head]].numpy()] += 1 / heads
    return made


def between(share: float, colour: str, ground: str = DROPPED) -> np.ndarray:
    return np.array(to_rgb(ground)) * (1 - share) + np.array(to_rgb(colour)) * share


class TestTokensByLayers:
    def test_colours_are_the_shares_of_the_tables(self, demo: SimpleNamespace) -> None:
        history = demo.histories["h2o"]
        figure = tidy(tokens_by_layers(history, demo.words["h2o"]))
        drawn = figure.axes[0].images[0].get_array()
        share = kept_share(demo.caches["h2o"], history.tokens)
        assert set(np.unique(share)) == {0, 0.5, 1}
        for spot, kept in np.ndenumerate(share):
            np.testing.assert_allclose(drawn[spot], between(kept, KEPT))

    def test_merged_tokens_have_a_colour_of_their_own(self, demo: SimpleNamespace) -> None:
        """Under look_m nothing is dropped: what no head keeps is merged."""
        history = demo.histories["look_m"]
        drawn = tidy(tokens_by_layers(history)).axes[0].images[0].get_array()
        share = kept_share(demo.caches["look_m"], history.tokens)
        for spot, kept in np.ndenumerate(share):
            np.testing.assert_allclose(drawn[spot], between(kept, KEPT, ground=MERGED))

    def test_words_rows_and_marks(self, demo: SimpleNamespace) -> None:
        history = demo.histories["h2o"]
        figure = tidy(tokens_by_layers(history, demo.words["h2o"], title="mine"))
        texts = words_of(figure).split(" | ")
        rows = demo.caches["h2o"].report().layers[0].rows
        assert texts.count(f"{rows:g}") == 4
        assert {"mine", "image", "new", "kept", "dropped", "layer", "1", "4"} <= set(texts)
        assert "merged into another row" not in texts
        assert "from dark to bright: in none to all of the heads" in texts
        assert f"after the prompt and 8 new tokens: {demo.prompt + 8} tokens in 4 layers of 2 heads" in texts
        spelled = [word for word in demo.words["h2o"][: history.tokens] if word != "<image>"]
        assert [text for text in texts if text in demo.words["h2o"]][: len(spelled)] == spelled

    def test_the_moment_after_the_prompt(self, demo: SimpleNamespace) -> None:
        figure = tidy(tokens_by_layers(demo.histories["h2o"], after=demo.prompt))
        assert figure.axes[0].images[0].get_array().shape == (4, demo.prompt, 3)
        texts = words_of(figure).split(" | ")
        assert "new" not in texts
        assert texts.count(str(round(0.3 * demo.prompt))) >= 4

    def test_thousands_of_tokens_share_columns_exactly(self) -> None:
        """Of 2,501 tokens every third and the last go, in one of two heads."""
        gone = [*range(0, 2500, 3), 2500]
        left = np.array([(1, token, -1) for token in gone])
        history = History(2501, 2501, (2,), np.zeros(2501, np.int64), ((Change(2501, np.zeros((0, 2), int), left),),))
        figure = tidy(tokens_by_layers(history, [f"w{n}" for n in range(2501)]))
        drawn = figure.axes[0].images[0].get_array()
        assert drawn.shape == (1, 834, 3)
        np.testing.assert_allclose(drawn[0, :-1], np.tile(between(2.5 / 3, KEPT), (833, 1)))
        np.testing.assert_allclose(drawn[0, -1], between(0.5, KEPT))  # 2,499 and 2,500 are alone, and both went
        assert "token (a column is the mean of 3)" in words_of(figure)
        assert "w1" not in words_of(figure).split(" | ")

    def test_thirty_long_words_lie_side_by_side(self) -> None:
        _, history = watched("h2o", 0)
        words = [f"${'unbelievable' * 2}_{n}\n" for n in range(39)]
        figure = tidy(tokens_by_layers(replace(history, segments=np.zeros(39, np.int64)), words))
        assert words_of(figure).count("$unbelievable…") == 39

    def test_full_is_all_kept(self) -> None:
        figure = tidy(tokens_by_layers(watched("full", 1)[1]))
        np.testing.assert_allclose(figure.axes[0].images[0].get_array(), np.tile(to_rgb(KEPT), (3, 34, 1)))
        assert "after 34 tokens: 34 tokens in 3 layers |" in words_of(figure)


class TestTokensBySteps:
    @pytest.mark.parametrize("name", ["adore(recall=3)", "d2o"])
    def test_every_line_is_the_table_of_that_step(self, name: str) -> None:
        trace, history = watched(name, 1)
        figure = tidy(tokens_by_steps(history, layer=2))
        drawn = figure.axes[0].images[0].get_array()
        assert drawn.shape == (10, 34, 3)
        for step in range(10):
            share = in_table(trace, step, 2, 1, 34).mean(axis=0)
            for token in range(34):
                if token >= 25 + step:
                    np.testing.assert_allclose(drawn[step, token], to_rgb(BACKGROUND))
                elif share[token] == 1 or name == "adore(recall=3)":
                    np.testing.assert_allclose(drawn[step, token], between(share[token], KEPT))
                else:
                    assert np.abs(drawn[step, token] - to_rgb(KEPT)).max() > 0.1
        assert "layer 3: after the prompt of 25 tokens, and after each of 9 new ones" in words_of(figure)

    def test_words_stand_below(self, demo: SimpleNamespace) -> None:
        figure = tidy(tokens_by_steps(demo.histories["h2o"], demo.words["h2o"]))
        assert {"password", "read", "new tokens", "image"} <= set(words_of(figure).split(" | "))


class TestBudgets:
    NAMES = ("pyramid_kv(window=8)", "ada_kv(window=8)", "vl_cache")

    def test_maps_hold_the_rows_of_the_tables(self, demo: SimpleNamespace) -> None:
        figure = tidy(budgets({name: demo.histories[name] for name in self.NAMES}))
        maps = [axes.images[0].get_array() for axes in figure.axes if axes.images]
        assert len(maps) == 3
        for name, drawn in zip(self.NAMES, maps, strict=True):
            expected = [view.valid[0].sum(-1).tolist() for view in tables(demo.caches[name])]
            np.testing.assert_array_equal(drawn, expected)
            reported = [layer.rows for layer in demo.caches[name].report().layers]
            np.testing.assert_allclose(drawn.mean(axis=1), reported)
            assert f"{name} | mean {np.mean(expected):g} rows" in words_of(figure)
        pyramid, ada, vl = maps
        assert (np.diff(pyramid[:, 0]) < 0).all()
        assert (ada[:, 0] != ada[:, 1]).any()
        assert len(set(vl[:, 0])) > 1

    def test_one_scale_for_all_and_every_number_written(self, demo: SimpleNamespace) -> None:
        figure = tidy(budgets({name: demo.histories[name] for name in self.NAMES}, after=demo.prompt))
        images = [axes.images[0] for axes in figure.axes if axes.images]
        assert len({(image.norm.vmin, image.norm.vmax) for image in images}) == 1
        for image in images:
            rows = image.get_array()
            assert [text.get_text() for text in image.axes.texts] == [f"{value:.0f}" for value in rows.ravel()]
            assert rows.mean() == pytest.approx(round(0.3 * demo.prompt), abs=0.5)
        bars = [axes for axes in figure.axes if axes.patches and not axes.images]
        means = [[patch.get_width() for patch in axes.patches] for axes in bars][:3]
        np.testing.assert_allclose(means, [image.get_array().mean(axis=1) for image in images])

    def test_full_has_one_column(self) -> None:
        figure = tidy(budgets({"full": watched("full", 0)[1]}))
        assert "all heads alike" in words_of(figure)
        assert figure.axes[0].images[0].get_array().tolist() == [[39.0]] * 3

    def test_many_heads_and_four_policies(self) -> None:
        many = History(50, 50, (32,) * 40, np.zeros(50, np.int64), ((),) * 40)
        figure = tidy(budgets({f"a rather long name of a policy {n}": many for n in range(4)}))
        assert len(figure.axes) == 4 * 2 + 1
        assert not figure.axes[0].texts


@pytest.fixture(scope="module")
def replays(demo: SimpleNamespace) -> dict[str, Replay]:
    data = record(demo.model, demo.inputs, new_tokens=6)
    return {name: replay(data, policy_of(name)) for name in ("h2o", "look_m", "pyramid_kv(window=8)", "full")}


class TestMass:
    def test_lines_and_bands(self, replays: dict[str, Replay]) -> None:
        figure = tidy(mass_over_steps(replays, band=(0.25, 0.75)))
        assert len(figure.axes) == 4
        for (name, made), axes in zip(replays.items(), figure.axes, strict=True):
            assert len(axes.lines) == 4
            steps = np.arange(1, len(made.mass) + 1)
            np.testing.assert_allclose(axes.lines[-1].get_xydata(), np.stack([steps, made.mass.mean(axis=1)], axis=1))
            edges = axes.collections[0].get_paths()[0].vertices
            for step, layers in zip(steps, made.mass, strict=True):
                at = edges[edges[:, 0] == step, 1]
                ordered = np.sort(layers)  # of four layers the quartiles lie between the first two and the last two
                assert at.min() == pytest.approx(ordered[0] + 0.75 * (ordered[1] - ordered[0]))
                assert at.max() == pytest.approx(ordered[3] - 0.75 * (ordered[3] - ordered[2]))
            assert f"{name} | mean {made.mass.mean():.0%}" in words_of(figure)
        assert "line: mean of 4 layers; band: 25% to 75% of them; grey: the other policies" in words_of(figure)

    def test_a_policy_that_loses_nothing_is_a_line_at_the_top(self, replays: dict[str, Replay]) -> None:
        figure = tidy(mass_over_steps({"full": replays["full"]}))
        np.testing.assert_allclose(figure.axes[0].lines[-1].get_ydata(), 1.0)
        assert figure.axes[0].get_ylim() == (0.75, 1.0)

    def test_what_is_no_replay(self, replays: dict[str, Replay]) -> None:
        with pytest.raises(PlotError, match=r"replays\['bad'\] is PolicyError.*not a Replay. Hint: leave it out"):
            mass_over_steps({**replays, "bad": kvpolicy.PolicyError("no")})

    @pytest.mark.parametrize("band", [(0.9, 0.1), (-0.1, 0.5), (0.5, 1.5), (float("nan"), 1)])
    def test_quantiles_that_are_none(self, replays: dict[str, Replay], band: tuple[float, float]) -> None:
        with pytest.raises(PlotError, match=r"band=.*two quantiles between 0 and 1"):
            mass_over_steps(replays, band=band)


class TestPatches:
    def test_it_can_be_saved_as_it_is(self, demo: SimpleNamespace, tmp_path: Path) -> None:
        figure = patches(demo.histories["h2o"], demo.layout, demo.image, layers=[0])
        figure.savefig(tmp_path / "picture.png")
        with Image.open(tmp_path / "picture.png") as picture:
            assert picture.width == 1600  # twice the width of a page
            corner = picture.convert("RGB").getpixel((0, 0))
        np.testing.assert_allclose(np.array(corner) / 255, to_rgb(BACKGROUND))

    def test_a_panel_for_each_layer_and_a_legend(self, demo: SimpleNamespace) -> None:
        figure = tidy(patches(demo.histories["look_m"], demo.layout, demo.image, after=demo.prompt, title="mine"))
        assert len(figure.axes) == 1 + 4 + 1
        texts = words_of(figure).split(" | ")
        held = [view.valid.sum().item() / 2 for view in tables(demo.caches["look_m"])]
        for layer, rows in enumerate(held):
            share = f"{rows - 8:g} of {demo.prompt} kept"  # look_m drops none of the eight new tokens
            assert texts[texts.index(f"layer {layer + 1}") + 1] == share
        legend = {"kept", "kept by some of the heads", "merged into the row of its colour", "dropped"}
        assert {"mine", "the prompt", f"{demo.prompt} tokens", *legend} <= set(texts)
        assert [texts.count(word) for word in ("password", "row")] == [5, 5]

    def test_lines_lead_from_every_merged_patch_to_the_row_that_holds_it(self, demo: SimpleNamespace) -> None:
        """By the demo's listener of old: what head 0's plan says, since the heads of this policy are alike."""
        told: dict[int, tuple[Any, ...]] = {}

        def listen(layer: int, view: CacheView, plan: Plan, step: Step) -> None:
            told[layer] = tuple(step.ops.host(data).copy()[0, 0] for data in (view.positions, plan.keep, plan.into))

        watch, policy = Watch(), replace(policy_of("elastic_cache(last=8)"), decode=None)
        for listener in (listen, watch):
            cache = PolicyCache(demo.model, policy, inputs=demo.inputs, listen=listener)
            demo.model(**demo.inputs, past_key_values=cache)
        figure = tidy(patches(watch.history(cache.report()), demo.layout, demo.image))
        boxes = {n: ((n - 4) % 8 + 0.5, (n - 4) // 8 + 0.5) for n in demo.layout.patches}
        for layer, axes in enumerate(figure.axes[1:5]):
            positions, keep, into = told[layer]
            wanted = {}
            for slot in np.flatnonzero(~keep):
                if (token := int(positions[slot])) in boxes:
                    wanted[token] = int(positions[into[slot, 0]])
            (lines,) = [made for made in axes.collections if isinstance(made, LineCollection)]
            drawn = [np.asarray(path.vertices) for path in lines.get_paths()]
            assert len(drawn) == len(wanted) > 30
            for (start, end), (token, anchor) in zip(drawn, sorted(wanted.items()), strict=True):
                np.testing.assert_allclose(start * 8 - (0, 0.13 * 8), boxes[token])
                if anchor in boxes:
                    np.testing.assert_allclose(end * 8 - (0, 0.13 * 8), boxes[anchor])
                else:
                    assert end[1] < 0.1  # a word above the image
            outlined = [patch for patch in axes.patches if not patch.get_fill()]
            assert len(outlined) == keep.sum()
        assert "kept by some of the heads" not in words_of(figure)

    def test_a_patch_that_some_heads_merge_is_tinted_by_as_much(self, demo: SimpleNamespace) -> None:
        """White image; patch 4 is kept by one head of four, merged by two into the next patch, and dropped by one."""
        tokens = demo.layout.tokens
        left = np.array([(1, 4, 5), (2, 4, 5), (3, 4, -1)])
        change = Change(tokens, np.zeros((0, 2), np.int64), left)
        history = History(tokens, tokens, (4,), np.zeros(tokens, np.int64), ((change,),))
        figure = tidy(patches(history, demo.layout, np.full((64, 64, 3), 255, np.uint8)))
        pixels = np.asarray(figure.axes[1].images[0].get_array())
        np.testing.assert_allclose(pixels[70:, 70:], 1)
        tint = np.array([1.0, 0.28 + 0.72 * 0.66, 0.28])  # hue 0.11, saturation 0.72
        expected = 1 / 4 + 2 / 4 * tint * 0.58 + 1 / 4 * 0.2
        np.testing.assert_allclose(pixels[5, 5], expected)

    def test_a_patch_that_went_into_a_later_token_has_no_line(self, demo: SimpleNamespace) -> None:
        tokens = demo.layout.tokens
        change = Change(tokens + 2, np.zeros((0, 2), np.int64), np.array([(0, 10, tokens + 1)]))
        history = History(tokens + 2, tokens, (1,), np.zeros(tokens + 2, np.int64), ((change,),))
        figure = tidy(patches(history, demo.layout, demo.image))
        (lines,) = figure.axes[1].collections
        assert not lines.get_paths()

    @pytest.mark.parametrize(("rows", "columns"), [(1, 40), (5, 2), (2, 30)])
    def test_images_of_every_shape(self, rows: int, columns: int) -> None:
        count = rows * columns
        layout = Layout(rows, columns, 1, ((0, "<bos>"), (count + 1, "$x_"), (count + 2, "^$")))
        change = Change(count + 3, np.zeros((0, 2), np.int64), np.array([(1, 0, 1)]))  # so that the legend is long
        history = History(count + 3, count + 3, (2,) * 9, np.zeros(count + 3, np.int64), ((change,),) * 9)
        figure = tidy(patches(history, layout, np.zeros((7, 5, 3), np.uint8), layers=[3]))
        assert len(figure.axes) == 1 + 1 + 1
        assert "layer 4" in words_of(figure)

    def test_of_many_layers_six_are_shown(self) -> None:
        layout, history = Layout(1, 1, 0, ()), History(1, None, (1,) * 32, np.zeros(1, np.int64), ((),) * 32)
        texts = words_of(tidy(patches(history, layout, np.zeros((7, 5, 3), np.uint8)))).split(" | ")
        assert [text for text in texts if "layer " in text] == [f"layer {n}" for n in (1, 7, 13, 20, 26, 32)]

    def test_the_picture_of_a_row_of_a_batch(self, model_of: Any) -> None:
        """A padded row of LLaVA's, whose image is at another place than in the batch."""
        model, rows = model_of(LLAVA), [llava_row(12, 1, 9, 1), llava_row(3, 1, 5, 3)]
        made = []
        for inputs, row in ((batch(rows), 1), (rows[1], 0)):
            watch = Watch(row)
            cache = PolicyCache(model, policy_of("look_m"), inputs=inputs, listen=watch)
            new_tokens(model, inputs, 3, past_key_values=cache)
            layout = Layout.of(inputs, model, Words(), row=row)
            image = np.zeros((IMAGE_SIDE, IMAGE_SIDE, 3), np.uint8) + 200
            figure = tidy(patches(watch.history(cache.report()), layout, image, layers=[1]))
            made.append([np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images])
        np.testing.assert_array_equal(*made)


def test_assisted_decoding_tells_the_same_history(model_of: Any) -> None:
    """What is guessed wrong is taken back, and its plans are never told."""
    model, told = model_of(LLAMA), []
    inputs = {**text_row(30, 1)}
    inputs["input_ids"][0, 15:] = inputs["input_ids"][0, :15]
    for options in ({}, {"prompt_lookup_num_tokens": 3}):
        watch = Watch()
        cache = PolicyCache(model, kvpolicy.h2o(keep=0.3), inputs=inputs, listen=watch)
        new_tokens(model, inputs, 10, past_key_values=cache, **options)
        history = watch.history(cache.report())
        told.append([history.fate(layer, after=38).holder for layer in range(3)])
    np.testing.assert_array_equal(*told)
