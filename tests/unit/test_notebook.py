"""What a notebook shows: values over several lines, and a report as a table."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import kvpolicy
from kvpolicy import LayerReport, Policy, Report


class Printer:
    """As much of IPython's as is asked for."""

    def __init__(self) -> None:
        self.said = ""

    def text(self, said: str) -> None:
        self.said += said


class Cells(HTMLParser):
    """The rows of the tables in a page, and its other text."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: list[str] = []
        self.rest = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag != "br":
            self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.tags.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        else:
            self.rest += data


LAYER = LayerReport(
    rows=3.5,
    most=4,
    capacity=5.0,
    evicted=1,
    merged=2,
    recalled=3,
    exceeded=4,
    kv_bytes=1024,
    full_kv_bytes=4096,
    column_bytes=10,
    archive_bytes=2048,
)
REPORT = Report(policy=kvpolicy.look_m(keep=0.2), backend="torch", tokens=(7,), layers=(LAYER, LAYER))


def test_every_recipe_prints_as_a_call_that_makes_it_and_no_line_is_long() -> None:
    for policy in kvpolicy.catalogue(keep=0.2).values():
        said = shown(policy)
        assert eval(said, vars(kvpolicy)) == policy
        assert max(map(len, said.splitlines())) <= 100


def shown(value: Policy) -> str:
    printer = Printer()
    value._repr_pretty_(printer, cycle=False)
    return printer.said


def test_a_report_is_a_table_with_a_row_for_each_layer() -> None:
    page = Cells()
    page.feed(REPORT._repr_html_())
    head, *layers, last = page.rows
    assert head == ["layer", "rows", "most", "slots", "evicted", "merged", "K/V", "full"]
    assert layers == [[number, "3.5", "4", "5", "1", "2", "1.0 KiB", "4.0 KiB"] for number in "01"]
    assert last == ["all", "", "", "", "2", "4", "2.0 KiB", "8.0 KiB"]
    assert page.tags == []
    assert eval(page.rest[: page.rest.index("tokens seen")], vars(kvpolicy)) == REPORT.policy
    for line in ("25.0% of full, columns 20 B", "6 rows came back from the archive", "8 protected rows"):
        assert line in page.rest
        assert line in str(REPORT)


def test_what_a_note_says_is_no_markup() -> None:
    said = replace(REPORT, note="<script>")._repr_html_()
    assert "<script>" not in said
    assert "&lt;script&gt;" in said
