"""The report: one file that is whole, escaped, accessible, and says what the numbers are."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from made_rows import realistic, simple

from kvpolicy import PolicyError
from kvpolicy_hf.evaluate.definitions import METRICS
from kvpolicy_hf.evaluate.report import write_report
from kvpolicy_hf.evaluate.report_examples import choose_examples
from kvpolicy_hf.evaluate.summary import summarise

VOID = {"meta", "br", "img", "link", "input", "hr"}
NASTY = "<script>alert('x')</script> & <b onclick=\"x\">bold</b> </td></table>"
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)


class Page(HTMLParser):
    """What is on a page; fails where tags do not balance."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[tuple[str, str]] = []  # with the tag that they are in
        self.declared = ""
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_decl(self, decl: str) -> None:
        self.declared = decl

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), f"<{tag}> has an attribute twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag not in VOID
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.words.append((self.open[-1] if self.open else "", data.strip()))

    def text(self) -> str:
        return " ".join(word for tag, word in self.words if tag not in {"script", "style"})

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def written(path: Path, rows: pl.DataFrame, **more: Any) -> tuple[str, Page]:
    """The report of these rows, as text and parsed."""
    arguments: dict[str, Any] = {"title": "A run", "provenance": {"model": "demo", "device": "cpu"}, **more}
    write_report(path / "report.html", rows=rows, summary=summarise(rows, resamples=100), **arguments)
    text = (path / "report.html").read_text(encoding="utf-8")
    return text, Page(text)


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    return realistic(own=("mine",), samples=6)


@pytest.fixture(scope="module")
def report(rows: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Page]:
    pictures = [("Quality & bytes", PIXEL), ('A "second" one', PIXEL)]
    return written(tmp_path_factory.mktemp("report"), rows, pictures=pictures)


class TestWhole:
    def test_it_is_html_with_a_language_and_a_width_for_phones(self, report: tuple[str, Page]) -> None:
        text, page = report
        assert text.startswith("<!DOCTYPE html>")
        assert page.declared == "DOCTYPE html"
        assert page.all("html") == [{"lang": "en"}]
        assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")

    def test_it_refers_to_nothing_outside(self, report: tuple[str, Page]) -> None:
        text, page = report
        for tag, attributes in page.tags:
            for name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href"):
                value = attributes.get(name) or ""
                assert value == "" or value.startswith(("#", "data:image/png;base64,")), (tag, name, value[:60])
        assert not re.search(r"https?:|@import|url\(|//[a-z]+\.", text)
        assert not page.all("link")
        policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv"))
        assert policy is not None
        assert policy.startswith("default-src 'none'; img-src data:;")

    def test_links_lead_to_sections(self, report: tuple[str, Page]) -> None:
        _, page = report
        identities = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
        assert len(set(identities)) == len(identities)
        assert {(a["href"] or "")[1:] for a in page.all("a")} == set(identities)

    def test_every_picture_has_words(self, report: tuple[str, Page]) -> None:
        _, page = report
        assert [image["alt"] for image in page.all("img")] == ["Quality & bytes", 'A "second" one']
        source = page.all("img")[0]["src"]
        assert source is not None
        assert base64.b64decode(source.partition(",")[2]) == PIXEL
        assert not page.all("svg")

    def test_it_follows_light_and_dark(self, report: tuple[str, Page]) -> None:
        text, _ = report
        assert "@media (prefers-color-scheme: dark)" in text
        assert "color-scheme: light dark" in text

    def test_without_pictures_and_answers_their_sections_are_not_there(self, tmp_path: Path) -> None:
        text, page = written(tmp_path, simple({("full", 1.0): [1, 0], ("h2o", 0.2): [0, 0]}))
        assert {attributes["id"] for _, attributes in page.tags if "id" in attributes} == {
            *("run", "result", "tables", "meaning"),
        }
        assert "#examples" not in text


class TestNumbers:
    def cells(self, text: str, policy: str, budget: str) -> list[str]:
        """The first row of the page that begins with these two, tags taken out."""
        for row in re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL):
            cells = [
                " ".join(re.sub(r"<[^>]+>|&nbsp;|◆", " ", cell).split())
                for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)
            ]
            if cells[:2] == [policy, budget]:
                return cells
        raise AssertionError(f"no row of {policy} at {budget}")

    def test_the_headline_has_what_the_summary_has(self, tmp_path: Path) -> None:
        quality = simple({("full", 1.0): [1, 1, 0, 1], ("h2o", 0.2): [0, 1, 0, 0], ("mine", None): [1, 1, 0, 1]})
        text, _ = written(tmp_path, quality)
        assert self.cells(text, "full", "100%") == ["full", "100%", "75.0% [25.0, 100.0]", "", "100.0%"]
        assert self.cells(text, "mine", "own") == ["mine", "own", "75.0% [25.0, 100.0]", "0.0 [0.0, 0.0] ≈", "30.0%"]
        ours = self.cells(text, "h2o", "20%")
        assert ours[2].startswith("25.0% [0.0, ")
        assert ours[3].startswith("\N{MINUS SIGN}50.0 [\N{MINUS SIGN}100.0, ")
        assert ours[4] == "20.0%"

    def test_the_headline_has_perplexity_rouge_and_time(self, report: tuple[str, Page]) -> None:
        text, _ = report
        head = re.findall(r"<button[^>]*>([^<]*)</button>", text.split("</thead>")[0])
        assert head == [
            "policy",
            "budget",
            "quality",
            "difference to full",
            "bytes kept",
            "perplexity",
            "ROUGE-L",
            "seconds",
        ]

    def test_full_comes_first_then_larger_budgets_then_better_policies(self, tmp_path: Path) -> None:
        values = {("a", 0.2): [0.1], ("own", None): [1.0], ("b", 0.2): [0.2], ("a", 0.5): [0.0], ("c", 1.0): [1.0]}
        values[("full", 1.0)] = [0.5]
        text, _ = written(tmp_path, simple(values))
        body = text.split("<tbody>")[1].split("</tbody>")[0]
        order = re.findall(r'data-order="(\w+)">.*?<td data-order="([\d.]*)">', body, re.DOTALL)
        assert order == [("full", "1.0"), ("c", "1.0"), ("a", "0.5"), ("b", "0.2"), ("a", "0.2"), ("own", "")]

    def test_the_front_is_marked_where_it_is_better_than_chance(self, tmp_path: Path) -> None:
        arms = {("full", 1.0): [1.0] * 8, ("random", 0.2): [0.0, 1.0] * 4, ("lucky", 0.2): [1.0, 0.0] * 4}
        bytes_of = {"full": 1000, "random": 200, "lucky": 199, "good": 201}
        rows = simple({**arms, ("good", 0.2): [1.0] * 8}).with_columns(
            kv_bytes=pl.col("policy").replace_strict(bytes_of, return_dtype=pl.Int64)
        )
        text, _ = written(tmp_path, rows)
        table = text.partition("<tbody>")[2].partition("</tbody>")[0]
        assert [name for name in bytes_of if re.search(rf"◆</span>&nbsp;\s*{name}\b", table)] == ["good"]
        text, _ = written(tmp_path, rows.filter(pl.col("policy") != "random"))
        table = text.partition("<tbody>")[2].partition("</tbody>")[0]
        assert [name for name in bytes_of if re.search(rf"◆</span>&nbsp;\s*{name}\b", table)] == ["lucky", "good"]

    def test_marks_know_where_less_is_better(self, tmp_path: Path) -> None:
        values = {("full", 1.0): [0.5] * 9, ("more", 0.2): [0.9] * 9, ("less", 0.2): [0.1] * 9}
        rows = simple(values).with_columns(error="quality")
        text, _ = written(tmp_path, rows)
        table = text.split("<tbody>")[2].split("</tbody>")[0]
        marks = [re.findall(r'class="(better|worse|undecided)"', row) for row in table.split("</tr>")]
        assert marks[:3] == [[], ["better", "worse"], ["worse", "better"]]

    def test_every_task_has_a_table_with_every_arm(self, report: tuple[str, Page], rows: pl.DataFrame) -> None:
        _, page = report
        captions = [word for tag, word in page.words if tag == "summary"]
        assert [*dict.fromkeys(rows["task"])] == captions[3:6]
        arms = rows.select("policy", "keep").unique()
        assert sum(a.get("scope") == "row" and "data-order" in a for a in page.all("th")) == len(arms) * 5

    def test_columns_are_sorted_by_numbers_and_say_so(self, report: tuple[str, Page]) -> None:
        text, page = report
        heads = [head for head in page.all("th") if head.get("scope") == "col"]
        sortable = [head for head in heads if "aria-sort" in head]
        assert {head["aria-sort"] for head in sortable} == {"none"}
        assert len(page.all("button")) == len(sortable)
        orders = [cell["data-order"] or "" for cell in page.all("td") if "data-order" in cell]
        assert orders.count("") >= 4  # the differences of full, and own budgets
        for order in orders:
            float(order or 0)
        script = next(word for tag, word in page.words if tag == "script")
        assert 'setAttribute("aria-sort"' in script
        assert "th, td {" in text
        assert "text-align: right" in text

    def test_metrics_are_explained_if_they_are_there(self, report: tuple[str, Page], tmp_path: Path) -> None:
        _, page = report
        for metric in METRICS.values():
            assert metric.meaning in page.text()
            assert metric.meaning.endswith(".")
        _, bare = written(tmp_path, simple({("full", 1.0): [1, 0]}))
        assert METRICS["quality"].meaning in bare.text()
        assert METRICS["mass"].meaning not in bare.text()

    def test_arms_that_lack_a_task_are_named(self, tmp_path: Path) -> None:
        first = simple({("full", 1.0): [1, 1], ("h2o", 0.2): [1, 1]}, task="first")
        second = simple({("full", 1.0): [1, 1]}, task="second")
        _, page = written(tmp_path, pl.concat([first, second]))
        assert "Not in the means, because they lack a task: 'h2o' at keep=0.2." in page.text()

    def test_what_was_run_is_there_a_long_list_folded(self, rows: pl.DataFrame, tmp_path: Path) -> None:
        _, page = written(tmp_path, rows, provenance={f"name {n}": f"<value {n}>" for n in range(20)})
        assert "3 policies" not in page.text()
        assert "4 policies, 3 tasks, 18 samples" in page.text()
        assert "<value 19>" in page.text()
        assert ("summary", "4 more") in page.words


class TestAnswers:
    def test_what_a_model_says_stays_text(self, rows: pl.DataFrame, tmp_path: Path) -> None:
        nasty = pl.lit(NASTY)
        changed = rows.with_columns(
            said=pl.when(pl.col("policy") == "h2o").then(nasty).otherwise("said"),
            answer=nasty,
            policy=pl.col("policy").replace("mine", NASTY),
            task=pl.col("task").replace("needle", NASTY),
        )
        text, page = written(tmp_path, changed, title=NASTY, provenance={NASTY: NASTY}, pictures=[(NASTY, PIXEL)])
        assert "<script>alert" not in text
        assert "<b onclick" not in text
        assert len(page.all("script")) == 1
        assert page.text().count(NASTY) > 10
        assert page.all("img")[0]["alt"] == NASTY

    def test_the_same_and_others_are_marked(self, tmp_path: Path) -> None:
        rows = simple({("full", 1.0): [1], ("same", 0.2): [1], ("other", 0.2): [0], ("silent", 0.5): [0]})
        said = {"full": "a red  bird", "same": "a red bird\n", "other": "a dog", "silent": ""}
        rows = rows.with_columns(said=pl.col("policy").replace_strict(said), answer=pl.lit("a bird"))
        _, page = written(tmp_path, rows)
        text = page.text()
        assert "wanted a bird full a red  bird What each policy said at each budget policy 50% 20% " in text
        assert " same = same other ≠ a dog silent ≠ (nothing) " in text

    def test_long_answers_are_cut(self, tmp_path: Path) -> None:
        rows = simple({("full", 1.0): [1]}).with_columns(said=pl.lit("word " * 200))
        text, page = written(tmp_path, rows)
        assert "word …" in page.text()
        assert text.count("word") < 100
        assert "not given; the full cache's answer stands for it" in page.text()

    @pytest.mark.parametrize("count", [0, 1, 3, 5, 100])
    def test_samples_are_spread_over_tasks_that_answer(self, rows: pl.DataFrame, count: int) -> None:
        found = [f"{example.task}, sample {example.sample}" for example in choose_examples(rows, count)]
        expected = {
            0: [],
            1: ["where, sample 0"],
            3: ["where, sample 0", "where, sample 3", "needle, sample 0"],
            5: [*(f"where, sample {n}" for n in (0, 2, 4)), "needle, sample 0", "needle, sample 3"],
            100: [f"{task}, sample {n}" for task in ("where", "needle") for n in range(6)],
        }
        assert found == expected[count]


class TestRefused:
    def test_a_picture_that_is_no_png(self, rows: pl.DataFrame, tmp_path: Path) -> None:
        with pytest.raises(PolicyError, match=r"the picture 'Lines' is no PNG. Hint: charts.png"):
            written(tmp_path, rows, pictures=[("Lines", b"<svg/>")])
        assert not list(tmp_path.iterdir())
