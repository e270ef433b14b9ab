"""`TopK(text=True)`: text stays, images compete; the rest of `TopK` is in test_session.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scenes import Place, Scene, make_scene, scenes

from kvpolicy import IMAGE, TEXT, Column, MissingColumnError, Quota, TopK


def scene(place: Place, images: dict[int, set[int]]) -> Scene:
    """Two batch rows of six tokens in any order of slots; ``images``: positions of each row that are an image."""
    made = make_scene(place=place, heads=1, rows=6, empty=1)
    places = made.view.positions
    shown = np.stack([np.isin(places[b], list(images.get(b, ()))) for b in range(2)])
    segment = np.where(shown | ~made.view.valid, IMAGE, TEXT)  # an empty slot says what it likes
    view = replace(made.view, columns={**made.view.columns, "segment": Column(segment)})
    return replace(made, view=view, scores=places.astype(np.float64))  # later is better


def kept(select: TopK, made: Scene, quota: int) -> list[list[int]]:
    """Positions kept of each batch row."""
    rows: Quota = np.full((2, 1), quota)
    keep = made.host(select.select(made.scored, rows, made.asked).keep).astype(bool)
    return [sorted(made.view.positions[b, 0, keep[b, 0]].tolist()) for b in range(2)]


@given(
    scenes(),
    st.builds(TopK, first=st.integers(0, 3), last=st.integers(0, 3), recent=st.sampled_from([0.0, 0.5, 1.0])),
    st.integers(0, 2),
    st.booleans(),
)
def test_a_known_surplus_and_known_ranks_change_nothing(made: Scene, select: TopK, surplus: int, text: bool) -> None:
    rng = np.random.default_rng(surplus)
    if text:
        segment = Column(rng.integers(0, 2, made.view.shape))
        select, made = replace(select, text=True), replace(made, view=made.view.with_columns({"segment": segment}))
    held = made.view.valid.sum(-1)
    quota = np.maximum(held - rng.integers(-1, surplus + 1, held.shape), 0)
    due = select.select(made.scored, quota, made.asked).keep
    scored = made.scored
    known = replace(scored, view=replace(scored.view, rank=made.asked.ops.arrival_rank(scored.view)))
    for told in (scored, known):
        for told_quota in (quota, made.place.array(quota)):  # of the host, or of the device
            keep = select.select(told, told_quota, replace(made.asked, surplus=surplus)).keep
            assert made.host(keep).tolist() == made.host(due).tolist()


@pytest.mark.parametrize("place", [Place("numpy", "float64"), Place("torch", "float32")], ids=repr)
class TestText:
    def test_text_stays_and_images_fill_what_is_left(self, place: Place) -> None:
        made = scene(place, {0: {1, 2, 3}, 1: {5}})
        assert kept(TopK(text=True), made, 4) == [[0, 3, 4, 5], [0, 1, 2, 3, 4]]  # the five words exceed the quota
        assert kept(TopK(), made, 4) == [[2, 3, 4, 5]] * 2

    def test_where_there_is_no_image_all_compete(self, place: Place) -> None:
        assert kept(TopK(text=True), scene(place, {0: {1, 2, 3}}), 2) == [[0, 4, 5], [4, 5]]

    def test_text_stays_in_a_head_that_holds_none_of_the_image(self, place: Place) -> None:
        made = make_scene(place=place, batch=1, heads=2, rows=6, empty=1)
        places = made.view.positions
        segment = np.where((places == 1) & (np.arange(2)[:, None] == 1), IMAGE, TEXT)  # the second head has all of it
        view = replace(made.view, columns={**made.view.columns, "segment": Column(segment)})
        made = replace(made, view=view, scores=places.astype(np.float64))
        keep = made.host(TopK(text=True).select(made.scored, np.full((1, 2), 2), made.asked).keep).astype(bool)
        assert [sorted(places[0, head, keep[0, head]].tolist()) for head in (0, 1)] == [
            [0, 1, 2, 3, 4, 5],
            [0, 2, 3, 4, 5],
        ]

    def test_text_stays_also_when_the_last_image_row_has_gone(self, place: Place) -> None:
        made = scene(place, {0: {1, 2, 3}, 1: set()})
        chosen = TopK(text=True).select(made.scored, np.full((2, 1), 2), made.asked)
        remembered = {name: made.host(data) for name, data in chosen.registers.items()}
        later = scene(place, {})
        later = replace(later, view=replace(later.view, registers=remembered))
        assert kept(TopK(text=True), later, 2) == [[0, 1, 2, 3, 4, 5], [4, 5]]

    def test_it_goes_with_other_protection(self, place: Place) -> None:
        made = scene(place, {0: {0, 1, 2, 3}, 1: {0, 1, 2, 3}})
        assert kept(TopK(first=1, text=True), made, 4) == [[0, 3, 4, 5]] * 2

    def test_without_segments_it_says_how_to_give_them(self, place: Place) -> None:
        made: Any = make_scene(place=place)
        hint = r"TopK\(text=True\) needs column 'segment'.*Hint: pass inputs= to PolicyCache, or segments="
        with pytest.raises(MissingColumnError, match=hint):
            TopK(text=True).select(made.scored, np.full((2, 2), 3), made.asked)
