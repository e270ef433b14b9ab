"""The page of performance is what its script makes of the committed results, and every suite runs at tiny sizes."""

from __future__ import annotations

import fcntl
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pages import ROOT, script


@pytest.fixture(scope="module")
def performance() -> Iterator[ModuleType]:
    with script("performance") as module:
        yield module


@pytest.fixture(scope="module")
def plots() -> Iterator[ModuleType]:
    with script("performance_plots") as module:
        yield module


def test_the_page_is_what_the_results_say(performance: ModuleType) -> None:
    page = performance.PAGE.read_text(encoding="utf-8")
    assert performance.rendered(performance.load()) == page, "out of date: python -m scripts.performance"


def test_the_plots_are_of_these_results(performance: ModuleType, plots: ModuleType) -> None:
    found = performance.load()
    for name, make in plots.PLOTS.items():
        file, plot = performance.PICTURES / f"{name}.svg", make(found)
        assert file.exists() == (plot is not None), f"python -m scripts.performance; {file.name}"
        if plot is not None:
            assert plots.digest(plot) in file.read_text(encoding="utf-8"), f"out of date: {file.name}"


def test_without_results_everything_is_missing(performance: ModuleType) -> None:
    page = performance.rendered({})
    assert page.count("| not measured |") == 12
    assert all(f"- Suite `{suite}`: not run." in page for suite in performance.SUITES)


def test_a_trial_is_no_result(performance: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "decode.json").write_text(json.dumps({"small": True, "complete": True}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"decode\.json is no result"):
        performance.load(tmp_path)


def test_processes_of_a_suite_stand_together_and_one_that_was_cut_off_is_told(
    performance: ModuleType, tmp_path: Path
) -> None:
    for name, ms, complete in (("decode", 8.0, True), ("decode-1", 6.0, None)):
        arm = stepped("table", f"arm of {name}, compiled", ms)
        ran = {**RUN, "complete": complete, "arms": [arm]}
        (tmp_path / f"{name}.json").write_text(json.dumps(ran), encoding="utf-8")
    page = performance.rendered(performance.load(tmp_path))
    assert "arm of decode, compiled" in page
    assert "arm of decode-1, compiled" in page
    assert page.count("| `decode` | A GPU |") == 2
    assert "Suite `decode`: cut off after 60 s" in page


def times(median: float) -> dict[str, float]:
    return {"median": median, "least": median - 0.5, "most": median + 0.5, "calls": 5}


def stepped(case: str, arm: str, ms: float, **more: Any) -> dict[str, Any]:
    made = {"case": case, "model": "LLaVA-1.5-7B", "batch": 16, "prompt": 1024, "most": 1536, "arm": arm, "rows": 307}
    made |= {"ms": times(ms), "launch": arm.rpartition(", ")[2], "floor_ms": 4.0, "tokens_per_s": 16000 / ms}
    return made | {"kv_bytes": 2**30, "prefill_ms": 500.0, "gates": []} | more


RUN = {
    "small": False,
    "complete": True,
    "machine": {"device": "A GPU", "torch": "2.11", "date": "2026-12-01T00:00:00+00:00"},
    "ceilings": {"copy_gb_s": 4200.0, "matrix_tflop_s": 790.0},
    "seconds": 60.0,
}


def test_figures_targets_and_what_was_not_timed(performance: ModuleType, plots: ModuleType, tmp_path: Path) -> None:
    table = [
        stepped("table", "StaticCache, compiled", 8.0),
        stepped("table", "ideal, compiled", 6.0),
        stepped("table", "elastic_cache, compiled", 6.2, prefill_ms=509.0),
        stepped("table", "h2o, compiled", 7.2),
        {"case": "table", "model": "LLaVA-1.5-7B", "batch": 16, "arm": "tova, compiled", "failed": "logits: off by 1"},
    ]
    series = [
        stepped("batch", "full", 20.0, batch=128),
        {"case": "batch", "model": "LLaVA-1.5-7B", "batch": 256, "arm": "full", "out_of_memory": True},
        stepped("batch", "elastic_cache", 9.0, batch=128),
        stepped("rows", "StaticCache", 7.0, rows_held=307),
        stepped("shape", "full", 10.0),
        stepped("shape", "elastic_cache", 9.5, kv_bytes=2**28),
    ]
    found = {"decode": {**RUN, "arms": table}, "series": {**RUN, "arms": series}}
    page = performance.rendered(found)
    assert "| compiled step under `elastic_cache`, x ideal | ≤ 1.05 | 1.03 | met |" in page
    assert "| compiled step under `h2o`, x ideal | ≤ 1.15 | 1.20 | **missed** |" in page
    assert "| compiled step under `tova`, x ideal | ≤ 1.15 | not measured |  |" in page
    assert "| 90% | 5 |" in page  # (8 - 6.2) / (8 - 6); (509 - 500) / (8 - 6.2)
    assert "its gate failed: logits: off by 1" in page
    assert "batch 256, full: out of memory" in page
    assert "buys capacity rather than time" in page
    assert "(1.05x as fast, 4.0x smaller)" in page
    for name in plots.PLOTS:
        plots.draw(name, found, tmp_path / f"{name}.svg")
    drawn = (tmp_path / "throughput.svg").read_text(encoding="utf-8")
    assert "out of memory" in drawn
    assert "tokens a second" in drawn
    assert not (tmp_path / "kernels.svg").exists()
    assert "](assets/performance/throughput.svg)" in page
    assert "](assets/performance/kernels.svg)" not in page


# What is run of each suite: everything would take minutes, as kernels are interpreted and compiled steps are traced.
SUITES = {
    "kernels": ["sdpa", "ragged", "attention mass, last query", "compaction with merge"],
    "launches": ["DynamicCache", "elastic_cache"],
    "prefill": ["40: DynamicCache", "40: elastic_cache", "40: ada_kv"],
    "decode": ["DynamicCache, eager", "ideal, eager", "CUDA graph", "h2o, eager", "elastic_cache, compiled"],
    "series": ["shape, small, 1, 64, 82: full"],
    "capacity": ["DynamicCache", "0.2: elastic_cache"],
    "peers.__main__": ["Cache, eager", ": DynamicCache"],
    "cpu": ["elastic_cache", "h2o"],
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")  # the interpreter computes what is masked
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning")  # array_api_compat
@pytest.mark.parametrize("suite", SUITES)
def test_a_suite_runs_at_tiny_sizes(suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if suite == "kernels":
        pytest.importorskip("triton")
    monkeypatch.syspath_prepend(str(ROOT))
    module = importlib.import_module(f"benchmarks.{suite}")
    if suite == "peers.__main__":  # its presses need an environment of their own
        monkeypatch.setattr(module, "arms", list)
    file = tmp_path / "result.json"
    status = module.main([str(file), "--small", "--device", "cpu", "--only", *SUITES[suite]])
    found = json.loads(file.read_text(encoding="utf-8"))
    assert status == 0, [arm for arm in found["arms"] if {"failed", "error"} & set(arm)]
    assert found["complete"]
    assert found["arms"]
    assert not any("skipped" in arm for arm in found["arms"])
    assert found["machine"]["torch"]


def test_processes_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    turns = importlib.import_module("benchmarks.turns")
    lock = tmp_path / "lock"

    def free() -> bool:
        with lock.open("a", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

    turns.join(lock)
    assert not free()
    with turns.aside():
        assert free()
    assert not free()
    turns.leave()
    assert free()


def test_a_gate_that_fails_stops_its_arm_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    Suite = importlib.import_module("benchmarks.suite").Suite
    suite = Suite("trial", None, [str(tmp_path / "result.json"), "--small", "--device", "cpu"])

    def wrong(hold: Any) -> dict[str, Any]:
        hold("numbers", float("nan"), 1.0)
        raise AssertionError("it must not be timed")

    suite.arm({"case": "one"}, "wrong", wrong)
    suite.arm({"case": "one"}, "right", lambda hold: hold("numbers", 0.5, 1.0) or {"ms": 1.0})
    assert suite.finish() == 1
    found = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))["arms"]
    assert found[0]["failed"].startswith("numbers: off by nan")
    assert found[1]["ms"] == 1.0
    assert found[1]["gates"][0]["passed"]
