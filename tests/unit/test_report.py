"""How a report prints."""

from __future__ import annotations

import pytest

from kvpolicy import full
from kvpolicy.report import Report, format_bytes


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1023.4, "1023 B"),
        (1023.6, "1.0 KiB"),  # a mean may lie between two bytes
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (1_048_524, "1023.9 KiB"),
        (1_048_525, "1.0 MiB"),  # 1023.95 KiB: rounded, it fills the next unit
        (2**20 - 1, "1.0 MiB"),
        (2**20, "1.0 MiB"),
        (1_073_689_395, "1023.9 MiB"),
        (1_073_689_396, "1.00 GiB"),
        (2**30 - 1, "1.00 GiB"),
        (2**30, "1.00 GiB"),
        (5 * 2**28, "1.25 GiB"),
        (2**40, "1024.00 GiB"),  # there is no larger unit
    ],
)
def test_bytes_are_printed_in_the_largest_unit_that_they_fill(size: float, text: str) -> None:
    assert format_bytes(size) == text


@pytest.mark.parametrize(("tokens", "text"), [((8, 8), "8"), ((5, 3, 8), "3 to 8 (3 batch rows)")])
def test_tokens_of_batch_rows_are_a_range_where_they_differ(tokens: tuple[int, ...], text: str) -> None:
    report = Report(policy=full(), backend="torch", tokens=tokens, layers=())
    assert f"tokens seen {text} · " in str(report)
