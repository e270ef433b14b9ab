"""Choices are compared with their types; what an error about a value says, and what one about a name ends with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kvpolicy import PolicyError
from kvpolicy._check import check_choice, choose, closest, shown


@pytest.mark.parametrize(
    ("name", "known", "end"),
    [
        ("snap_kv", ("h2o", "snapkv", "full"), " Hint: snapkv."),
        ("H20", ("h2o", "full"), " There are: h2o, full."),  # nothing is near enough to guess
        ("x", ("h2o", "full"), " There are: h2o, full."),
        ("", ("h2o",), " There are: h2o."),
        ("snapkv", (), " There are: none."),
        ("uniform", {"Uniform": 1, "Pyramid": 2}, " Hint: Uniform."),  # any iterable of names
    ],
)
def test_the_name_that_may_be_meant_or_all_there_are(name: str, known: tuple[str, ...], end: str) -> None:
    assert closest(name, known) == end


def test_names_that_can_be_read_only_once_are_listed_all() -> None:
    assert closest("x", (name for name in ("h2o", "full"))) == " There are: h2o, full."


class Word(str):
    """Equals plain text, and would print as something else."""


@pytest.mark.parametrize(
    ("value", "allowed"),
    [
        (1, (True, False)),
        (0.0, (True, False)),
        (np.int64(1), (True, False)),
        (np.array([True, False]), (True, False)),
        (True, (1, 2)),
        (1.0, (1, 2)),
        ("True", (True, False)),
        (None, ("a", "b")),
        (["a"], ("a", "b")),
        (Word("a"), ("a", "b")),
    ],
    ids=repr,
)
def test_what_only_equals_a_choice_is_none(value: Any, allowed: tuple[Any, ...]) -> None:
    with pytest.raises(PolicyError) as caught:
        check_choice("Stage", "way", value, allowed)
    assert str(caught.value) == f"Stage(way={value!r}): way must be one of {allowed[0]!r}, {allowed[1]!r}."


def test_values_of_numpy_are_the_plain_ones() -> None:
    check_choice("Stage", "way", np.True_, (True, False))
    assert choose("Stage", "way", np.str_("b"), {"a": 1, "b": 2}) == 2


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"),
        (1.5, "1.5"),
        (True, "True"),
        ({"a": 1}, "a table"),
        ([1], "a list"),
        ((), "a list"),
        (2**1023 - 1, f"{str(2**1023 - 1)[:100]}…"),
        (10**5000, "an integer of 16610 bits"),
        ("a" * 98, repr("a" * 98)),
        ("a" * 99, f"'{'a' * 99}…"),
        ("a" * 100_000, f"'{'a' * 99}…"),
        (b"a" * 98, f"b'{'a' * 98}…"),
        (range(10**99), f"range(0, 1{'0' * 90}…"),
    ],
    ids=range(13),
)
def test_a_value_in_an_error_is_short(value: Any, text: str) -> None:
    assert shown(value) == text
