"""The bench under `evaluate`: its model answers its tasks, and every task of the package has a name here."""

from __future__ import annotations

import polars as pl
import pytest

from kvpolicy_hf.evaluate import Sample, Subject, evaluate
from kvpolicy_hf.evaluate.run import subject_of
from kvpolicy_hf.evaluate.tasks import BenchQuestion
from kvpolicy_hf.evaluate.tasks.bench import BENCH_TASKS
from kvpolicy_hf.loading import LoadingError, load_model

kvpolicy_bench = pytest.importorskip("kvpolicy_bench")  # the sdist is without it


@pytest.fixture(scope="module")
def bench() -> Subject:
    return subject_of("bench")


def test_every_task_of_the_bench_has_a_name() -> None:
    assert [task.label for task in BENCH_TASKS.values()] == [task.label for task in kvpolicy_bench.TASKS]
    assert {"bench-grid-at", "bench-several-picture-at", "bench-easy-vqa"} <= set(BENCH_TASKS)


def test_the_model_that_the_package_carries_answers(bench: Subject) -> None:
    names = ["bench-photo-describe", "bench-book-find", "bench-several-picture-where"]
    rows = evaluate(bench, tasks=names, policies=["streaming_llm"], keeps=[0.1], samples=2, records=0).rows
    means = rows.group_by("policy", "task").agg(pl.col("quality").mean())
    shares = {(policy, task): quality for policy, task, quality in means.rows()}
    assert {shares["full", name] for name in names} == {1.0}
    assert min(shares["streaming_llm", name] for name in names) < 1.0  # a tenth of the rows, and what is found is lost


@pytest.mark.parametrize(
    ("label", "answer", "said", "share"),
    [
        ("at/grid", "c4 cat", "c4 cat", 1.0),
        ("at/grid", "c4 cat", "c4 dog", 0.0),
        ("at/grid", "c4 cat", "", 0.0),
        ("describe/photo", "a1 cat b2 dog", "a1 cat b2 owl", 0.5),
        ("describe/photo", "a1 cat b2 dog", "a1 cat", 0.5),
        ("describe/photo", "a1 cat", "a1 cat b2 dog c3 owl d4 bat", 0.25),  # what is made up counts against it
        ("find/book", "zib cat c4", "zib cat c5", 0.5),
        ("count/crowd", "cat a1 c4 d2 3", "cat a1 c4 d2 3", 1.0),
        ("count/crowd", "cat a1 c4 d2 3", "cat a1 d2 2", 0.25),
        ("easy-vqa/easy-vqa", "answer no", "answer yes", 0.0),
    ],
)
def test_what_is_told_anyway_does_not_count(label: str, answer: str, said: str, share: float) -> None:
    assert BenchQuestion(label).score(said, Sample(("a picture",), answer)) == share


def test_without_the_package_it_says_where_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LoadingError, match=r"pip install \./bench"):
        load_model("bench")
