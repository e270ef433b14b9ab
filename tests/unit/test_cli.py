"""The command line of the core, and how plug-in commands are found."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest
from typer.testing import CliRunner

import kvpolicy
from kvpolicy.cli import _plugins, app
from kvpolicy.cli._pretty import pretty

WIDE = {"COLUMNS": "160", "TERMINAL_WIDTH": "160"}


def run(*args: str) -> tuple[int, str, str]:
    result = CliRunner(env=WIDE).invoke(app, list(args))
    return result.exit_code, result.stdout, result.stderr


def words(text: str) -> str:
    """Text without line breaks: a terminal wraps where it likes."""
    return " ".join(text.split())


def test_policies_lists_every_recipe_with_its_source() -> None:
    code, out, _ = run("policies")
    assert code == 0
    for name in kvpolicy.RECIPES:
        assert f" {name} " in out
    assert "arXiv 2407.18121" in words(out)


@pytest.mark.parametrize("name", list(kvpolicy.RECIPES))
def test_explain_prints_a_composition_that_is_the_policy(name: str) -> None:
    code, out, _ = run("explain", name)
    assert code == 0
    needed = {"full": {}, "head_kv": {"keep": 0.2, "table": ((2, 1), (1, 1))}}
    expected = kvpolicy.RECIPES[name](**needed.get(name, {"keep": 0.2}))
    _, _, printed = out.partition("composition")
    source = printed.partition("\n")[2].strip()
    assert eval(source, vars(kvpolicy)) == expected  # what is printed can be pasted


def test_explain_shows_formula_source_and_arguments() -> None:
    code, out, _ = run("explain", "elastic_cache")
    assert code == 0
    assert "elastic_cache(*, keep=None" in out
    assert "s_j = sum_i mean_h A[h, i, j]" in words(out)
    assert "ECCV 2024, arXiv 2407.18121, sections 3.2 and 3.3." in words(out)
    assert "distance rows at the end of the compressed prompt" in words(out)


def test_unknown_recipe_names_those_there_are() -> None:
    code, out, err = run("explain", "elastic")
    assert code == 2
    assert out == ""
    assert words(err) == f"error: no recipe 'elastic'; there are: {', '.join(kvpolicy.RECIPES)}."


def test_help_lists_the_commands() -> None:
    code, out, _ = run("--help")
    assert code == 0
    for command in ("policies", "explain"):
        assert command in out
    assert run()[1].strip() == out.strip()  # no arguments: the help


def test_version() -> None:
    assert run("--version")[:2] == (0, f"kvpolicy {kvpolicy.__version__}\n")


def test_help_and_policies_import_no_framework() -> None:
    script = (
        "import sys\n"
        "from kvpolicy.cli import app\n"
        "for args in (['--help'], ['policies'], ['explain', 'h2o']): app(args, standalone_mode=False)\n"
        "print('loaded:', sorted({'torch', 'transformers', 'matplotlib', 'kvpolicy_hf'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded: []"


def test_python_dash_m() -> None:
    done = subprocess.run([sys.executable, "-m", "kvpolicy", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"kvpolicy {kvpolicy.__version__}\n"


class TestPlugins:
    """A package brings a command by an entry point; it is imported only when it runs."""

    @pytest.fixture
    def install(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
        monkeypatch.syspath_prepend(tmp_path)

        def install(module: str, source: str) -> None:
            (tmp_path / f"{module}.py").write_text(source, encoding="utf-8")
            entry = EntryPoint(name="extra", value=f"{module}:extra", group=_plugins.GROUP)
            monkeypatch.setattr(_plugins, "entry_points", lambda group: EntryPoints([entry]))

        return install

    def test_runs_with_its_own_options(self, install) -> None:
        install("plug_fine", 'def extra(times: int = 1) -> None:\n    """Say it."""\n    print("hello " * times)\n')
        assert run("extra", "--times", "2")[:2] == (0, "hello hello \n")
        assert "--times" in run("extra", "--help")[1]

    def test_help_reads_the_summary_without_importing(self, install) -> None:
        install(
            "plug_lazy", 'raise RuntimeError("imported")\n\n\ndef extra() -> None:\n    """Do something extra."""\n'
        )
        code, out, _ = run("--help")
        assert code == 0
        assert "Do something extra." in out
        assert "plug_lazy" not in sys.modules

    def test_missing_dependency_says_what_to_install(self, install) -> None:
        install("plug_poor", 'import no_such_library\n\n\ndef extra() -> None:\n    """Need much."""\n')
        code, out, err = run("extra", "--some-option", "3")
        assert code == 1
        assert out == ""
        assert "No module named 'no_such_library'" in words(err)
        assert "pip install plug_poor" in words(err)
        assert run("policies")[0] == 0  # the rest of the command line still works

    def test_missing_dependency_names_the_extra_of_the_distribution(self) -> None:
        demo = _plugins.installed()["demo"]
        assert _plugins.how_to_install(demo) == 'pip install "kvpolicy[hf]"'

    def test_its_kvpolicy_errors_are_one_line(self, install) -> None:
        install(
            "plug_wrong",
            "import kvpolicy\n\n\ndef extra() -> None:\n    raise kvpolicy.CacheError('no. Hint: yes.')\n",
        )
        assert run("extra") == (2, "", "error: no. Hint: yes.\n")

    def test_other_errors_keep_their_traceback(self, install) -> None:
        install("plug_bug", "def extra() -> None:\n    raise ZeroDivisionError('bug')\n")
        result = CliRunner().invoke(app, ["extra"])
        assert isinstance(result.exception, ZeroDivisionError)


class TestPretty:
    def test_one_argument_a_line_where_it_does_not_fit(self) -> None:
        policy = kvpolicy.streaming_llm(keep=0.25)
        assert pretty(policy.prefill, width=40) == (
            "Pipeline(\n    schedule=KeepRatio(keep=0.25),\n    score=Recency(),\n    select=TopK(first=4),\n)"
        )
        assert pretty(policy.prefill, width=200) == repr(policy.prefill)

    def test_a_repr_that_is_no_python_stays(self) -> None:
        assert pretty(object).startswith("<class 'object'")
