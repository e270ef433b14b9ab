"""What an error about an unknown name ends with."""

from __future__ import annotations

import pytest

from kvpolicy._check import closest


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
