"""Search for compositions with `kvpolicy_hf.tune`, several times at once for a given time, and keep the best.

    python -m scripts.search_compositions bench --searches 16 --seconds 600
    python -m scripts.search_compositions bench --judge    (or with torchrun, as `scripts.measure_quality`)

Every search draws its samples and its choices from another seed, and is stopped when the time is up. Those of all
searches that answered best are then judged on samples that no search saw, and the best goes to `docs/results/quality`;
`scripts.measure_quality` measures it, on other samples again and on other tasks.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from scripts.measure_quality import RESULTS, SEARCHED

import kvpolicy
from kvpolicy import Policy, to_json
from kvpolicy_hf.evaluate import Arm, evaluate
from kvpolicy_hf.evaluate.columns import frame_of
from kvpolicy_hf.evaluate.ledger import Ledger
from kvpolicy_hf.evaluate.processes import Processes
from kvpolicy_hf.evaluate.run import subject_of
from kvpolicy_hf.evaluate.summary import mean_quality
from kvpolicy_hf.tune import tune

KEEP = 0.2
SEED_OF_JUDGE, SEED_OF_SEARCHES = 4_242, 1_000


@dataclass(frozen=True)
class Effort:
    """How much is tried.

    Attributes:
        replayed: compositions that a search replays, before any is answered.
        begin: how many of them, the best, are answered first.
        samples: of each task, while searching.
        judged: compositions, the best of all searches.
        judge_samples: of each task, for these.
    """

    replayed: int
    begin: int
    samples: int
    judged: int
    judge_samples: int


EFFORTS = {"bench": Effort(8, 6, 8, 12, 64), "smollm2": Effort(40, 10, 6, 6, 16)}


def search(model: str, out: Path, seed: int) -> None:
    """Search until stopped; the ledger has what every composition answered."""
    torch.set_num_threads(1)
    effort = EFFORTS[model]
    tune(
        subject_of(model),
        keep=KEEP,
        out=out,
        tasks=SEARCHED[model],
        recipes=("h2o",),  # every recipe comes in when the best is measured
        trials=effort.replayed,
        candidates=effort.begin,
        answered=10_000,
        samples=effort.samples,
        records=1,
        seed=seed,
        done=lambda what, now, of: print(f"{seed}: {what} {now}/{of}", flush=True),
    )


def answered(build: Path, tasks: int) -> list[tuple[float, Policy]]:
    """What the searches ran on all tasks, with the mean of quality over tasks, best first."""
    units = [pair for folder in sorted(build.glob("*/calibration")) for pair in Ledger(folder).done.items()]
    rows = frame_of([{**row, "policy": unit.arm} for unit, record in units for row in record["rows"]])
    best: dict[Policy, float] = {}
    for arm, quality in mean_quality(rows, tasks).items():
        _, _, text = arm.partition(f" {KEEP} ")  # the label; a policy prints as its own constructor
        if text:
            policy = eval(text, vars(kvpolicy))
            best[policy] = max(quality, best.get(policy, 0.0))
    return sorted(((quality, policy) for policy, quality in best.items()), key=lambda pair: (-pair[0], str(pair[1])))


def judge(model: str, build: Path) -> None:
    """Keep the best, by samples that no search saw."""
    found = answered(build, len(SEARCHED[model]))
    effort = EFFORTS[model]
    policies = [policy for _, policy in found[: effort.judged]]
    subject = subject_of(model)
    result = evaluate(
        subject,
        tasks=SEARCHED[model],
        policies=[Arm(f"number {number}", KEEP, policy) for number, policy in enumerate(policies)],
        samples=effort.judge_samples,
        batch=effort.judge_samples // 2,
        records=0,
        seed=SEED_OF_JUDGE,
        out=build / "judged",
    )
    if not Processes().first:
        return
    quality = mean_quality(result.rows, len(SEARCHED[model]))
    judged = [(quality[f"number {number}"], policy) for number, policy in enumerate(policies)]
    for (searched, policy), (value, _) in zip(found, judged, strict=False):
        print(f"{value:.3f} (searched: {searched:.3f}) {policy}")
    _, best = max(judged, key=lambda pair: pair[0])
    file = RESULTS / f"composition-of-{model}.json"
    file.write_text(to_json(best) + "\n", encoding="utf-8")
    print(f"of {len(found)} that were answered, the best is in {file}: {best}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Start the searches and stop them, or judge what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=SEARCHED)
    parser.add_argument("--searches", type=int, default=2, help="at once (%(default)s)")
    parser.add_argument("--seconds", type=float, default=600, help="after which they are stopped (%(default)s)")
    parser.add_argument("--judge", action="store_true", help="judge what was found, and keep the best")
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)  # of one search, in a process of its own
    parser.add_argument("--build", type=Path, default=Path("build/search"), help="what was answered (%(default)s)")
    options = parser.parse_args(arguments)
    build = options.build / options.model
    if options.judge:
        judge(options.model, build)
    elif options.seed is not None:
        search(options.model, build / str(options.seed), options.seed)
    else:
        command = [sys.executable, "-m", "scripts.search_compositions", options.model, "--build", str(options.build)]
        seeds = [SEED_OF_SEARCHES + number for number in range(options.searches)]
        running = [subprocess.Popen([*command, "--seed", str(seed)]) for seed in seeds]
        time.sleep(options.seconds)
        for process in running:
            process.kill()


if __name__ == "__main__":
    main()
