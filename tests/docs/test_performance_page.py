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
    with script("performance.page") as module:
        yield module


@pytest.fixture(scope="module")
def results() -> Iterator[ModuleType]:
    with script("performance.results") as module:
        yield module


@pytest.fixture(scope="module")
def parts() -> Iterator[ModuleType]:
    with script("performance.parts") as module:
        yield module


@pytest.fixture(scope="module")
def plots() -> Iterator[ModuleType]:
    with script("performance.plots") as module:
        yield module


def test_the_page_is_what_the_results_say(performance: ModuleType, results: ModuleType) -> None:
    page = performance.PAGE.read_text(encoding="utf-8")
    assert performance.rendered(results.load()) == page, "out of date: python -m scripts.performance"


def test_the_plots_are_of_these_results(results: ModuleType, plots: ModuleType) -> None:
    found = results.load()
    for name, make in plots.PLOTS.items():
        file, plot = plots.PICTURES / f"{name}.svg", make(found)
        assert file.exists() == (plot is not None), f"python -m scripts.performance; {file.name}"
        if plot is not None:
            assert plots.digest(plot) in file.read_text(encoding="utf-8"), f"out of date: {file.name}"


def test_without_results_everything_is_missing(performance: ModuleType, results: ModuleType) -> None:
    page = performance.rendered({})
    assert page.count("| not measured |") == 12
    assert all(f"- Suite `{suite}`: not run." in page for suite in results.SUITES)


def test_a_trial_is_no_result(results: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "decode.json").write_text(json.dumps({"small": True, "complete": True}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"decode\.json is no result"):
        results.load(tmp_path)


def test_processes_of_a_suite_stand_together_and_one_that_was_cut_off_is_told(
    performance: ModuleType, results: ModuleType, tmp_path: Path
) -> None:
    for name, ms, complete in (("decode", 8.0, True), ("decode-1", 6.0, None)):
        arm = stepped("table", f"arm of {name}, compiled", ms)
        only = [""] if complete is None else ["arm"]
        ran = {**RUN, "complete": complete, "options": {"only": only, "without": []}, "arms": [arm]}
        (tmp_path / f"{name}.json").write_text(json.dumps(ran), encoding="utf-8")
    page = performance.rendered(results.load(tmp_path))
    assert "arm of decode, compiled" in page
    assert "arm of decode-1, compiled" in page
    assert page.count("| `decode` | A GPU |") == 2
    assert "Suite `decode`: cut off after 60 s" in page
    everything = {**RUN, "options": {"only": [""], "without": []}, "arms": []}
    (tmp_path / "decode-2.json").write_text(json.dumps(everything), encoding="utf-8")
    assert "cut off" not in performance.rendered(results.load(tmp_path)), "all arms were run after it"


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
        stepped("rows", "StaticCache", 7.0, rows_held=307, launch="CUDA graph"),
        stepped("rows", "streaming_llm", 8.5, rows_held=307, launch="CUDA graph"),
        stepped("shape", "full", 10.0, floor_ms=4.08),
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
    assert "by the floors, give 1.02x of the 1.05x at 1,024 tokens" in page
    assert "a step under `streaming_llm` in a CUDA graph takes +1.50 ms at 307 rows" in page
    for name in plots.PLOTS:
        plots.draw(name, found, tmp_path / f"{name}.svg")
    drawn = (tmp_path / "throughput.svg").read_text(encoding="utf-8")
    assert "out of memory" in drawn
    assert "tokens a second" in drawn
    assert not (tmp_path / "kernels.svg").exists()
    assert "](assets/performance/throughput.svg)" in page
    assert "](assets/performance/kernels.svg)" not in page


def written(folder: Path, **suites: list[dict[str, Any]]) -> None:
    for name, ran in suites.items():
        (folder / f"{name.replace('_', '-')}.json").write_text(json.dumps({**RUN, "arms": ran}), encoding="utf-8")


def test_an_arm_is_missing_only_if_no_process_timed_it(
    performance: ModuleType, results: ModuleType, parts: ModuleType, tmp_path: Path
) -> None:
    timed = [stepped("shape", name, 9.0, prompt=8192) for name in ("full", "elastic_cache")]
    case = {key: timed[0][key] for key in ("case", "model", "batch", "prompt", "most")}
    skipped = [{**case, "arm": arm["arm"], "skipped": "it was late"} for arm in timed]
    other = [{**arm, "model": "Qwen2.5-VL-7B"} for arm in skipped]
    written(tmp_path, series=timed[:1] + skipped[1:] + other, series_1=skipped[:1] + timed[1:])
    found = results.load(tmp_path)
    assert [arm["arm"] for arm in parts.arms(found, "series", "shape")] == ["full", "elastic_cache"]
    missing = performance.rendered(found).partition("## Not measured")[2]
    assert "- `series`, shape, Qwen2.5-VL-7B (all 2 arms): skipped: it was late." in missing
    assert "LLaVA" not in missing


def prompted(arm: str, length: int, ms: float, peak: int) -> dict[str, Any]:
    made = {"case": "prefill", "model": "LLaVA-1.5-7B", "batch": 1, "prompt": length, "arm": arm}
    return made | {"ms": times(ms), "peak_bytes": peak << 20, "kv_bytes": 100 << 20}


def test_presses_stand_beside_recipes_and_win_where_they_do(performance: ModuleType) -> None:
    memory = {"prefill_peak_bytes": 2**31, "decode_peak_bytes": 2**31, "rows": 460}
    theirs = [
        *(prompted("DynamicCache", length, 100.0, 900) for length in (1024, 4096)),
        prompted("h2o: ObservedAttentionPress", 1024, 150.0, 600),
        *(prompted("snapkv: SnapKVPress", length, 130.0, 300) for length in (1024, 4096)),
        stepped("table", "DynamicCache, eager", 60.0, **memory | {"rows": 1248}),
        stepped("table", "snapkv: SnapKVPress, eager", 90.0, **memory, prefill_ms=600.0),
        stepped("table", "h2o: ObservedAttentionPress, eager", 30.0, **memory),
        stepped("table", "k_norm: DecodingPress over KnormPress, eager", 40.0, **memory | {"rows": 307}),
    ]
    ours = [
        *(prompted("DynamicCache", length, 200.0, 900) for length in (1024, 4096)),
        *(prompted("h2o", length, 220.0, 200) for length in (1024, 4096)),
        *(prompted("snapkv", length, ms, 301) for length, ms in ((1024, 300.0), (4096, 220.0))),
    ]
    steps = [
        stepped("table", "DynamicCache, eager", 60.0, **memory, prefill_ms=400.0),
        stepped("table", "snapkv, eager", 80.0, **memory | {"kv_bytes": 2**31}),
        stepped("table", "h2o, eager", 70.0, **memory | {"kv_bytes": 2**29}),
        stepped("table", "tova, CUDA graph", 8.0, **memory),
        stepped("table", "tova, compiled", 6.0, **memory),
    ]
    found = {suite: {**RUN, "arms": made} for suite, made in (("peers", theirs), ("prefill", ours), ("decode", steps))}
    page = performance.rendered(found)
    section = page.partition("## Against kvpress")[2].partition("\n## ")[0]
    rows = [
        "| kvpress: SnapKVPress | +30.00 ms, 1.30x | +30.00 ms, 1.30x |",
        "| kvpolicy: snapkv | +100.00 ms, 1.50x | +20.00 ms, 1.10x |",
        "| kvpress: ObservedAttentionPress | +50.00 ms, 1.50x | not run |",
        "| kvpolicy: h2o | +20.00 ms, 1.10x | +20.00 ms, 1.10x |",
    ]
    assert "\n".join(rows) in section
    steps_of = [line.split(" | ")[:3] for line in section.splitlines() if " GiB | " in line or " MiB | " in line]
    assert ["| kvpolicy: tova, compiled", "6.00 (5.50 to 6.50)", "1.00 GiB"] in steps_of
    assert "+100 ms, 1.20x |" in section  # the batch's prompt under SnapKVPress
    assert "A prompt takes less time under kvpress: `SnapKVPress` at 1,024 tokens (1.30x against 1.50x).\n" in section
    assert "under kvpolicy: `snapkv` at 4,096 tokens (1.10x against 1.30x); `h2o` at 1,024 tokens (1.10x" in section
    assert "- The peak of a prompt is lower under neither, within 2%: `SnapKVPress` and `snapkv` at 1,024" in section
    assert "- K/V take fewer bytes under kvpress: `SnapKVPress` (1.00 GiB against 2.00 GiB).\n" in section
    assert "- K/V take fewer bytes under kvpolicy: `h2o` (512.0 MiB against 1.00 GiB).\n" in section
    assert "from 30.0 to 90.0 ms, 3.0x. So that a press's step was the shorter in 1 of 2 pairs" in section
    assert "SnapKVPress, eager" not in page.partition("## Decoding")[2].partition("\n## ")[0]
    assert "- `peers`, prefill, prompt 4096, h2o: ObservedAttentionPress: not run.\n" in page


def verb(model: str, ms: float, of_copy: float, most: list[tuple[str, float]], by: str = "triton") -> dict[str, Any]:
    made = {"case": "compaction with merge", "model": model, "rows": 32768, "arm": by, "ms": times(ms)}
    return made | {"launched_ms": times(2 * ms), "gb_s": 4000 * of_copy, "of_copy": of_copy, "most": most}


def test_kernels_tell_what_takes_their_time(performance: ModuleType) -> None:
    wide = "void at::native::{}elementwise_kernel<{}, at::native::gpu_kernel_impl_nocast<a"
    by_torch = [
        (wide.format("", "128, 4"), 0.2),
        ("void at::native::(anonymous namespace)::cunn_SoftMaxForwardReg<float, flo", 0.25),
        ("sm80_xmma_gemm_f32f32_f32f32_f32_tn_n_tilesize64x64x8_stage3_warpsize1x4x1_ffma_", 0.15),
        (wide.format("", "128, 2"), 0.1),
        (wide.format("_scatter_gather_", "128, 8"), 0.05),
    ]
    ran = [verb("Small", 2.0, 0.2, [("fold", 1.5), ("survey", 0.4)]), verb("Large", 4.0, 0.5, [("fold", 3.0)])]
    found = {"kernels": {**RUN, "arms": [*ran, verb("Small", 2.0, 0.1, by_torch, "torch")]}}
    page = performance.rendered(found)
    assert "| elementwise 300, cunn\\_SoftMaxForwardReg 250, gemm 150, scatter\\_gather\\_elementwise 50 |" in page
    assert "| fold 1,500, survey 400 |" in page
    assert "| compaction with merge, Small | 2,000 | fold 75%, survey 20% |\n" in page
    assert "the slowest shape is Small, whose bytes a copy moves in 400 µs. It takes 2000: `fold` 1500" in page
    assert "Large has 5.0x the bytes and takes 2.0x the time, 50% of the copy's bandwidth" in page


def test_a_target_is_explained_where_it_was_missed(performance: ModuleType) -> None:
    def launched(arm: str, ms: float, device_ms: float) -> dict[str, Any]:
        made = {"case": "launches", "pass": "prompt", "model": "LLaVA-1.5-7B", "batch": 1, "prompt": 4096, "arm": arm}
        return made | {"ms": times(ms), "device_ms": device_ms, "launches_a_layer": device_ms / 2}

    looked_at = {**RUN, "arms": [launched("DynamicCache", 100.0, 100.0), launched("elastic_cache", 130.0, 104.0)]}
    told = {}
    for ms in (130.0, 104.0):
        ran = [prompted("DynamicCache", 4096, 100.0, 900), prompted("elastic_cache", 4096, ms, 300)]
        page = performance.rendered({"prefill": {**RUN, "arms": ran}, "launches": looked_at})
        told[ms] = page.partition("## Targets")[2].partition("\n## ")[0]
    assert "the device is busy for 80%" in told[130.0]
    assert "+4.00 ms or 1.04x, with which the target would be met." in told[130.0]
    assert "busy" not in told[104.0]


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
