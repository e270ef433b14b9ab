"""The evaluation itself: every batch of every task under every arm."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from ..loading import load_model
from ..switch import enable, is_enabled
from .arms import Arm, arms_of
from .batch import Batch
from .columns import frame_of
from .conditions import conditions, hold_to
from .errors import EvaluationError
from .ledger import Ledger
from .processes import Processes
from .subject import Subject
from .task import Task
from .tasks import tasks_of

__all__ = ["Evaluation", "evaluate", "subject_of"]


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """What was measured.

    Attributes:
        rows: one for each sample under each arm; the columns are those of ``columns.py``.
        failures: task, label, budget and reason of each arm that does not fit a task or the model: it has no rows.
        conditions: model, versions, machine and settings.
        tasks: by name.
        arms: the full cache first.
        others: labels of further policies that ``out`` holds rows of, from calls that asked for them.
    """

    rows: pl.DataFrame
    failures: tuple[tuple[str, str, float | None, str], ...]
    conditions: Mapping[str, str]
    tasks: Mapping[str, Task]
    arms: tuple[Arm, ...]
    others: tuple[str, ...] = ()


def evaluate(
    model: Any,
    *,
    tasks: Sequence[str] | Mapping[str, Task] | None = None,
    policies: Sequence[str | Arm] | Mapping[str, object] | None = None,
    keeps: Sequence[float] = (0.5, 0.2),
    samples: int = 48,
    batch: int = 16,
    records: int = 4,
    seed: int = 0,
    out: str | Path | None = None,
    done: Callable[[int, int], None] = lambda _done, _of: None,
) -> Evaluation:
    """Measure policies on tasks, each held against the full cache on the same samples.

    Each batch goes through the model twice an arm: answers are generated greedily, and the right answers (the full
    cache's own where a task has none) are forced token by token, which tells their likelihood.

    Args:
        model: a folder, a hub id, a name of `kvpolicy_hf.loading.BUNDLED`, or a `Subject`.
        tasks: names of `TASKS`, ``"module:Name"``, or tasks by name; None: those that are made for the model.
        policies: what `arms_of` takes; None: every recipe that needs no more than a budget.
        keeps: the budgets, shares of the cache in (0, 1].
        samples: of each task.
        batch: samples that go through the model together. Another number rounds otherwise: it is another run.
        records: of each task so many samples are also recorded and replayed under every arm, for attention mass and
            output error.
        seed: draws the samples.
        out: a folder that keeps what was measured, so that a run goes on where it stopped, and further policies, tasks
            and samples are added to it; what is returned is of this call alone. A policy or task of your own whose
            module was edited is measured again. None keeps nothing.
        done: called with the units done so far by this process and all that it has.

    Raises:
        EvaluationError: if an argument is wrong, or ``out`` holds a run of other conditions.
        KVPolicyError: for a model or a policy that cannot be made.
    """
    for name, value, least in (
        ("samples", samples, 1),
        ("batch", batch, 1),
        ("records", records, 0),
        ("seed", seed, 0),
    ):
        if type(value) is not int or value < least:
            raise EvaluationError(f"evaluate({name}={value!r}): {name} must be an integer >= {least}.")
    arms = arms_of(policies, keeps)
    processes = Processes()
    subject = model if isinstance(model, Subject) else subject_of(model)
    named = tasks_of(tasks, subject)
    drawn = {name: task.samples(subject, samples, seed) for name, task in named.items()}
    with processes.folder(out) as folder:
        about = conditions(subject, batch=batch, seed=seed, records=records)
        hold_to(folder / "run.json", about, processes.first)
        ledger = Ledger(folder, processes.number)
        batches = [
            Batch(subject, name, task, drawn[name][start : start + batch], start, max(0, records - start), ledger)
            for name, task in named.items()
            for start in range(0, samples, batch)
        ]
        mine = batches[processes.number :: processes.count]
        for number, one in enumerate(mine):
            for place, arm in enumerate(arms):
                one.measure(arm)
                done(number * len(arms) + place + 1, len(mine) * len(arms))
            one.forget()
        processes.wait()
        ledger.read()
        return _collected(batches, named, arms, ledger, about)


def subject_of(model: str | Path) -> Subject:
    """Load a model and enable it; its name is the last part of where it lies."""
    loaded, processor = load_model(model)
    if not is_enabled(loaded):
        enable(loaded)
    return Subject(loaded, processor, Path(str(model)).name)


def _collected(
    batches: Sequence[Batch], tasks: Mapping[str, Task], arms: tuple[Arm, ...], ledger: Ledger, about: Mapping[str, str]
) -> Evaluation:
    """What the ledger has of these batches under these arms; an arm that failed on one batch of a task has no rows."""
    rows: list[dict[str, Any]] = []
    failures = []
    for name in tasks:
        for arm in arms:
            units = [ledger.done[batch.unit(arm)] for batch in batches if batch.name == name]
            reasons = [unit["failure"] for unit in units if "failure" in unit]
            if reasons:
                failures.append((name, arm.label, arm.keep, str(reasons[0])))
            else:
                rows += [row for unit in units for row in unit["rows"]]
    known = dict.fromkeys(row["policy"] for unit in ledger.done.values() for row in unit["rows"])
    asked = {arm.label for arm in arms}
    others = tuple(one for one in known if one not in asked)
    return Evaluation(frame_of(rows), tuple(failures), dict(about), dict(tasks), arms, others)
