"""What is compared: policies at budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvpolicy import (
    KeepRatio,
    Pipeline,
    Policy,
    TopK,
    catalogue,
    from_json,
    from_target,
    from_toml,
    full,
)

from .errors import EvaluationError

__all__ = ["FULL", "Arm", "arms_of"]

RECENT = 0.5  # of the budget of a scorer that comes without a policy
_OTHER = 0.625  # a budget that nobody asked for: what is the same at it has a budget of its own


@dataclass(frozen=True, slots=True)
class Arm:
    """One policy at one budget.

    Attributes:
        label: what tables call it.
        keep: the share of the cache that it was asked to keep; None if it has a budget of its own.
        policy: the policy.
    """

    label: str
    keep: float | None
    policy: Policy


FULL = Arm("full", 1.0, full())


def arms_of(policies: Sequence[str | Arm] | Mapping[str, object] | None, keeps: Sequence[float]) -> tuple[Arm, ...]:
    """Policies at budgets, the full cache first.

    Args:
        policies: names, as a command line has them: recipes (``"h2o"``, ``"elastic_cache(last=8)"``); files of policies
            (``"tuned.json"``, ``"mine.toml"``); ``"module:Name"``. Or what they name, by labels of your own: a policy;
            a function of ``keep`` that makes one; a scorer, with half of its rows the recent ones, in the prompt and
            while decoding; or again a name. Arms stay what they are. None: every recipe that needs no more than a
            budget.
        keeps: the budgets, shares in (0, 1]. A policy that names its own is one arm.

    Raises:
        PolicyError: for a name that is not there, arguments that it refuses, a budget out of range.
        EvaluationError: if there is no budget, one is given twice, two policies have one label, or one is none.
    """
    if not keeps:
        raise EvaluationError("keeps is empty: there is no budget to evaluate at. Hint: keeps=[0.5, 0.2].")
    for keep in keeps:
        KeepRatio(keep)
    if policies is None:
        policies = [name for name in catalogue(keep=keeps[0]) if name != "full"]
    asked = list(policies.items()) if isinstance(policies, Mapping) else [(_label(one), one) for one in policies]
    given: list[object] = [target for _, target in asked]
    budgets: list[object] = list(keeps)
    for what, values in (("policies", given), ("keeps", budgets)):
        if twice := [value for value in values if values.count(value) > 1]:
            raise EvaluationError(f"{what}: {values} has {twice[0]!r} twice.")
    labels = [label for label, target in asked if not isinstance(target, Arm)]
    if same := [label for label in labels if labels.count(label) > 1]:
        raise EvaluationError(f"policies: {given} name {same[0]!r} twice. Hint: other names of files or functions.")
    arms = [FULL]
    for label, target in asked:
        arms += [arm for arm in _at(label, target, keeps) if arm != FULL]
    return tuple(arms)


def _at(label: str, target: object, keeps: Sequence[float]) -> list[Arm]:
    """One policy at every budget, or at its own."""
    if isinstance(target, Arm):
        return [target]
    if target == "full":
        return [FULL]
    made = [_policy(label, target, keep) for keep in keeps]
    if made[0] == _policy(label, target, _OTHER):
        return [Arm(label, None, made[0])]
    return [Arm(label, keep, policy) for keep, policy in zip(keeps, made, strict=True)]


def _label(target: object) -> str:
    if isinstance(target, Arm):
        return target.label
    if not isinstance(target, str):
        raise EvaluationError(f"policies: {target!r} has no label. Hint: policies={{'mine': {target!r}}} gives it one.")
    return Path(target).stem if _is_file(target) else target.partition(":")[2] or target


def _policy(label: str, target: object, keep: float) -> Policy:
    if isinstance(target, str) and _is_file(target):
        try:
            text = Path(target).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise EvaluationError(f"policy {target!r} cannot be read: {error}.") from error
        return from_json(text) if target.endswith(".json") else from_toml(text)
    made: Any = from_target(target, keep=keep) if isinstance(target, str) else target
    if isinstance(made, type):
        made = made()
    if callable(getattr(made, "score", None)):
        pipeline = Pipeline(schedule=KeepRatio(keep), score=made, select=TopK(recent=RECENT))
        return Policy(prefill=pipeline, decode=pipeline)
    if callable(made):
        made = made(keep=keep)
    if isinstance(made, Policy):
        return made
    raise EvaluationError(
        f"policy {label!r} is a {type(made).__name__}, neither a policy nor a scorer. "
        f"Hint: a function of keep that makes the policy."
    )


def _is_file(target: str) -> bool:
    return target.endswith((".json", ".toml"))
