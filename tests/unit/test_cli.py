"""The command line of the core, and how plug-in commands are found."""

from __future__ import annotations

import importlib
import re
import runpy
import subprocess
import sys
import types
import zipfile
from collections.abc import Callable
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import kvpolicy
from kvpolicy._repr import pretty
from kvpolicy.cli import _plugins, app

Offer = Callable[[str], None]
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


def test_explain_shows_formula_source_use_and_arguments() -> None:
    code, out, _ = run("explain", "elastic_cache")
    assert code == 0
    assert "elastic_cache(*, keep=None" in out
    assert "s_j = sum_i mean_h A[h, i, j]" in words(out)
    assert "ECCV 2024, arXiv 2407.18121, sections 3.2 and 3.3." in words(out)
    assert "good for an instruction about a picture or a text" in words(out)
    assert "not for prompts in which one exact token matters" in words(out)
    assert "distance rows at the end of the compressed prompt" in words(out)


@pytest.mark.parametrize("name", ["h2o(recent=0.25)", "kvpolicy.policies:h2o(recent=0.25)"])
def test_explain_prints_what_a_call_or_something_of_ones_own_is_made_of(name: str) -> None:
    code, out, _ = run("explain", name)
    assert code == 0
    assert words(out).startswith(f"composition of {name}")
    assert eval(out.strip().partition("\n")[2], vars(kvpolicy)) == kvpolicy.h2o(keep=0.2, recent=0.25)


def test_unknown_recipe_names_the_nearest() -> None:
    code, out, err = run("explain", "elastic")
    assert code == 2
    assert out == ""
    assert words(err) == (
        "error: no recipe 'elastic'. Hint: elastic_cache. For a policy or a stage of your own: module:Name."
    )


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


def test_what_is_wrong_on_the_line_is_told_before_a_framework_is_imported() -> None:
    lines = [
        ["evil"],
        ["eval", "--nonsense"],
        ["eval", "--help"],
        ["tune", "--keep", "x"],
        ["check", "--no"],
        ["check"],
    ]
    script = (
        "import sys\n"
        "from kvpolicy.cli import app\n"
        f"for args in {lines}:\n"
        "    try: app(args)\n"
        "    except SystemExit as left: print(left.code)\n"
        "slow = {'torch', 'transformers', 'matplotlib', 'polars', 'hypothesis', 'kvpolicy_hf', 'kvpolicy.testing'}\n"
        "print('loaded:', sorted(slow & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert [line for line in done.stdout.splitlines() if line in {"0", "1", "2"}] == list("220222")
    assert done.stdout.splitlines()[-1] == "loaded: []"
    assert "No such command 'evil'" in done.stderr
    assert "No such option: --nonsense" in done.stderr


@pytest.mark.parametrize("entry", _plugins.installed().values(), ids=lambda entry: entry.name)
def test_the_help_is_that_of_the_function(entry: EntryPoint) -> None:
    real = typer.Typer(add_completion=False)
    real.command(entry.name, context_settings={"help_option_names": ["-h", "--help"]})(entry.load())
    expected = CliRunner(env=WIDE).invoke(real, ["--help"], prog_name=f"kvpolicy {entry.name}").stdout
    told = CliRunner(env=WIDE).invoke(app, [entry.name, "--help"], prog_name="kvpolicy").stdout
    assert told == expected


def test_python_dash_m() -> None:
    done = subprocess.run([sys.executable, "-m", "kvpolicy", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"kvpolicy {kvpolicy.__version__}\n"


class TestTheModule:
    """What `python -m kvpolicy` runs, in this process."""

    @pytest.fixture(autouse=True)
    def anew(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delitem(sys.modules, "kvpolicy.__main__", raising=False)

    @pytest.mark.parametrize(("word", "code"), [("--version", 0), ("--no-such-option", 2)])
    def test_it_is_the_command_with_its_exit_code(
        self, word: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(sys, "argv", ["kvpolicy", word])
        with pytest.raises(SystemExit) as left:
            runpy.run_module("kvpolicy", run_name="__main__")
        assert left.value.code == code
        assert capsys.readouterr().out == (f"kvpolicy {kvpolicy.__version__}\n" if code == 0 else "")

    def test_importing_it_runs_nothing(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(sys, "argv", ["kvpolicy", "--version"])
        assert importlib.import_module("kvpolicy.__main__").__name__ == "kvpolicy.__main__"
        assert capsys.readouterr().out == ""


class TestPlugins:
    """A package brings a command by an entry point; it is imported only when it runs."""

    @pytest.fixture
    def offer(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Offer:
        """Make the command `extra` be what an entry point says, of a module in the temporary folder."""
        monkeypatch.syspath_prepend(tmp_path)

        def offer(value: str) -> None:
            entry = EntryPoint(name="extra", value=value, group=_plugins.GROUP)
            monkeypatch.setattr(_plugins, "entry_points", lambda group: EntryPoints([entry]))

        return offer

    @pytest.fixture
    def install(self, tmp_path: Path, offer: Offer) -> object:
        def install(module: str, source: str) -> None:
            (tmp_path / f"{module}.py").write_text(source, encoding="utf-8")
            offer(f"{module}:extra")

        return install

    def test_runs_with_its_own_options(self, install) -> None:
        install("plug_fine", 'def extra(times: int = 1) -> None:\n    """Say it."""\n    print("hello " * times)\n')
        assert run("extra", "--times", "2")[:2] == (0, "hello hello \n")
        assert "--times" in run("extra", "--help")[1]

    @pytest.mark.parametrize(
        ("before", "signature"),
        [
            ("", "times: int = 1"),
            ("from __future__ import annotations\nimport typing as t\n", "times: t.Optional[int] = None"),
            ("import pathlib, typer\n", "path: pathlib.Path = pathlib.Path('x'), times: int = typer.Option(1)"),
            ("from __future__ import annotations\nFIRST, (AGAIN, _) = 1, (2, 3)\n", "times: int = FIRST + AGAIN"),
        ],
    )
    def test_its_options_are_read_before_it_is_imported(self, before: str, signature: str, install) -> None:
        install("plug_slow", f"{before}raise RuntimeError('imported')\n\n\ndef extra({signature}):\n    pass\n")
        assert "--times" in run("extra", "--help")[1]
        assert "Invalid value for '--times'" in words(run("extra", "--times", "x")[2])
        assert "plug_slow" not in sys.modules
        result = CliRunner().invoke(app, ["extra", "--times", "2"])
        assert str(result.exception) == "imported"

    @pytest.mark.parametrize(
        "source",
        [
            "def same(function):\n    return function\n\n\n@same\ndef extra(times: int = 1): print(times)\n",
            "from fractions import *\n\n\ndef extra(times: int = int(Fraction(1))): print(times)\n",
            "FIRST = int('1')\n\n\ndef extra(times: int = FIRST): print(times)\n",
            "class Box: pass\n\n\nBox.first = 1\n\n\ndef extra(times: int = Box.first): print(times)\n",
            "import colorsys, kvpolicy\n\n\ndef extra(times: int = len(kvpolicy.RECIPES) - 20): print(times)\n",
            "from kvpolicy import RECIPES\n\n\ndef extra(times: int = len(RECIPES) - 20): print(times)\n",
            "class Made:\n    def __call__(self, times: int = 1): print(times)\n\n\nextra = Made().__call__\n",
        ],
    )
    def test_whose_source_does_not_say_them_is_imported(self, source: str, install, monkeypatch) -> None:
        monkeypatch.delitem(sys.modules, "plug_whole", raising=False)
        install("plug_whole", source)
        assert run("extra", "--times", "2")[:2] == (0, "2\n")
        assert "--times" in run("extra", "--help")[1]

    def test_help_reads_the_summary_without_importing(self, install) -> None:
        install(
            "plug_lazy", 'raise RuntimeError("imported")\n\n\ndef extra() -> None:\n    """Do something extra."""\n'
        )
        code, out, _ = run("--help")
        assert code == 0
        assert "Do something extra." in out
        assert "plug_lazy" not in sys.modules

    @pytest.mark.parametrize(
        ("where", "module"),
        [
            ("plug_pack/__init__.py", "plug_pack"),
            ("plug_deep/part.py", "plug_deep.part"),
            ("plug_deeper/part/__init__.py", "plug_deeper.part"),
            ("plug_space/part/command.py", "plug_space.part.command"),  # no __init__ anywhere: a namespace package
        ],
    )
    def test_the_summary_is_found_wherever_a_module_may_lie(
        self, where: str, module: str, tmp_path: Path, offer: Offer
    ) -> None:
        root = tmp_path / where.partition("/")[0]
        source = tmp_path / where
        source.parent.mkdir(parents=True)
        if where.startswith("plug_deep"):
            (root / "__init__.py").write_text("raise RuntimeError('imported')\n", encoding="utf-8")
        source.write_text('def extra() -> None:\n    """Do it there.\n\n    At length.\n    """\n', encoding="utf-8")
        offer(f"{module}:extra")
        code, out, _ = run("--help")
        assert code == 0
        assert "Do it there." in out
        assert "At length." not in out
        assert root.name not in sys.modules

    def test_a_summary_in_another_encoding(self, tmp_path: Path, offer: Offer) -> None:
        text = '# -*- coding: latin-1 -*-\ndef extra() -> None:\n    """Größer."""\n'
        (tmp_path / "plug_latin.py").write_text(text, encoding="latin-1")
        offer("plug_latin:extra")
        assert "Größer." in run("--help")[1]

    @pytest.mark.parametrize(
        ("value", "content"),
        [
            ("plug_dumb:extra", b"def extra(): pass\n"),
            ("plug_other:extra", b'def another():\n    """Not this."""\n'),
            ("plug_object:extra", b'class extra:\n    """Not this."""\n'),
            ("plug_gone:extra", None),
            ("plug_gone.part:extra", None),
            ("sys:extra", None),  # has no source
            ("plug_flat.part:extra", b'def extra():\n    """Not this."""\n'),  # a module has no parts
            ("plug_broken:extra", b"def extra(:\n"),
            ("plug_binary:extra", b"\x7fELF\x00\xff\xfe"),
            ("plug_bytes:extra", b'def extra():\n    """\xff"""\n'),
        ],
    )
    def test_help_stands_whatever_a_plug_in_is(
        self, value: str, content: bytes | None, tmp_path: Path, offer: Offer
    ) -> None:
        if content is not None:
            (tmp_path / f"{value.partition(':')[0].partition('.')[0]}.py").write_bytes(content)
        offer(value)
        code, out, err = run("--help")
        assert (code, err) == (0, "")
        assert re.search(r"^\W*extra\W*$", out, re.M)  # its name, and no summary
        assert run("policies")[0] == 0

    def test_a_summary_is_not_looked_for_in_an_archive(self, tmp_path: Path, offer: Offer, monkeypatch) -> None:
        with zipfile.ZipFile(tmp_path / "packed.zip", "w") as packed:
            packed.writestr("plug_zipped.py", 'def extra() -> None:\n    """Say it."""\n    print("zipped")\n')
        monkeypatch.syspath_prepend(tmp_path / "packed.zip")
        offer("plug_zipped:extra")
        assert "Say it." not in run("--help")[1]
        assert run("extra")[:2] == (0, "zipped\n")

    def test_a_module_without_a_spec(self, offer: Offer, monkeypatch: pytest.MonkeyPatch) -> None:
        bare = types.ModuleType("plug_bare")  # as a program that was started as a script: `find_spec` refuses it
        bare.extra = lambda: print("bare")  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "plug_bare", bare)
        offer("plug_bare:extra")
        assert run("--help")[0] == 0
        assert run("extra")[:2] == (0, "bare\n")

    def test_missing_dependency_says_what_to_install(self, install) -> None:
        install("plug_poor", 'import no_such_library\n\n\ndef extra(some: int = 1) -> None:\n    """Need much."""\n')
        assert run("extra", "--some", "x")[0] == 2
        assert "Need much." in run("extra", "--help")[1]
        code, out, err = run("extra", "--some", "3")
        assert code == 1
        assert out == ""
        assert "No module named 'no_such_library'" in words(err)
        assert "pip install plug_poor" in words(err)
        assert run("policies")[0] == 0  # the rest of the command line still works

    def test_missing_dependency_where_even_the_options_need_it(self, install) -> None:
        install("plug_poorer", "import no_such_library\n\n\ndef extra(some: int = no_such_library.some): pass\n")
        code, out, err = run("extra", "--some-option", "3")
        assert (code, out) == (1, "")
        assert "pip install plug_poorer" in words(err)

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
