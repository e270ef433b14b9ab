"""The examples run, offline, and print what they promise."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from pages import ROOT

from kvpolicy import catalogue

EXAMPLES = ROOT / "examples"

# Users are shown a name of the cache that warns of nothing; our other tests have one for every version of transformers.
pytestmark = pytest.mark.filterwarnings("error:`past_key_values` is deprecated:FutureWarning")


def run(example: str, *options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `python examples/<example> <options>` would."""
    monkeypatch.setattr(sys, "argv", [example, *options])
    runpy.run_path(str(EXAMPLES / example), run_name="__main__")


def test_two_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("01_two_lines.py", monkeypatch=monkeypatch)
    out = capsys.readouterr().out
    assert "question: where is the " in out
    assert "Policy(\n    prefill=Pipeline(" in out
    assert "of full" in out


def test_own_scorer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("02_own_scorer.py", "--pictures", "1", monkeypatch=monkeypatch)
    kinds, *rows = capsys.readouterr().out.splitlines()
    assert kinds.split() == ["grid", "photo"]
    assert [row.split()[0] for row in rows] == [*catalogue(keep=0.2), "LoudValues"]
    assert all(cell.endswith("/4") for row in rows for cell in row.split()[1:])


def test_examples_are_numbered() -> None:
    names = sorted(path.name for path in EXAMPLES.glob("*.py"))
    assert [name[:2] for name in names] == [f"{number:02}" for number in range(1, len(names) + 1)]


def test_smollm2_perplexity(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    table = tmp_path / "table.md"
    options = ("--prompt", "48", "--score", "3", "--texts", "1", "--keep", "0.5", "--table", str(table))
    run("03_smollm2_perplexity.py", *options, monkeypatch=monkeypatch)
    rows = [line.split("|")[1:-1] for line in table.read_text().splitlines() if line.startswith("| `")]
    full, *others = ((name.strip(), float(perplexity)) for name, _, perplexity, *_ in rows)
    assert full[0] == "`full`"
    assert {name.split("`")[1] for name, _ in others} == catalogue(keep=0.5).keys() - {"full"}
    assert 1 < full[1] < 100, "a language model that was loaded right predicts English"
    assert all(perplexity > 1 for _, perplexity in others)


def test_shared_prompt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("06_shared_prompt.py", monkeypatch=monkeypatch)
    first, *answers, last = capsys.readouterr().out.splitlines()
    shared, rows = (int(word) for word in first.split() if word.isdigit())
    assert rows == round(0.5 * shared)
    assert len(answers) == 3
    for line in answers:
        said, _, right = line.partition("(right: ")
        assert said.rstrip().endswith(right.rstrip(")"))
    assert last == f"the shared cache still holds {shared} tokens"


def test_assisted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("07_assisted.py", monkeypatch=monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    for line in lines:
        one_by_one, guessing = (int(word) for word in line.split() if word.isdigit())
        assert guessing < one_by_one
        assert line.endswith(": the same tokens")


def test_device_map(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("09_device_map.py", monkeypatch=monkeypatch)
    _, answer, *devices = capsys.readouterr().out.splitlines()
    assert answer.startswith("answer:")
    assert devices
    assert all(line.endswith(" rows kept by its plans") for line in devices)
