"""Train until the run is done or its time is up."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .batches import HELD_OUT, LABELS, Batch, batches, make_batch
from .compose import Composer
from .losses import ALIGNMENT, BINDING, Costs, costs
from .run import Run

__all__ = ["CHECKPOINT", "LOG", "Pace", "held_out", "train", "update"]

CHECKPOINT, LOG = "checkpoint.pt", "log.jsonl"


@dataclass(frozen=True)
class Pace:
    """How long to go on, and how often to do what.

    Attributes:
        seconds: stop cleanly after so many.
        log_every: steps between two lines of the log.
        held_out_every: steps between two measurements on scenes that are not trained on.
        save_every: seconds between two checkpoints.
        workers: processes that make batches ahead.
    """

    seconds: float = math.inf
    log_every: int = 50
    held_out_every: int = 250
    save_every: float = 60.0
    workers: int = 0


def autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """bfloat16 where it is fast; float32 on a CPU, where a resumed run is to be the same to the last bit."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else contextlib.nullcontext()


def update(run: Run, composer: Composer, parts: list[Batch]) -> list[Costs]:
    """One step of the optimizer."""
    for group in run.optimizer.param_groups:
        group["lr"] = run.options.rate_at(run.step, run.restarted)
    run.optimizer.zero_grad(set_to_none=True)
    found = []
    for part in parts:
        with autocast(run.device):
            cost = costs(run.model, composer, part)
        cost.loss.backward()
        found.append(replace(cost, loss=cost.loss.detach()))
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    run.optimizer.step()
    run.step += 1
    return found


@torch.no_grad()
def held_out(run: Run, composer: Composer, steps: int = 2) -> dict[str, float]:
    """The share of questions answered word for word, by task, on scenes from another seed; always the same ones."""
    recipe = replace(run.options.recipe, seed=run.options.seed + HELD_OUT, easy=0)
    asked, right = torch.zeros(2, len(LABELS), device=run.device)
    run.model.eval()
    for step in range(steps):
        for part in make_batch(recipe, step):
            with autocast(run.device):
                cost = costs(run.model, composer, part)
            asked, right = asked + cost.asked, right + cost.right
    run.model.train()
    shares = (right / asked).tolist()
    return {label: round(share, 4) for label, share in zip(LABELS, shares, strict=True) if not math.isnan(share)}


def train(run: Run, folder: Path, pace: Pace, say: Callable[[str], None] = print) -> bool:
    """Train; True if the run is done, False if its time was up. Both leave a checkpoint and a log in the folder.

    Raises:
        FloatingPointError: the loss is not finite any more. The last checkpoint is from before.
    """
    began, before = time.perf_counter(), run.seconds
    saved = began
    composer = Composer(run.options.world, run.device)
    folder.mkdir(parents=True, exist_ok=True)
    tally = _Tally(run.device)
    with (folder / LOG).open("a", encoding="utf-8") as log:

        def note(**line: Any) -> None:
            line = {"step": run.step, "seconds": round(run.seconds, 1), **line}
            log.write(json.dumps(line) + "\n")
            log.flush()
            say(json.dumps(line))

        def keep() -> None:
            if not math.isfinite(tally.last()):
                raise FloatingPointError(f"the loss of step {run.step - 1} is {tally.last()}; checkpoint kept")
            run.save(folder / CHECKPOINT)

        stream = batches(run.options.recipe, run.step, run.options.steps, pace.workers)
        with contextlib.closing(stream):
            for parts in stream:
                tally.add(update(run, composer, parts))
                now = time.perf_counter()
                run.seconds = before + now - began
                if run.step % pace.log_every == 0:
                    note(rate=run.optimizer.param_groups[0]["lr"], **tally.take())
                if run.step % pace.held_out_every == 0 or run.step == run.options.steps:
                    note(held_out=held_out(run, composer))
                if now - saved > pace.save_every:
                    keep()
                    saved = now
                if now - began > pace.seconds:
                    break
        if run.device.type == "cuda":
            torch.cuda.synchronize()
        run.seconds = before + time.perf_counter() - began
        keep()
    return run.step >= run.options.steps


class _Tally:
    """Means since the last line of the log; on the device, so that a step waits for nothing."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.clear()
        self.loss = torch.zeros((), device=device)

    def clear(self) -> None:
        self.steps = 0
        self.nats = torch.zeros(len(LABELS), device=self.device)
        self.alignment, self.binding = torch.zeros(2, device=self.device)

    def add(self, found: list[Costs]) -> None:
        self.loss = sum((cost.loss for cost in found), torch.zeros((), device=self.device))
        self.nats = self.nats + sum(cost.nats for cost in found)
        self.alignment = self.alignment + sum(cost.alignment for cost in found)
        self.binding = self.binding + sum(cost.binding for cost in found)
        self.steps += 1

    def last(self) -> float:
        return float(self.loss)

    def take(self) -> dict[str, Any]:
        nats = (self.nats / self.steps * len(LABELS)).tolist()
        alignment, binding = float(self.alignment / self.steps), float(self.binding / self.steps)
        line = {
            "loss": round(sum(nats) / len(LABELS) + ALIGNMENT * alignment + BINDING * binding, 4),
            "alignment": round(alignment, 4),
            "binding": round(binding, 4),
            "nats": {label: round(each, 4) for label, each in zip(LABELS, nats, strict=True)},
        }
        self.clear()
        return line
