"""The commands `eval` and `tune`, as a user types them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner, Result

import kvpolicy
from kvpolicy.cli import app
from kvpolicy_hf.evaluate import Arm, arms_of
from kvpolicy_hf.evaluate import command as eval_command
from kvpolicy_hf.tune import Tuned
from kvpolicy_hf.tune import command as tune_command

LITTLE = ["eval", "demo", "--task", "photo-where", "--policy", "h2o", "--keep", "0.5", "--samples", "2", "--batch", "2"]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), terminal_width=100)


def test_tables_charts_and_a_report(tmp_path: Path) -> None:
    result = run(*LITTLE, "--records", "1", "--policy", "head_kv(table=((1,2),))", "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    rows = pl.read_parquet(tmp_path / "rows.parquet")
    assert rows.select("policy", "sample").rows() == [("full", 0), ("h2o", 0), ("full", 1), ("h2o", 1)]
    assert pl.read_csv(tmp_path / "rows.csv")["nats"].to_list() == pytest.approx(rows["nats"].to_list())
    summary = pl.read_csv(tmp_path / "summary.csv")
    quality = summary.filter(metric="quality", task="photo-where", policy="h2o")
    assert quality["value"].to_list() == [rows.filter(policy="h2o")["quality"].mean()]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.glob("chart-*.png"))
    report = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Policy(prefill=Pipeline(schedule=KeepRatio(keep=0.5)" in report
    assert "this model has 4 layers" in report
    told = result.output.split()
    assert {"h2o", "full", "head_kv(table=((1,2),))"} <= set(told)
    assert "report:" in told


def test_baselines_stand_beside_ones_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []

    def listening(_subject: object, **arguments: Any) -> None:
        asked.append(arguments)
        raise kvpolicy.PolicyError("enough")

    monkeypatch.setattr(eval_command, "evaluate", listening)
    assert run(*LITTLE, "--policy", "of_mine:LoudValues", "--baselines", "--out", str(tmp_path)).exit_code == 2
    arms: list[Arm] = list(asked[0]["policies"])
    assert arms[:3] == list(arms_of(["h2o", "of_mine:LoudValues"], [0.5]))
    assert {arm.label for arm in arms} == set(kvpolicy.catalogue(keep=0.5)) | {"LoudValues"}
    assert len(arms) == len({(arm.label, arm.keep) for arm in arms})


def test_a_later_call_names_what_it_does_not_show(tmp_path: Path) -> None:
    assert run(*LITTLE, "--records", "0", "--out", str(tmp_path)).exit_code == 0
    report = (tmp_path / "report.html").read_bytes()
    wrong = [*LITTLE[:4], "--policy", "head_kv(table=((1,2),))", *LITTLE[6:], "--records", "0", "--out", str(tmp_path)]
    result = run(*wrong)
    assert result.exit_code == 1
    assert "this model has 4 layers" in " ".join(result.output.split())
    assert "no report was written" in result.output
    assert (tmp_path / "report.html").read_bytes() == report
    result = run(*wrong, "--policy", "tova")
    assert result.exit_code == 0
    assert "Not shown, though measured here before: h2o." in result.output
    assert "measuring: 3 of 3" in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--policy", "h20"], "no recipe 'h20'"),
        (["--keep", "2"], "2"),
        (["--policy", "h2o", "--policy", "h2o"], "has 'h2o' twice"),
        (["--samples", "0"], "--samples"),
    ],
)
def test_what_is_wrong_is_told_before_a_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.setattr(eval_command, "subject_of", lambda _: pytest.fail("loaded"))
    result = run("eval", "demo", *arguments)
    assert result.exit_code == 2
    assert words in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("command", ["eval", "tune"])
def test_a_budget_in_per_cent_is_told_as_a_share(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    for module in (eval_command, tune_command):
        monkeypatch.setattr(module, "subject_of", lambda _: pytest.fail("loaded"))
    result = run(command, "demo", "--keep", "20")
    assert result.exit_code == 2
    told = " ".join(result.output.split())
    assert told == (
        "error: keep=20.0: what may be kept is a share of the cache, in (0, 1]. Hint: --keep 0.2, or keep=0.2, is 20%."
    )


def test_no_such_model_or_task(tmp_path: Path) -> None:
    for arguments, words in (
        ([str(tmp_path / "none")], "no folder"),
        (["demo", "--task", "grid-it"], "no task 'grid-it'"),
    ):
        result = run("eval", *arguments, "--out", str(tmp_path / "out"))
        assert (result.exit_code, words in " ".join(result.output.split())) == (2, True)


def test_what_a_search_found_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    judged = {"task": "all", "value": 0.5, "baseline": 0.25, "difference": 0.25, "verdict": "better"}
    comparison = pl.DataFrame([{**judged, "difference_low": 0.125, "difference_high": 0.375}])
    ranked = (("composition 3", 0.75), ("h2o", 0.25))
    empty: Any = None
    found = Tuned(kvpolicy.tova(keep=0.2), "composition 3", "h2o", ((8, ()), (24, ranked)), empty, comparison, empty)
    asked: dict[str, Any] = {}

    def searching(_subject: object, **arguments: Any) -> Tuned:
        asked.update(arguments)
        arguments["done"]("replaying compositions", 9, 9)
        return found

    monkeypatch.setattr(tune_command, "search", searching)
    result = run("tune", "demo", "--task", "photo-at", "--keep", "0.3", "--trials", "9", "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert (asked["keep"], asked["tasks"], asked["trials"], asked["out"]) == (0.3, ["photo-at"], 9, tmp_path)
    told = " ".join(result.output.split())
    assert "replaying compositions: 9 of 9" in told
    assert "24 samples a task" in told
    assert "composition 3 0.750" in told
    assert "against h2o, the best recipe, on samples not seen before: 0.500 and 0.250" in told
    assert "+0.250 [+0.125, +0.375]: better" in told
    assert repr(found.winner)[:60] in told
