"""`kvpolicy check`."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from kit import FEW, ROWS, STAGES, words
from typer.testing import CliRunner

from kvpolicy.cli import app
from kvpolicy.testing import PROFILES, ConformanceError, checks_of

pytestmark = pytest.mark.usefixtures("few")

Command = Callable[..., tuple[int, str, str]]


class TestCommand:
    @pytest.fixture
    def check(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
        """`kvpolicy check` beside a module of stages."""
        (tmp_path / "kit_stages.py").write_text(STAGES, encoding="utf-8")
        (tmp_path / "kit_needy.py").write_text("import no_such_library\n", encoding="utf-8")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.delitem(sys.modules, "kit_stages", raising=False)

        def check(*arguments: str) -> tuple[int, str, str]:
            runner = CliRunner(env={"COLUMNS": "160", "TERMINAL_WIDTH": "160"})
            result = runner.invoke(app, ["check", *arguments])
            assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
            return result.exit_code, words(result.stdout), words(result.stderr)

        return check

    @pytest.mark.parametrize(
        "target", ["kit_stages:Fine", "kit_stages:Fine(rows=2)", "kit_stages:fine", "kit_stages:make"]
    )
    def test_what_is_right(self, target: str, check: Command) -> None:
        code, out, err = check(target, "--backend", "numpy", "--law", "padding_invariant")
        assert (code, err) == (0, "")
        assert "Fine(rows=" in out
        assert "well_formed pass" in out
        assert "padding_invariant pass" in out
        assert out.endswith(f"no law is broken, with up to {FEW} examples each")

    def test_how_hard_was_tried(self, check: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(PROFILES, "dev", FEW // 2)  # type: ignore[arg-type]
        expect = ("--law", "padding_invariant", "--expect", "padding_invariant=it counts padding")
        out = check("kit_stages:OfLength", "--backend", "numpy", "--profile", "dev", *expect)[1]
        assert out.endswith(f"no law is broken, with up to {FEW // 2} examples each; --profile ci tries {FEW}")

    def test_what_is_wrong(self, check: Command) -> None:
        code, out, err = check("kit_stages:OfLength", "--backend", "numpy")
        assert (code, err) == (1, "")
        assert "padding_invariant fail" in out
        assert "batch_independent not tried" in out
        assert re.search(r"left out \(not about a component of kind Scheduler\): [\w, ]*\bdominance\b", out)
        assert out.count(" breaks ") == 1
        assert (
            "from kit_stages import OfLength from kvpolicy.testing import Table, checks component = OfLength() exam"
            in out
        )
        assert out.endswith("broken: padding_invariant")

    def test_the_reproducer_can_be_pasted(self, check: Command, tmp_path: Path) -> None:
        runner = CliRunner(env={"COLUMNS": "40", "TERMINAL_WIDTH": "40"})  # lines are not wrapped, however long
        result = runner.invoke(
            app, ["check", "kit_stages:OfLength", "--backend", "numpy", "--law", "padding_invariant"]
        )
        lines = result.stdout.partition("To see it again:")[2].splitlines()
        script = "\n".join(line.removeprefix("    ") for line in lines if line.startswith("    "))
        with pytest.raises(ConformanceError, match=r"OfLength\(\) breaks padding_invariant"):
            exec(script, {})

    def test_what_is_expected(self, check: Command) -> None:
        expect = ("--expect", "padding_invariant=it counts padding", "--expect", "batch_independent=likewise")
        code, out, _ = check("kit_stages:OfLength", "--backend", "numpy", *expect)
        assert code == 0
        assert "padding_invariant expected expected to fail: it counts padding" in out
        assert f" checks of up to {FEW} examples each ({20 * FEW} where a failure is expected) in " in out

    def test_what_is_expected_and_holds(self, check: Command) -> None:
        code, out, _ = check("kit_stages:Fine", "--backend", "numpy", "--expect", "deterministic=it was not")
        assert code == 1
        assert "deterministic passes after all" in out
        assert out.endswith("broken: deterministic")

    def test_a_recipe(self, check: Command) -> None:
        code, out, _ = check("streaming_llm", "--backend", "numpy", "--law", "budget_exact")
        assert code == 0
        assert "KeepRatio(keep=0.5)" in out
        assert "budget_exact pass" in out
        assert f" checks of up to {FEW // 2} examples each in " in out  # whole requests
        assert check("streaming_llm(rows=8)", "--backend", "numpy", "--law", "budget_exact")[0] == 0

    def test_several_backends(self, check: Command) -> None:
        code, out, _ = check("kit_stages:Fine", "--backend", "numpy", "--backend", "torch", "--law", "deterministic")
        assert code == 0
        assert "law numpy torch what it says" in out
        assert "deterministic pass pass" in out

    def test_sizes(self, check: Command) -> None:
        code, out, _ = check("kit_stages:Fine", "--backend", "numpy", "--size", "batch=1", "--law", "batch_independent")
        assert code == 0
        assert "left out (needs 2 batch, and batch=1): batch_independent" in out

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ("kit_stages:Finer", "'kit_stages:Finer': module 'kit_stages' has no 'Finer'. Hint: Fine."),
            (
                "kit_stage:Fine",
                "'kit_stage:Fine': there is no module 'kit_stage' here or among what is installed. Hint:",
            ),
            (":Fine", "':Fine': '' is no name of a module."),
            ("kit_stages:Fine(rows=", "'Fine(rows=' is neither a recipe nor a call of one with plain arguments."),
            (
                "kit_stages:Fine(lines=2)",
                "'kit_stages:Fine(lines=2)' cannot be made: Fine.__init__() got an unexpected",
            ),
            ("kit_stages:fine(rows=2)", "fine is an instance already and takes no arguments. Hint: kit_stages:fine."),
            ("kit_stages:np", "'numpy' is a module; the kit checks an instance of a class in it."),
            ("kit_stages:number", "3 is neither a Policy nor a stage"),
            ("h3o", "no recipe 'h3o'. Hint: h2o. For a policy or a stage of your own"),
            ("h2o(width=2)", "h2o(width=...): it takes"),
            ("kit_stages", "adore. For a policy or a stage of your own: module:Name."),
            (
                "kit_stages.py",
                "with plain arguments. Hint: h2o, or 'elastic_cache(last=8)'. For a policy or a stage",
            ),
            ("kit_stages:Fine --law finit", "--law finit: there is no such law. Hint: finite."),
            ("kit_stages:Fine --size heads", "--size heads: it takes NAME=N, such as heads=4."),
            ("kit_stages:Fine --size heads=²", "--size heads=²: a size is an integer >= 1."),  # a digit, says Python
            ("kit_stages:Fine --size heads=0", "--size heads=0: a size is an integer >= 1."),
            (
                "kit_stages:Fine --size colour=3",
                "sizes: 'colour' is no size of an example for Fine(rows=3). There are:",
            ),
            ("kit_stages:Fine --size dim=3", "Table(dim=3): dim must be even. Hint: 4."),
            ("kit_stages:Fine --profile slow", "profile='slow': there are quick, dev, ci, nightly."),
            (
                "kit_stages:Fine --backend cupy",
                "backend='cupy': there is no such backend. Known: numpy, torch, triton.",
            ),
            ("kit_stages:Fine --expect finit=so", "expected failure of 'finit': there is no such law. Hint: finite."),
            ("kit_stages:Fine --expect finite=so", "expected failure of 'finite': it does not apply to Fine(rows=3)"),
            (
                "kit_stages:Fine --expect finite",
                "--expect finite: it takes LAW=REASON, such as 'merge_convex=adds values'.",
            ),
        ],
    )
    def test_slips_are_one_line(self, arguments: str, said: str, check: Command) -> None:
        code, out, err = check(*arguments.split(" "), *(() if "--backend" in arguments else ("--backend", "numpy")))
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert said in err

    def test_what_a_recipe_says_of_its_arguments_needs_no_hint(self, check: Command) -> None:
        assert "module:Name" not in check("h2o(width=2)")[2]

    def test_a_pipeline_is_a_policy(self, check: Command) -> None:
        code, out, _ = check("kit_stages:pipeline", "--backend", "numpy", "--law", "within_quota")
        assert code == 0
        assert "within_quota pass" in out
        assert out.startswith("Pipeline(schedule=FixedRows(rows=2), score=Recency()) Policy ")

    def test_a_law_is_a_line_on_a_narrow_screen(self, check: Command) -> None:
        runner = CliRunner(env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
        lines = runner.invoke(app, ["check", "kit_stages:Fine"]).stdout.splitlines()
        assert max(map(len, lines)) <= 80
        start = next(number for number, line in enumerate(lines) if "───" in line) + 1
        applicable = [name for name, about in checks_of(ROWS).items() if not isinstance(about, str)]
        applicable.remove("limit_holds")  # Fine has no limit
        assert [line.split()[0] for line in lines[start : start + len(applicable)]] == applicable
        assert not lines[start + len(applicable)].strip()

    def test_no_files_are_left_behind(self, check: Command, tmp_path: Path) -> None:
        before = {path.name for path in tmp_path.iterdir()}
        command = [sys.executable, "-m", "kvpolicy", "check", "kit_stages:Fine", "--backend", "numpy"]
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
        assert ran.returncode == 0, ran.stderr
        assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == before

    def test_a_module_that_cannot_be_imported_keeps_its_error(self, check: Command) -> None:
        result = CliRunner().invoke(app, ["check", "kit_needy:Fine"])
        assert isinstance(result.exception, ModuleNotFoundError)
        assert result.exception.name == "no_such_library"
