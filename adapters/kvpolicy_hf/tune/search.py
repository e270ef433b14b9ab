"""The search: many compositions replayed, the best of them run, more like these, and the best on more samples.

A replay costs no pass of the model, but a small error of the attention's output is not yet a right answer. So the best
by replays are where a second search begins, that goes by real answers on a few samples. What survives is measured
beside every published recipe, on three times as many samples a round for a third of the candidates (successive
halving; Jamieson and Talwalkar, AISTATS 2016). The winner is held against the best recipe on samples that the search
has not seen. Both searches begin with published compositions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import polars as pl

from kvpolicy import KVPolicyError, Policy, catalogue, from_text, to_json

from ..evaluate import Arm, EvaluationError, Subject, Task, compare, evaluate, pareto, summarise
from ..evaluate.run import Evaluation, subject_of
from ..evaluate.summary import mean_quality
from ..evaluate.tasks import tasks_of
from ..simulate import Record, replay
from ..simulate.named import check_keep
from .records import records_of
from .space import starts, suggest

__all__ = ["Candidate", "Tuned", "tune"]

HALVING = 3
UNSEEN = 7_919  # added to the seed for the samples that the winner is judged by


@dataclass(frozen=True, slots=True)
class Candidate:
    """A composition that was tried.

    Attributes:
        name: what tables call it.
        policy: as a function of the budget.
        choices: what the search chose; None for a recipe.
    """

    name: str
    policy: Callable[[float], Policy]
    choices: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Tuned:
    """What a search found.

    Attributes:
        winner: of the searched compositions the one with the highest mean quality in the last round, at the budget.
        name: what the tables call it.
        best_recipe: the recipe with the highest mean quality in the last round.
        rounds: for each round the samples of a task, and each candidate with its mean quality, best first.
        held_out: winner, best recipe and full cache at half, once and twice the budget, on samples not seen before.
        comparison: of the winner with the best recipe on them, at the budget: what `evaluate.compare` gives.
        front: the arms that none beats in bytes and quality.
    """

    winner: Policy
    name: str
    best_recipe: str
    rounds: tuple[tuple[int, tuple[tuple[str, float], ...]], ...]
    held_out: Evaluation
    comparison: pl.DataFrame
    front: pl.DataFrame


def tune(
    model: Any,
    *,
    keep: float,
    out: str | Path,
    tasks: Sequence[str] | Mapping[str, Task] | None = None,
    recipes: Sequence[str] | None = None,
    trials: int = 200,
    candidates: int = 27,
    answered: int = 54,
    samples: int = 8,
    rounds: int = 3,
    records: int = 4,
    test: int = 100,
    seed: int = 0,
    done: Callable[[str, int, int], None] = lambda _what, _done, _of: None,
) -> Tuned:
    """Search for a composition that keeps the most quality at a budget.

    Args:
        model: a folder, a hub id, a name of `kvpolicy_hf.loading.BUNDLED`, or a `Subject`.
        keep: the budget, a share of the cache in (0, 1].
        out: a folder for ``winner.json``; it keeps what was measured, so that a search goes on where it stopped.
        tasks: as of `evaluate`.
        recipes: names or calls of recipes that the compositions have to beat; None: every one that needs no more than
            a budget.
        trials: compositions that are replayed.
        candidates: how many of them are run, beside every recipe.
        answered: compositions that a second search then runs, each on the samples of the first round; as many as
            ``candidates``, the best, go on beside the others.
        samples: of each task in the first round; each further one has three times as many, for a third as many
            candidates, but always the best recipe so far.
        rounds: of real answers.
        records: samples of each task that are replayed.
        test: samples of each task that the winner is judged by, drawn from another seed.
        seed: draws samples and compositions.
        done: called with what is going on, and how much of it is done.

    Raises:
        PolicyError: for a budget out of range, or a name that is no recipe.
        EvaluationError: if another argument is wrong, or no composition can be run.
    """
    check_keep(keep)
    numbers = (("trials", trials), ("candidates", candidates), ("samples", samples), ("rounds", rounds))
    if type(answered) is not int or answered < 0:
        raise EvaluationError(f"tune(answered={answered!r}): answered must be an integer >= 0.")
    for name, value in (*numbers, ("records", records), ("test", test)):
        if type(value) is not int or value < 1:
            raise EvaluationError(f"tune({name}={value!r}): {name} must be an integer >= 1.")
    if candidates > trials:
        raise EvaluationError(f"tune(candidates={candidates}): only {trials} compositions are tried.")
    named_recipes = [name for name in catalogue(keep=keep) if name != "full"] if recipes is None else recipes
    if not named_recipes:
        raise EvaluationError("tune(recipes=[]): there is nothing to beat. Hint: recipes=['h2o'].")
    theirs = [Candidate(name, _recipe(name)) for name in named_recipes]
    for one in theirs:
        one.policy(keep)  # before anything is measured: a name may be wrong
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    subject = model if isinstance(model, Subject) else subject_of(model)
    named = tasks_of(tasks, subject)

    found = _replayed(subject, named, folder, keep, trials, records, seed, done)[:candidates]
    if not found:
        raise EvaluationError(f"none of {trials} compositions can be replayed on {subject.name}. Hint: more trials.")
    if answered:
        found = _answered(subject, named, folder, keep, found, answered, samples, seed, done)[:candidates] + found
    pool = [*_different(found, keep), *theirs]
    told = []
    for number in range(rounds):
        size = samples * HALVING**number
        ranked = _ranked(subject, named, pool, keep, size, samples, seed, folder / "calibration", done)
        told.append((size, tuple((one.name, value) for one, value in ranked)))
        ours = [one for one, _ in ranked if one.choices is not None]
        theirs = [one for one, _ in ranked if one.choices is None]
        if not ours or not theirs:
            raise EvaluationError(f"no {'composition' if theirs else 'recipe'} can be run on {', '.join(named)}.")
        pool = [*ours[: math.ceil(len(ours) / HALVING)], *theirs[: math.ceil(len(theirs) / HALVING)]]

    winner, best = ours[0], theirs[0]
    (folder / "winner.json").write_text(to_json(winner.policy(keep)) + "\n", encoding="utf-8")
    budgets = sorted({keep / 2, keep, min(1.0, 2 * keep)})
    held_out = evaluate(
        subject,
        tasks=named,
        policies=[Arm(one.name, share, one.policy(share)) for one in (winner, best) for share in budgets],
        samples=test,
        batch=min(test, 16),
        records=0,
        seed=seed + UNSEEN,
        out=folder / "held-out",
        done=lambda now, of: done("judging the winner", now, of),
    )
    return Tuned(
        winner.policy(keep),
        winner.name,
        best.name,
        tuple(told),
        held_out,
        compare(held_out.rows, winner.name, keep, best.name, keep),
        pareto(summarise(held_out.rows)),
    )


def _replayed(
    subject: Subject,
    tasks: Mapping[str, Task],
    folder: Path,
    keep: float,
    trials: int,
    records: int,
    seed: int,
    done: Callable[[str, int, int], None],
) -> list[Candidate]:
    """The compositions that were tried, the one with the least output error first; no two are the same policy."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    taken = records_of(subject, tasks, records, seed)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(10, trials // 5)))
    for choices in starts(pictures=subject.takes_pictures)[:trials]:
        study.enqueue_trial(choices)
    tried: dict[Policy, tuple[float, Candidate]] = {}
    for number in range(trials):
        trial = study.ask()
        try:
            made = suggest(trial, pictures=subject.takes_pictures)
            policy = made(keep)
            error = tried[policy][0] if policy in tried else _error(taken, policy)
        except KVPolicyError:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            tried.setdefault(policy, (error, Candidate(f"composition {number}", made, dict(trial.params))))
            study.tell(trial, error)
        done("replaying compositions", number + 1, trials)
    return [one for _, one in sorted(tried.values(), key=lambda pair: pair[0])]


def _answered(
    subject: Subject,
    tasks: Mapping[str, Task],
    folder: Path,
    keep: float,
    begin: Sequence[Candidate],
    trials: int,
    samples: int,
    seed: int,
    done: Callable[[str, int, int], None],
) -> list[Candidate]:
    """Compositions that were run on the samples of the first round, those with the highest mean quality first.

    The search begins with published compositions and with those that replays found, at most half of the trials.
    """
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(5, trials // 3))
    )
    known = [one.choices for one in begin if one.choices is not None]
    for choices in [*starts(pictures=subject.takes_pictures), *known][: max(1, trials // 2)]:
        study.enqueue_trial(dict(choices))
    tried: list[tuple[float, Candidate]] = []
    for number in range(trials):
        trial = study.ask()
        try:
            made = suggest(trial, pictures=subject.takes_pictures)
            one = Candidate(f"answered {number}", made, dict(trial.params))
            ((_, value),) = _ranked(subject, tasks, [one], keep, samples, samples, seed, folder / "calibration", _quiet)
        except (KVPolicyError, ValueError):  # parts refuse each other, or some task
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            tried.append((value, one))
            study.tell(trial, value)
        done("answering compositions", number + 1, trials)
    return [one for _, one in sorted(tried, key=lambda pair: -pair[0])]


def _quiet(_what: str, _done: int, _of: int) -> None:
    """Tells nobody."""


def _different(candidates: Sequence[Candidate], keep: float) -> list[Candidate]:
    """The first of each that are the same policy."""
    return list({one.policy(keep): one for one in reversed(candidates)}.values())[::-1]


def _error(records: Sequence[Record], policy: Policy) -> float:
    return sum(float(replay(record, policy).error.mean()) for record in records) / len(records)


def _recipe(name: str) -> Callable[[float], Policy]:
    return lambda keep: from_text(name, keep=keep)


def _ranked(
    subject: Subject,
    tasks: Mapping[str, Task],
    pool: Sequence[Candidate],
    keep: float,
    samples: int,
    batch: int,
    seed: int,
    out: Path,
    done: Callable[[str, int, int], None],
) -> list[tuple[Candidate, float]]:
    """The candidates that every task can be run under, with their mean quality over tasks, best first."""
    result = evaluate(
        subject,
        tasks=tasks,
        policies=[Arm(one.name, keep, one.policy(keep)) for one in pool],
        samples=samples,
        batch=batch,  # that of the first round: what it measured is not measured again
        records=0,
        seed=seed,
        out=out,
        done=lambda now, of: done(f"answering, {samples} samples a task", now, of),
    )
    values = mean_quality(result.rows, len(tasks))
    ranked = [(one, values[one.name]) for one in pool if one.name in values]
    return sorted(ranked, key=lambda pair: -pair[1])
