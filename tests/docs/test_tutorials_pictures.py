"""The pictures that tutorials draw of their own data."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest
from matplotlib.figure import Figure
from pages import script
from PIL import Image

from kvpolicy_hf.plots import Layout

IMAGE = np.zeros((4, 4, 3), np.uint8)
LAYOUT = Layout(rows=2, columns=2, first=1, words=((0, "<bos>"), (5, "where"), (6, "cat")))


@pytest.fixture(scope="module")
def prompts() -> Iterator[ModuleType]:
    with script("docs.prompts") as module:
        yield module


@pytest.fixture(scope="module")
def charts() -> Iterator[ModuleType]:
    with script("docs.charts") as module:
        yield module


@pytest.fixture(scope="module")
def framed() -> Iterator[ModuleType]:
    with script("docs.framed") as module:
        yield module


def looks(drawn: str) -> list[str]:
    """The class of every cell, in the order of the drawing."""
    return re.findall(r'<rect class="kv-(\w+)"', drawn)


def test_each_token_has_one_cell_and_words_are_escaped(prompts: ModuleType) -> None:
    holder = [0, 1, 1, -1, 4, 6, 6]
    drawn = prompts.Drawn(LAYOUT, IMAGE).fates("what stays", holder)
    assert sorted(looks(drawn)) == sorted(["kept", "kept", "merged", "gone", "kept", "merged", "kept"])
    assert drawn.count('class="kv-into"') == 2
    assert "&lt;bos&gt;" in drawn
    assert 'aria-label="what stays"' in drawn


def test_a_line_leads_from_the_merged_token_to_its_holder(prompts: ModuleType) -> None:
    drawn = prompts.Drawn(LAYOUT, IMAGE).fates("", [0, 1, 1, 3, 4, 5, 6])
    (path,) = re.findall(r'class="kv-into" d="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)"', drawn)
    left, top, into_left, into_top = (float(number) for number in path)
    assert left - into_left == prompts.SIDE  # the second patch is right of the first
    assert top == into_top


def test_cells_do_not_overlap(prompts: ModuleType) -> None:
    drawn = prompts.Drawn(LAYOUT, IMAGE)
    places = [drawn._place(token) for token in range(LAYOUT.tokens)]
    for number, (left, top, wide, tall) in enumerate(places):
        for other_left, other_top, other_wide, other_tall in places[:number]:
            beside = left >= other_left + other_wide or other_left >= left + wide
            assert beside or top >= other_top + other_tall or other_top >= top + tall


def test_the_highest_score_is_opaque_and_the_lowest_is_not_there(prompts: ModuleType) -> None:
    drawn = prompts.Drawn(LAYOUT, IMAGE).scores("scores", [1.0, 2, 3, 4, 5, 6, 7])
    opacities = [float(number) for number in re.findall(r"fill-opacity:([\d.]+)", drawn)]
    assert opacities == sorted(opacities)
    assert (opacities[0], opacities[-1]) == (0.0, 1.0)


def test_bars_are_as_long_as_their_numbers(charts: ModuleType) -> None:
    drawn = charts.bars("tokens in each row", {"cat": 1, "patch <1>": 4})
    assert re.findall(r"width:(\d+)%", drawn) == ["25", "100"]
    assert "patch &lt;1&gt;" in drawn


def test_a_line_ends_where_its_name_stands(charts: ModuleType) -> None:
    drawn = charts.lines("tokens", "rows", {"full": [(1, 1), (3, 3)], "fixed": [(1, 1), (3, 1)]})
    ends = [float(y) for y in re.findall(r'class="kv-line .*?L[\d.]+ ([\d.]+)"', drawn)]
    names = [float(y) for y in re.findall(r'<text class="kv-line-\d" x="[\d.]+" y="([\d.]+)"', drawn)]
    assert np.allclose(np.subtract(names, ends), 4)
    assert ends[0] < ends[1]  # more is higher
    assert 'aria-label="rows against tokens: full, fixed"' in drawn


def test_a_figure_is_in_the_page_with_a_text_for_those_who_cannot_see_it(framed: ModuleType) -> None:
    made = framed.figure(Figure(figsize=(2, 1)), 'rows of "each" head')
    assert 'alt="rows of &quot;each&quot; head"' in made
    data = re.search(r"data:image/webp;base64,([^\"]+)", made)
    assert data is not None
    assert Image.open(io.BytesIO(base64.b64decode(data[1]))).size == (320, 160)
