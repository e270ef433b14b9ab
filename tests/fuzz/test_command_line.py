"""The `kvpolicy` command under any arguments: it works, or says what is wrong with which of them; never a traceback."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from hypothesis import example, given
from hypothesis import strategies as st
from records import tiny
from typer.testing import CliRunner

import kvpolicy
from kvpolicy import RECIPES, Policy, PolicyError, from_text
from kvpolicy.cli import _plugins, app
from kvpolicy_hf.simulate import Record, command, save_record
from kvpolicy_hf.simulate.compare import choose, compare
from kvpolicy_hf.simulate.plot import draw_plot
from kvpolicy_hf.simulate.tables import errors_table, summary_table

GOOD = "good.safetensors"  # in the folder that every test runs in


def demo(
    policy: Annotated[list[str] | None, typer.Option()] = None, keep: Annotated[float, typer.Option()] = 0.5
) -> None:
    """In the place of the demo, which takes its time."""
    for name in policy or ():
        from_text(name, keep=keep)


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a record and a broken one; no model runs, no plot is drawn."""
    place = tmp_path_factory.mktemp("cli")
    save_record(tiny(), place / GOOD)
    (place / "bad.safetensors").write_bytes(b"\0" * 64)
    plugins = {"demo": f"{__name__}:demo", "poor": "no_such_package:run", "simulate": f"{command.__name__}:simulate"}
    entries = EntryPoints(EntryPoint(name, value, _plugins.GROUP) for name, value in plugins.items())

    def record_demo(path: Path, seed: int) -> Record:
        return tiny(seed % 2**32)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_plugins, "entry_points", lambda group: entries)
        patch.setattr(command, "record_demo", record_demo)
        patch.setattr(command, "draw_plot", lambda title, subtitle, results, path: None)
        patch.chdir(place)
        yield place


def run(*args: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr; a traceback is an error here."""
    result = CliRunner(env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"}).invoke(app, list(args))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def refused(*args: str) -> str:
    """What stderr says, on one line, without the frame."""
    code, _, err = run(*args)
    assert code == 2, err
    assert "Traceback" not in err
    return re.sub(r"[\s│╭╮╰╯─]+", " ", err)


NASTY = [
    "", " ", "\0", "\n", "\x1b[31m", "\ud800", "\udcff", "[bold]", "[/x]", "[link=x]", "$x_{$", "%s", "{}", "-", "--",
    "=", "'", '"', "h2o(", "h2o()", "h2o(keep=)", "h2o(**{})", "h2o(*[])", "h2o(keep=0.1)(rows=2)", "h2o.x", "h2o[0]",
    "x" * 5000, "(" * 300, "[" * 300 + "]" * 300, "h2o(" * 150 + ")" * 150, "-" * 20_000 + "1", "a" + ".a" * 20_000,
    "h2o(keep=1" + "+1" * 20_000 + ")", "h2o(rows=0x" + "f" * 9000 + ")", "h2o(rows=1" + "0" * 5000 + ")",
    "h2o(keep={[]: 1})", "h2o(keep=0.1, keep=0.3)", "h2o(keep=lambda: 1)", "h2o(keep=__import__('os'))",
    "pyramid_kv(beta=1" + "0" * 400 + ")", "head_kv(table=((1" + "0" * 400 + ",),))", "d2o(exempt=3)",
    "h2o(memory='" + "9" * 400 + "')", "h2o # [/x]\n", "h2o( # [/x] $x_{$\n)",
    "\u202eo2h", "\uff482o", "h2o(\uff4beep=0.2)",
]  # fmt: skip

literals = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=9)
    | st.binary(max_size=9)
    | st.complex_numbers(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=5,
).map(repr)
arguments = st.sampled_from(
    "keep rows memory first last recent window kernel table beta exempt sets merge no_such".split()
)
calls = st.builds(
    lambda name, given: f"{name}({', '.join(f'{word}={value}' for word, value in given)})",
    st.sampled_from([*RECIPES, "no_such"]),
    st.lists(st.tuples(arguments, literals), max_size=4),
)
texts = st.one_of(st.sampled_from([*RECIPES, *NASTY]), calls, st.text(st.characters(), max_size=30))


class TestFromText:
    @given(texts, st.sampled_from([None, 0.3, 0, 7, float("nan"), True, "x", 10**400]))
    def test_a_policy_or_an_error(self, text: str, keep: Any) -> None:
        told(from_text, text, keep=keep)

    @pytest.mark.parametrize("text", NASTY, ids=lambda text: ascii(text[:20]))
    def test_nasty_texts(self, text: str) -> None:
        told(from_text, text, keep=0.5)

    @given(st.text(st.characters(), max_size=12), calls, st.integers(0, 99), st.integers(0, 9))
    def test_a_call_with_something_in_it(self, put: str, call: str, start: int, cut: int) -> None:
        told(from_text, call[:start] + put + call[start + cut :], keep=0.5)

    @given(st.lists(texts, max_size=3).map(", ".join) | texts)
    @example("h2o(" + "-" * 20_000 + "1)")
    def test_lists_of_them(self, text: str) -> None:
        chosen = told(choose, text, 0.5)
        assert chosen is None or all(isinstance(policy, Policy) for policy in chosen.values())

    def test_what_is_given_twice_is_not_lost(self) -> None:
        with pytest.raises(PolicyError, match=r"'h2o\(keep=0.1, keep=0.3\)' gives keep= twice.*Hint"):
            from_text("h2o(keep=0.1, keep=0.3)")

    def test_no_text(self) -> None:
        for value in (None, 3, b"h2o", ["h2o"]):
            with pytest.raises(PolicyError, match="is neither a recipe nor a call"):
                from_text(value)  # type: ignore[arg-type]


def told(make: Callable[..., Any], text: str, *args: Any, **named: Any) -> Any:
    """What is made of a text, or None where it is refused in a message of moderate length."""
    try:
        return make(text, *args, **named)
    except PolicyError as error:
        said = str(error)
    assert len(said) < 3 * len(text) + 2000
    said.encode()  # it can be printed
    return None


options = st.sampled_from(
    "--help -h --version --keep --policies --record --seed --out --policy --nonsense -x - -- policies explain simulate "
    "demo poor".split()
)
values = st.one_of(
    texts,
    st.sampled_from(
        [GOOD, "bad.safetensors", "none.safetensors", ".", "/", "a/b.png", "x" * 300, "x" * 300 + "/y.png"]
    ),
    st.floats().map(str),
    st.integers().map(str),
)


class TestArguments:
    @given(st.lists(options | values, min_size=1, max_size=6))
    def test_any(self, args: list[str]) -> None:
        sound(run(*args))

    def test_none(self) -> None:
        code, out, err = run()
        assert (code, err) == (2, "")
        assert "Usage: kvpolicy" in out

    @given(texts)
    def test_explain(self, name: str) -> None:
        code, out, err = run("explain", "--", name)
        assert (code, bool(out), bool(err)) in ((0, True, False), (2, False, True))
        assert code == 0 or name not in RECIPES
        if name.isascii() and name.isprintable() and len(name) < 80 and not {"(", ":"} & set(name):
            assert code == 0 or repr(name) in err

    @given(st.lists(st.tuples(st.sampled_from(["--keep", "--policies", "--seed", "--out"]), values), max_size=3))
    @example([("--keep", "nan")])
    @example([("--seed", "-1")])
    @example([("--out", "x" * 300 + ".png")])
    @example([("--out", "x" * 300 + "/y.png")])
    @example([("--out", "\0/y.png")])
    @example([("--policies", "h2o( # [/x]\n)")])
    @example([("--policies", "h2o(keep=1" + "+1" * 20_000 + ")")])
    def test_simulate(self, given: list[tuple[str, str]]) -> None:
        sound(run("simulate", "--policies", "h2o", *(word for pair in given for word in pair), "--", GOOD))
        sound(
            run(
                "simulate",
                "--record",
                "new.safetensors",
                "--policies",
                "h2o",
                *(word for pair in given for word in pair),
            )
        )

    @given(values)
    @example("x" * 300)
    @example("\udcff.safetensors")
    def test_records(self, path: str) -> None:
        code, _, err = run("simulate", "--policies", "h2o", "--", path)
        assert (code == 0) == (path == GOOD), err

    @given(st.lists(texts, max_size=2), values)
    def test_a_plug_in(self, names: list[str], keep: str) -> None:
        sound(run("demo", "--keep", keep, *(word for name in names for word in ("--policy", name))))

    def test_only_a_missing_package_exits_with_1(self) -> None:
        code, out, err = run("poor", "--keep", "3")
        assert (code, out) == (1, "")
        assert "No module named 'no_such_package'" in err
        assert "pip install" in err

    @pytest.mark.parametrize(
        ("args", "words"),
        [
            (["nonsense"], "No such command 'nonsense'"),
            (["policies", "more"], "extra argument(s) (more)"),
            (["explain"], "Missing argument"),
            (["explain", "[/x]"], "policy: '[/x]' is neither a recipe nor a call of one"),
            (["explain", "h2o", "tova"], "extra argument(s) (tova)"),
            (["simulate"], "give either a RECORD to replay, or --record FILE"),
            (["simulate", GOOD, "--record", GOOD], "give either a RECORD to replay, or --record FILE"),
            (["simulate", "--kep", "1", GOOD], "No such option: --kep"),
            (["simulate", GOOD, "--keep", "much"], "Invalid value for '--keep': "),
            (
                ["simulate", GOOD, "--keep", "1.5"],
                "keep=1.5: what may be kept is a share of the cache, in (0, 1]. Hint: ",
            ),
            (["simulate", "--record", "x", "--seed", "-1"], "Invalid value for '--seed': "),
            (["simulate", GOOD, "--out", "no/such/x.png"], "--out: there is no folder 'no/such' to write the plot to"),
            (["simulate", GOOD, "--out", "."], "Invalid value for '--out': file '.' is a directory"),
            (["simulate", GOOD, "--policies", ""], "policies '' are no list of policies"),
            (["simulate", GOOD, "--policies", "h2o, no_such"], "no recipe 'no_such'. There are: full,"),
            (["simulate", GOOD, "--policies", "h2o(rows=0)"], "h2o(rows=0): rows must be an integer >= 1"),
            (["simulate", "bad.safetensors"], "'bad.safetensors' is not a safetensors file"),
            (["simulate", "[/x]"], "no record '[/x]'. Hint: `kvpolicy simulate --record"),
        ],
    )
    def test_the_argument_is_named(self, args: list[str], words: str) -> None:
        assert words in refused(*args)


def sound(ended: tuple[int, str, str]) -> None:
    """It worked, or stderr says why not; 1 is for a plug-in whose packages are missing."""
    code, out, err = ended
    assert code in (0, 2) or (code == 1 and "needs more than the core" in err), err[-300:]
    assert "Traceback" not in out + err
    assert code == 0 or re.search(r"error: |Usage: |Error", err), err


class TestOutput:
    """Names of policies and of models go into tables and a plot as they are."""

    NAME = "h2o( # [/x] $x_{$ \\frac\n)"

    def test_tables_and_plot_take_any_name(self, folder: Path) -> None:
        longest = f"h2o(rows=2 # {'long ' * 2000}\n)"
        results = compare(tiny(), choose(f"{self.NAME}, {longest}", 0.5), 0.5)
        assert len(results) == 3
        for table in (summary_table(results), errors_table(results)):
            assert str(table.columns[0]._cells[0]) == self.NAME
        draw_plot("$x_{$ \\frac $", "[/x] $y^{$ \\frac $", results, folder / "plot.png")
        assert (folder / "plot.png").read_bytes().startswith(b"\x89PNG")

    def test_a_plot_that_cannot_be_written(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(command, "draw_plot", draw_plot)
        assert "--out: the plot cannot be written" in refused("simulate", GOOD, "--policies", "h2o", "--out", "x" * 300)

    def test_a_file_whose_name_is_no_text(self, folder: Path) -> None:
        out = run("simulate", GOOD, "--policies", "h2o", "--out", "\udcff.png")[1]
        assert "plot: \\udcff.png" in out


def test_version_and_recipes_are_untouched() -> None:
    assert run("--version")[:2] == (0, f"kvpolicy {kvpolicy.__version__}\n")
    assert run("policies")[0] == 0
