"""The tutorial's commands print what the page shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pages import ROOT

PAGE = ROOT / "docs" / "tutorials" / "prove-your-merger.md"

SCRIPT = "To see it again:"

_FENCE = re.compile(r"^```(?:python title=\"(?P<file>[\w.]+)\"|console)\n(?P<text>.*?)^```$", re.M | re.S)


@dataclass
class Command:
    """A command of the page.

    Attributes:
        line: the command.
        files: those that the page has given so far, by name.
        shown: what the page shows of its output, in one block or several; ``...`` stands for what is left out.
    """

    line: str
    files: dict[str, str]
    shown: list[str] = field(default_factory=list)


def commands() -> list[Command]:
    """Those of the page, each once as long as the files are the same."""
    files: dict[str, str] = {}
    found: list[Command] = []
    for match in _FENCE.finditer(PAGE.read_text(encoding="utf-8")):
        if match["file"]:
            files[match["file"]] = match["text"]
            continue
        prompt, _, shown = match["text"].partition("\n")
        line = prompt.removeprefix("$ ")
        if not found or (found[-1].line, found[-1].files) != (line, files):
            found.append(Command(line, dict(files)))
        found[-1].shown.append(shown)
    return found


def parts(shown: str) -> list[str]:
    """What is shown between two places where something is left out."""
    return [part for part in re.split(r"^\.\.\.$", shown, flags=re.M) if part.strip()]


@pytest.mark.parametrize("command", commands(), ids=lambda command: command.line)
def test_the_output_is_what_the_command_prints(command: Command, tmp_path: Path) -> None:
    said = run(command.line.split(), command.files, tmp_path)
    for shown in command.shown:
        rest = plain(said)
        for part in parts(shown):
            if SCRIPT in part:
                continue
            _, found, rest = rest.partition(plain(part))
            assert found, f"$ {command.line}\ndoes not print (in this place)\n\n{part}\nIt prints\n\n{said}"


FAILURES = [
    (command, part) for command in commands() for shown in command.shown for part in parts(shown) if SCRIPT in part
]


@pytest.mark.parametrize(
    ("command", "failure"), FAILURES, ids=[failure.split(":")[0].strip() for _, failure in FAILURES]
)
def test_a_failure_is_what_its_own_script_gives(command: Command, failure: str, tmp_path: Path) -> None:
    """Which example the kit finds may change with it; that this is one, and all that is said of it, may not."""
    script = textwrap.dedent(failure.partition(SCRIPT)[2])
    said = run(["failure"], {**command.files, "failure.py": script}, tmp_path)
    assert plain(failure) in plain(said), said


def run(words: list[str], files: dict[str, str], folder: Path) -> str:
    """What ``python -m`` with these words prints in a folder with these files."""
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    environ = {name: value for name, value in os.environ.items() if name != "CI" and not name.startswith("PYTEST_")}
    ran = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=folder,
        env={**environ, "COLUMNS": "96", "PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    return ran.stdout + ran.stderr


def test_commands_are_found() -> None:
    assert [len(command.shown) for command in commands()] == [3, 1, 1]
    assert len(FAILURES) == 2


def plain(text: str) -> str:
    """Lines may be wrapped otherwise, and take another time."""
    return re.sub(r"\b\d+\.\d+ ?s\b", "N s", " ".join(text.split()))
