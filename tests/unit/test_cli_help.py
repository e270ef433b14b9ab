"""What the command line says of itself: its version, an example for every command, and what a shell may complete."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

import kvpolicy
from kvpolicy.cli import _plugins, app

COMMANDS = ("policies", "explain", *_plugins.installed())
SHELLS = ("bash", "zsh", "fish")


def run(*args: str, **env: str) -> str:
    wide = {"COLUMNS": "160", "TERMINAL_WIDTH": "160"}
    result = CliRunner(env=wide | env).invoke(app, list(args), prog_name="kvpolicy")
    assert result.exit_code == 0, result.output
    return result.stdout


def completed(line: str) -> list[str]:
    """What bash is told to offer at the end of a line."""
    words = line.split(" ")
    return run(_KVPOLICY_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1)).split()


def in_a_shell(home: Path, *args: str) -> str:
    """The installed command; typer asks which shell runs it, unless its own tests' variable tells it not to."""
    env = os.environ | {"HOME": str(home), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    command = [Path(sys.executable).with_name("kvpolicy"), *args]
    return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout


def test_the_version_is_that_of_the_distribution() -> None:
    assert version("kvpolicy") == kvpolicy.__version__
    assert run("--version") == f"kvpolicy {version('kvpolicy')}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_examples_of_the_command(command: str) -> None:
    shown = run(command, "--help").partition("Examples:")[2].partition("╭")[0]
    examples = [line.strip() for line in shown.splitlines() if line.strip()]
    assert examples
    assert all(f"kvpolicy {command}" in line or line.startswith("--") for line in examples)  # options of a long one


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_use_options_that_there_are(command: str) -> None:
    text = run(command, "--help")
    examples, _, options = text.partition("Examples:")[2].partition("╭")
    known = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", options))
    mine = "\n".join(line.partition("-m kvpolicy")[2] or line for line in examples.splitlines())  # not torchrun's
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", mine)) <= known


class TestCompletion:
    def test_commands(self) -> None:
        assert completed("kvpolicy ") == list(COMMANDS)
        assert completed("kvpolicy ex") == ["explain"]

    def test_recipes(self) -> None:
        assert completed("kvpolicy explain ") == list(kvpolicy.RECIPES)
        assert completed("kvpolicy explain key") == ["key_diff"]

    def test_a_plug_in_is_not_imported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("kvpolicy.cli._group.load", lambda entry: pytest.fail(f"{entry.name} was imported"))
        assert completed("kvpolicy demo --") == []

    @pytest.mark.parametrize("shell", SHELLS)
    def test_a_shell_is_given_its_script(self, shell: str, tmp_path: Path) -> None:
        script = in_a_shell(tmp_path, "--show-completion", shell)
        assert f"_KVPOLICY_COMPLETE=complete_{shell}" in script

    def test_it_is_installed_where_the_shell_looks(self, tmp_path: Path) -> None:
        in_a_shell(tmp_path, "--install-completion", "bash")
        (script,) = tmp_path.rglob("kvpolicy.sh")
        assert "_KVPOLICY_COMPLETE=complete_bash" in script.read_text(encoding="utf-8")
        sourced = (tmp_path / ".bashrc").read_text(encoding="utf-8")
        assert Path(shlex.split(sourced)[-1]) == script
