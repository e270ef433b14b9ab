"""The evaluation: its numbers are what the model does, a killed run goes on, several processes share it."""

from __future__ import annotations

import html
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
import torch
from of_mine import Echo
from torch import Tensor

import kvpolicy
from kvpolicy import Policy
from kvpolicy_hf import PolicyCache, disable, enable
from kvpolicy_hf.evaluate import Arm, EvaluationError, Subject, evaluate, summarise, write
from kvpolicy_hf.evaluate import batch as batch_module
from kvpolicy_hf.evaluate.run import Evaluation
from kvpolicy_hf.evaluate.tasks import EmojiQuestion

SMALL = {"tasks": ["photo-where", "grid-row"], "policies": ["h2o"], "keeps": [0.5, 0.2], "samples": 5, "batch": 3}
TIMED = ("seconds", "peak_bytes")


@pytest.fixture(scope="module")
def small(demo: Subject) -> Evaluation:
    return evaluate(demo, **SMALL, records=1)  # type: ignore[arg-type]


class Stopped(BaseException):
    """What a user's interrupt is like."""


def of(rows: pl.DataFrame, **wanted: object) -> pl.DataFrame:
    return rows.filter(*(pl.col(name) == value for name, value in wanted.items()))


@torch.inference_mode()
def cost(subject: Subject, inputs: dict[str, Tensor], answer: list[int], policy: Policy) -> float:
    """Nats of an answer: one prompt alone, its tokens fed back by hand."""
    cache = PolicyCache(subject.model, policy, inputs=inputs)
    logits = subject.model(**inputs, past_key_values=cache).logits[:, -1]
    nats = 0.0
    for token in answer:
        nats -= float(logits.log_softmax(-1)[0, token])
        logits = subject.model(torch.tensor([[token]]), past_key_values=cache).logits[:, -1]
    return nats


def test_a_row_for_each_sample_under_each_arm(small: Evaluation) -> None:
    keys = small.rows.select("task", "sample", "policy", "keep").rows()
    arms = [("full", 1.0), ("h2o", 0.5), ("h2o", 0.2)]
    assert keys == [(task, n, *arm) for task in ("grid-row", "photo-where") for n in range(5) for arm in arms]
    assert small.failures == ()
    assert small.conditions["model"] == "demo"


def test_it_is_written_as_the_command_writes_it(small: Evaluation, tmp_path: Path) -> None:
    assert [(arm.label, arm.keep) for arm in small.arms] == [("full", 1.0), ("h2o", 0.5), ("h2o", 0.2)]
    assert list(small.tasks) == SMALL["tasks"]
    summary = write(small, tmp_path / "new" / "results")
    files = {path.name for path in (tmp_path / "new" / "results").iterdir()}
    assert files >= {"rows.csv", "rows.parquet", "summary.csv", "report.html", "chart-1.png"}
    assert summary.equals(summarise(small.rows))
    report = (tmp_path / "new" / "results" / "report.html").read_text(encoding="utf-8")
    for shown in (*map(repr, small.tasks.values()), *(repr(arm.policy) for arm in small.arms)):
        assert html.escape(shown) in report.replace("&#39;", "&#x27;").replace("&#34;", "&quot;")
    with pytest.raises(EvaluationError, match=r"^out='.*rows.csv' cannot be a folder: "):
        write(small, tmp_path / "new" / "results" / "rows.csv")


def test_the_full_cache_is_its_own_measure(small: Evaluation) -> None:
    full = of(small.rows, policy="full")
    assert full["rouge"].to_list() == full["agreement"].to_list() == [1.0] * 10
    assert full["same"].to_list() == full["new_tokens"].to_list()
    recorded = full.filter(pl.col("sample") == 0)
    assert recorded["mass"].to_list() == pytest.approx([1.0, 1.0])
    assert recorded["error"].to_list() == pytest.approx([0.0, 0.0], abs=1e-6)
    assert full.filter(pl.col("sample") > 0)["mass"].is_null().all()


@pytest.mark.parametrize("task", ["photo-where", "grid-row"])
@pytest.mark.parametrize(("label", "keep"), [("full", 1.0), ("h2o", 0.2)])
def test_numbers_are_those_of_a_prompt_alone(
    small: Evaluation, demo: Subject, task: str, label: str, keep: float
) -> None:
    policy = kvpolicy.full() if label == "full" else kvpolicy.h2o(keep=keep)
    kind, asks = task.split("-")
    samples = EmojiQuestion(kind, asks).samples(demo, 5, 0)  # type: ignore[arg-type]
    for number, row in enumerate(of(small.rows, task=task, policy=label, keep=keep).to_dicts()):
        inputs = demo.encode([samples[number].parts])
        answer = demo.tokens(str(samples[number].answer))
        assert (row["answer"], row["scored"]) == (samples[number].answer, len(answer))
        assert row["nats"] == pytest.approx(cost(demo, inputs, answer, policy), rel=1e-3, abs=1e-4)
        cache = PolicyCache(demo.model, policy, inputs=inputs)
        out = demo.model.generate(**inputs, past_key_values=cache, max_new_tokens=10, do_sample=False)
        said = demo.processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        assert row["said"] == said
        assert row["correct"] == row["quality"] == float(said == samples[number].answer)
        assert row["prompt_tokens"] == inputs["input_ids"].shape[1]


def test_the_full_arm_is_the_model_without_kvpolicy(small: Evaluation, demo: Subject) -> None:
    samples = EmojiQuestion("grid", "row").samples(demo, 5, 0)
    disable(demo.model)
    try:
        for number, row in enumerate(of(small.rows, task="grid-row", policy="full").to_dicts()):
            inputs = demo.encode([samples[number].parts])
            out = demo.model.generate(**inputs, max_new_tokens=10, do_sample=False)
            assert row["said"] == demo.text(out[0, inputs["input_ids"].shape[1] :].tolist())
    finally:
        enable(demo.model)


def test_without_a_right_answer_the_full_caches_own_is_forced(demo: Subject) -> None:
    result = evaluate(demo, tasks={"echo": Echo()}, policies=["streaming_llm"], keeps=[0.3], samples=2, records=0)
    full, other = (of(result.rows, policy=label).to_dicts() for label in ("full", "streaming_llm"))
    for sample, mine, theirs in zip(Echo().samples(demo, 2, 0), full, other, strict=True):
        assert mine["said"].startswith("password")
        assert mine["scored"] == mine["new_tokens"] == theirs["scored"]
        assert mine["correct"] is mine["quality"] is mine["answer"] is None
        inputs = demo.encode([sample.parts])
        nats = cost(demo, inputs, demo.tokens(mine["said"]), kvpolicy.streaming_llm(keep=0.3))
        assert theirs["nats"] == pytest.approx(nats, rel=1e-3, abs=1e-5)


def test_what_does_not_fit_is_told_and_the_others_go_on(demo: Subject) -> None:
    arms = [Arm("wrong", 0.5, kvpolicy.head_kv(keep=0.5, table=((1, 2),))), Arm("h2o", 0.5, kvpolicy.h2o(keep=0.5))]
    result = evaluate(demo, tasks=["photo-at"], policies=arms, samples=2, records=0)
    assert set(result.rows["policy"]) == {"full", "h2o"}
    ((task, label, keep, reason),) = result.failures
    assert (task, label, keep) == ("photo-at", "wrong", 0.5)
    assert "this model has 4 layers" in reason


def test_a_run_goes_on_where_it_stopped_and_takes_in_more(
    small: Evaluation, demo: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Policy] = []
    stops = {4}
    run = batch_module.generate

    def counting(subject: Subject, inputs: object, policy: Policy, new_tokens: int) -> object:
        asked.append(policy)
        if len(asked) in stops:
            stops.clear()
            raise Stopped
        return run(subject, inputs, policy, new_tokens)  # type: ignore[arg-type]

    monkeypatch.setattr(batch_module, "generate", counting)
    with pytest.raises(Stopped):
        evaluate(demo, **SMALL, records=1, out=tmp_path)  # type: ignore[arg-type]
    again = evaluate(demo, **SMALL, records=1, out=tmp_path)  # type: ignore[arg-type]
    assert again.rows.drop(TIMED).equals(small.rows.drop(TIMED))
    assert len(asked) == 2 * 2 * 3 + 1  # batches x tasks x arms, and the one that was interrupted
    asked.clear()
    more = {**SMALL, "policies": ["h2o", "tova"]}
    added = evaluate(demo, **more, records=1, out=tmp_path)  # type: ignore[arg-type]
    assert set(asked) == {kvpolicy.tova(keep=0.5), kvpolicy.tova(keep=0.2)}
    assert added.rows.filter(pl.col("policy") != "tova").equals(again.rows)


SCORER = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Norm:
    def score(self, view, step):
        return {sign}view.xp.linalg.vector_norm(view.values, axis=-1)
"""


def test_an_edited_scorer_is_measured_again_and_nothing_else(
    demo: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # bytecode goes by whole seconds
    file, out = tmp_path / "norm_that_is_edited.py", tmp_path / "out"

    def told() -> pl.DataFrame:
        sys.modules.pop(file.stem, None)
        policies = ["h2o", f"{file.stem}:Norm"]
        return evaluate(demo, tasks=["grid-row"], policies=policies, keeps=[0.3], samples=2, records=0, out=out).rows

    file.write_text(SCORER.format(sign=""), encoding="utf-8")
    first = told()
    assert told().equals(first)
    file.write_text(SCORER.format(sign="-"), encoding="utf-8")
    second = told()
    assert second.height == first.height == 6
    assert second.filter(pl.col("policy") != "Norm").equals(first.filter(pl.col("policy") != "Norm"))
    assert of(second, policy="Norm")["nats"].to_list() != of(first, policy="Norm")["nats"].to_list()
    file.write_text(SCORER.format(sign=""), encoding="utf-8")
    assert told().equals(first)


def test_other_conditions_do_not_mix(demo: Subject, tmp_path: Path) -> None:
    little = {"tasks": ["photo-at"], "policies": ["h2o"], "samples": 2, "records": 0, "out": tmp_path}
    evaluate(demo, **little)  # type: ignore[arg-type]
    with pytest.raises(EvaluationError, match=r"other conditions: seed '0', now '1'"):
        evaluate(demo, **little, seed=1)  # type: ignore[arg-type]
    weight = next(demo.model.parameters())
    with torch.no_grad():
        weight[0] += 1
        try:
            with pytest.raises(EvaluationError, match="other conditions: weights"):
                evaluate(Subject(demo.model, demo.processor, "demo"), **little)  # type: ignore[arg-type]
        finally:
            weight[0] -= 1


@pytest.mark.parametrize("name", ["samples", "batch", "records", "seed"])
@pytest.mark.parametrize("value", [-1, 1.5, True])
def test_numbers_that_are_none(demo: Subject, name: str, value: object) -> None:
    with pytest.raises(EvaluationError, match=rf"evaluate\({name}={value}\): {name} must be an integer"):
        evaluate(demo, **{name: value})  # type: ignore[arg-type]


COMMAND = ["eval", "demo", "--policy", "h2o", "--keep", "0.2", "--samples", "6", "--batch", "2", "--records", "0"]
ASKED = ["--task", "photo-where", "--task", "grid-row"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def written(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(folder / "rows.parquet").drop(TIMED)


def units(folder: Path) -> list[str]:
    return [line for path in folder.glob("units-*.jsonl") for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_kill_loses_nothing_and_two_processes_share(tmp_path: Path) -> None:
    plain, killed, shared = (tmp_path / name for name in ("plain", "killed", "shared"))
    python = [sys.executable, "-m", "kvpolicy", *COMMAND, *ASKED, "--out"]
    subprocess.run([*python, str(plain)], check=True, env=ENVIRONMENT, capture_output=True)

    running = subprocess.Popen([*python, str(killed)], env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    while len(units(killed)) < 3 and running.poll() is None:
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    before = units(killed)
    assert 3 <= len(before) < 12
    subprocess.run([*python, str(killed)], check=True, env=ENVIRONMENT, capture_output=True)
    assert units(killed)[: len(before)] == before
    assert len(units(killed)) == len({json.dumps(json.loads(line)["unit"]) for line in units(killed)}) == 12
    assert written(killed).equals(written(plain))

    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "kvpolicy"]
    subprocess.run([*launch, *COMMAND, *ASKED, "--out", str(shared)], check=True, env=ENVIRONMENT, capture_output=True)
    assert [len(path.read_text().splitlines()) for path in sorted(shared.glob("units-*.jsonl"))] == [6, 6]
    assert written(shared).equals(written(plain))
