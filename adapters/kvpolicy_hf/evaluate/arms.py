"""What is compared: policies at budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kvpolicy import Policy, catalogue, full

from ..simulate.named import check_keep, is_file, policy_of
from .errors import EvaluationError

__all__ = ["FULL", "Arm", "arms_of"]

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
        PolicyError: for a name that is not there, arguments that it refuses, what is no policy, a budget out of range.
        EvaluationError: if there is no budget, one is given twice, two policies have one label, or one has none.
    """
    if not keeps:
        raise EvaluationError("keeps is empty: there is no budget to evaluate at. Hint: keeps=[0.5, 0.2].")
    for keep in keeps:
        check_keep(keep)
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
    made = [policy_of(label, target, keep) for keep in keeps]
    if made[0] == policy_of(label, target, _OTHER):
        return [Arm(label, None, made[0])]
    return [Arm(label, keep, policy) for keep, policy in zip(keeps, made, strict=True)]


def _label(target: object) -> str:
    if isinstance(target, Arm):
        return target.label
    if not isinstance(target, str):
        raise EvaluationError(f"policies: {target!r} has no label. Hint: policies={{'mine': {target!r}}} gives it one.")
    return Path(target).stem if is_file(target) else target.partition(":")[2] or target
