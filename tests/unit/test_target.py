"""What a command line names: a recipe, or something in a module of the user's."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import kvpolicy
from kvpolicy import PolicyError, from_target

MINE = """
import kvpolicy

PLAIN = kvpolicy.KeyNorm()

def half(keep):
    return kvpolicy.h2o(keep=keep / 2)

class Window:
    def __init__(self, size=3):
        self.size = size
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with modules of the user's, which are forgotten afterwards."""
    (tmp_path / "module_of_mine.py").write_text(MINE, encoding="utf-8")
    (tmp_path / "broken_of_mine.py").write_text("import nothing_of_that_name", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(tmp_path)])
    for name in ("module_of_mine", "broken_of_mine"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def test_recipes_by_name_and_by_call() -> None:
    assert from_target("h2o", keep=0.5) == kvpolicy.h2o(keep=0.5)
    assert from_target("h2o(keep=0.2)", keep=0.5) == from_target("h2o(keep=0.2)") == kvpolicy.h2o(keep=0.2)


def test_what_a_module_holds_and_what_it_makes(here: Path) -> None:
    assert from_target("module_of_mine:PLAIN", keep=0.5) == kvpolicy.KeyNorm()
    assert from_target("module_of_mine:Window", keep=0.5).size == 3
    assert from_target("module_of_mine:Window(size=5)").size == 5
    assert sys.path.count(str(here)) == 1


def test_a_budget_goes_to_what_takes_one(here: Path) -> None:
    assert from_target("module_of_mine:half", keep=0.4) == kvpolicy.h2o(keep=0.2)
    assert from_target("module_of_mine:half(keep=0.2)", keep=0.4) == kvpolicy.h2o(keep=0.1)
    assert from_target("builtins:dict", keep=0.4) == {}  # which has no signature to look at


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("h20", r"no recipe 'h20'\. Hint: h2o\. For a policy or a stage of your own: module:Name\."),
        ("8.5", r"of your own: module:Name\."),
        ("my.module.Window(size=5)", r"of your own: my\.module:Window\(size=5\)\."),
        ("module_of_mine.py", r"of your own: module_of_mine:Name\."),
        ("h2o(rows=-1)", "rows"),
        ("module_of_mine:PLAIN(size=3)", "PLAIN is an instance already and takes no arguments"),
        ("module_of_mine:half", r"cannot be made: half\(\) missing 1 required"),
        ("module_of_mine:PLANE", "has no 'PLANE'.*PLAIN"),
        ("nothing_of_that_name:It", "there is no module 'nothing_of_that_name'"),
        ("module_of_mine.inner:It", "there is no module 'module_of_mine.inner'"),
        (":It", "'' is no name of a module"),
        (".inner:It", "'.inner' is no name of a module"),
    ],
)
def test_what_is_not_there_is_told_by_name(here: Path, target: str, words: str) -> None:
    with pytest.raises(PolicyError, match=words):
        from_target(target)


def test_a_module_that_lacks_something_itself_is_not_called_missing(here: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match="nothing_of_that_name") as caught:
        from_target("broken_of_mine:It")
    error: Any = caught.value
    assert not isinstance(error, PolicyError)
