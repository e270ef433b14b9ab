"""The one progress bar of all commands: on stderr, with a time for what is left, and gone when all is done."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

import kvpolicy_hf
from kvpolicy_hf._progress import Bar, progress_bar

HERE = Path(kvpolicy_hf.__file__).parent


@pytest.fixture
def shown() -> Iterator[Progress]:
    with Progress(console=Console(file=io.StringIO()), disable=True) as progress:
        yield progress


def state(progress: Progress) -> tuple[str, float, float | None]:
    (task,) = progress.tasks
    return task.description, task.completed, task.total


def test_it_begins_without_a_total_and_goes_on(shown: Progress) -> None:
    bar = Bar(shown, "loading the model")
    assert state(shown) == ("loading the model", 0, None)
    bar.begin("asking", 3)
    bar.advance()
    assert state(shown) == ("asking", 1, 3)
    bar.begin("summing up")
    assert state(shown) == ("summing up", 0, None)  # nobody knows how long, though the last total was known


def test_what_is_shown_anew_begins_anew(shown: Progress) -> None:
    bar = Bar(shown, "loading the model")
    bar.show("replaying", 5, 9)
    (first,) = shown.tasks
    bar.show("replaying", 6, 9)
    assert state(shown) == ("replaying", 6, 9)
    assert shown.tasks[0].id == first.id
    bar.show("answering", 1, 4)
    assert state(shown) == ("answering", 1, 4)
    assert shown.tasks[0].id != first.id  # its own clock: an answer takes longer than a replay


def test_it_writes_to_stderr_alone(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    monkeypatch.setenv("TERM", "xterm-256color")
    with progress_bar("loading the model") as bar:
        bar.show("asking", 1, 2)
    out, err = capsys.readouterr()
    assert out == ""
    assert "asking" in err
    assert "1/2" in err


def test_every_command_has_this_bar() -> None:
    commands = sorted(HERE.glob("*/command.py"))
    assert [path.parent.name for path in commands] == ["demo", "evaluate", "simulate", "tune"]
    for path in commands:
        source = path.read_text(encoding="utf-8")
        assert "from .._progress import progress_bar" in source
        assert "rich.progress" not in source
