"""Train the bench model from random weights, in one run or in several that go on where the last one stopped.

    PYTHONPATH=bench/src:bench python -m train --run build/bench --out build/bench/model --budget 1000 --seconds 520

The same line again goes on from the checkpoint in ``--run``, with the options that the run began with. ``--budget``
chooses the number of steps: so many as fit into that many seconds of training in total, from a short measurement.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import replace
from pathlib import Path

import torch

from .batches import batches
from .compose import Composer
from .export import export, reopen
from .loop import CHECKPOINT, Pace, held_out, train, update
from .run import Options, Run

RATES = {"full": 1e-3, "tiny": 1.5e-3}
MEASURED, SKIPPED = 30, 10  # steps that the measurement takes, and of them those that only warm up


def seconds_per_step(options: Options, device: torch.device, workers: int) -> float:
    """What a step costs here, on a run that is thrown away; evaluation and checkpoints come on top."""
    run = Run(options, device)
    composer = Composer(options.world, device)
    began = 0.0
    for number, parts in enumerate(batches(options.recipe, 0, MEASURED, workers)):
        if number == SKIPPED:
            _wait(device)
            began = time.perf_counter()
        update(run, composer, parts)
    _wait(device)
    return (time.perf_counter() - began) / (MEASURED - SKIPPED)


def begin(args: argparse.Namespace, device: torch.device) -> Run:
    """The run in ``--run``, or a new one."""
    checkpoint = args.run / CHECKPOINT
    if checkpoint.exists():
        run = Run.load(checkpoint, device)
        print(f"going on at step {run.step} of {run.options.steps}")
        return run
    if args.reopen:
        run = reopen(args.reopen, device, args.steps)
        print(f"going on at step {run.step} of {run.options.steps}, with a new optimizer")
        return run
    size = "tiny" if args.tiny else "full"
    options = Options(
        size=size,
        steps=args.steps or 10_000,
        seed=args.seed,
        rate=args.rate or RATES[size],
        warm_up=args.warm_up,
        easy=args.easy,
    )
    if not args.steps:
        each = seconds_per_step(options, device, args.workers)
        options = replace(options, steps=max(2 * args.warm_up, int(0.94 * args.budget / each)))
        print(f"{each * 1e3:.0f} ms a step: {options.steps} steps in {args.budget:.0f} s")
    return Run(options, device)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Train, then write the model as it is."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--run", type=Path, required=True, help="folder of checkpoint and log")
    options.add_argument("--out", type=Path, help="folder to write the model to, at the end of every process")
    options.add_argument(
        "--reopen", type=Path, help="without a checkpoint, go on from a model that --out wrote, to as many --steps"
    )
    options.add_argument("--tiny", action="store_true", help="a small model in a small world, for a CPU")
    length = options.add_mutually_exclusive_group(required=True)
    length.add_argument("--steps", type=int, help="steps of the whole run")
    length.add_argument("--budget", type=float, help="seconds of training of the whole run")
    options.add_argument("--seconds", type=float, default=math.inf, help="stop cleanly after so many")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--rate", type=float, help="highest learning rate")
    options.add_argument("--warm-up", type=int, default=200, help="steps")
    options.add_argument("--easy", type=float, default=0.4, help="share of the steps with easier scenes")
    options.add_argument("--workers", type=int, default=6, help="processes that make batches; 0 for none")
    options.add_argument("--log-every", type=int, default=50)
    options.add_argument("--held-out-every", type=int, default=250)
    options.add_argument("--save-every", type=float, default=60.0, help="seconds")
    options.add_argument("--commit", default="unknown", help="for the record")
    args = options.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    torch.backends.cuda.enable_cudnn_sdp(False)  # it plans anew for every shape; the others take any mask at once
    began = time.perf_counter()
    run = begin(args, device)
    print(f"{sum(parameter.numel() for parameter in run.model.parameters()):,} parameters on {device}", flush=True)
    left = args.seconds - (time.perf_counter() - began)
    pace = Pace(left, args.log_every, args.held_out_every, args.save_every, args.workers)
    done = train(run, args.run, pace, lambda line: print(line, flush=True))
    if args.out:
        found = held_out(run, Composer(run.options.world, device))
        export(run, args.out, commit=args.commit, held_out=found)
    print("done" if done else f"stopped at step {run.step} of {run.options.steps}: the same line goes on from here")
