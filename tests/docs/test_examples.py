"""The examples run, offline, and print what they promise."""

from __future__ import annotations

import runpy
import sys

import pytest
from pages import ROOT

from kvpolicy import RECIPES

EXAMPLES = ROOT / "examples"


def run(example: str, *options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `python examples/<example> <options>` would."""
    monkeypatch.setattr(sys, "argv", [example, *options])
    runpy.run_path(str(EXAMPLES / example), run_name="__main__")


def test_two_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("01_two_lines.py", monkeypatch=monkeypatch)
    out = capsys.readouterr().out
    assert "question: where is the " in out
    assert "Policy(prefill=Pipeline(" in out
    assert "of full" in out


def test_own_scorer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("02_own_scorer.py", "--pictures", "1", monkeypatch=monkeypatch)
    kinds, *rows = capsys.readouterr().out.splitlines()
    assert kinds.split() == ["grid", "photo"]
    assert [row.split()[0] for row in rows] == [*RECIPES, "LoudValues"]
    assert all(cell.endswith("/4") for row in rows for cell in row.split()[1:])


def test_examples_are_numbered() -> None:
    names = sorted(path.name for path in EXAMPLES.glob("*.py"))
    assert [name[:2] for name in names] == [f"{number:02}" for number in range(1, len(names) + 1)]
