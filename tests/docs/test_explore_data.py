"""What the explorer shows is what the model does: a few cells are run again; the page's table is made of its data."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from pages import script

ROUNDING = 0.02  # share of rows that may differ: other kernels round otherwise, and scores may be near each other


@pytest.fixture(scope="module")
def explore() -> Iterator[ModuleType]:
    with script("explore") as module:
        yield module


@pytest.fixture(scope="module")
def explorer(explore: ModuleType) -> Any:
    return explore.Explorer()


@pytest.fixture(scope="module")
def about(explore: ModuleType) -> Any:
    return explore.read("about")


def test_the_questions_are_those_that_the_script_asks(explore: ModuleType, explorer: Any, about: Any) -> None:
    now = explorer.about()
    assert list(about["policies"]) == list(explore.POLICIES)
    assert about["keeps"] == list(explore.KEEPS)
    for key in ("policies", "layers", "heads", "grid"):
        assert about[key] == now[key], "out of date: python -m scripts.explore"
    for picture, told in about["pictures"].items():
        for question, again in zip(told["questions"], now["pictures"][picture]["questions"], strict=True):
            assert question["full"] == question["right"] == again["full"]
            assert [tuple(word) for word in question["words"]] == list(again["words"])


@pytest.mark.parametrize("name", ["h2o", "elastic_cache(last=8)", "ada_kv", "kv_merger"])
@pytest.mark.parametrize("keep", [0.2, 0.6])
def test_a_cell_is_what_the_model_does(explore: ModuleType, explorer: Any, name: str, keep: float) -> None:
    asked = next(one for one in explorer.questions if (one.picture, one.case.task) == ("photo-1", "where"))
    answer, held, whole, kept, into = explorer.cell(asked, name, keep)
    saved = explore.read("photo-1")[name][1][explore.KEEPS.index(keep)]
    assert saved[:3] == [answer, held, whole], "out of date: python -m scripts.explore"
    assert bool(saved[4]) == bool(into) == (name in {"elastic_cache(last=8)", "kv_merger"})
    bits, before = (np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8)) for text in (kept, saved[3]))
    assert np.mean(bits != before) <= ROUNDING


def test_places_of_tokens_are_coded_and_read_back(explore: ModuleType) -> None:
    holders = np.array([[[0, 0, 2, -1], [0, 1, 3, 3]]])  # token 1 of the first head is merged, token 3 dropped
    kept, into = explore.coded(holders)
    assert np.unpackbits(np.frombuffer(base64.b64decode(kept), np.uint8)).tolist() == [1, 0, 1, 0, 1, 1, 0, 1]
    assert list(base64.b64decode(into)) == [1, 0, 4]
    assert explore.coded(holders[:, :1].repeat(2, axis=1)) == explore.coded(holders[:, :1])
    assert explore.coded(np.array([[[0, -1]]]))[1] == ""


def test_the_table_is_made_of_the_data(explore: ModuleType, about: Any) -> None:
    cells = {picture: explore.read(picture) for picture in about["pictures"]}
    page = explore.PAGE.read_text(encoding="utf-8")
    made = explore.with_table(page, "table", explore.right_answers(about, cells), script="explore")
    assert page == made, "out of date: python -m scripts.explore"
