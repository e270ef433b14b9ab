"""What is compared: policies at budgets."""

from __future__ import annotations

from collections.abc import Sequence
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


def arms_of(targets: Sequence[str] | None, keeps: Sequence[float]) -> tuple[Arm, ...]:
    """The arms that a command line names, the full cache first.

    Args:
        targets: recipes (``"h2o"``, ``"elastic_cache(last=8)"``); files of policies (``"tuned.json"``,
            ``"mine.toml"``); ``"module:Name"`` of a policy, of a function of ``keep`` that makes one, or of a scorer:
            with half of its rows the recent ones, in the prompt and while decoding. None: every recipe that needs no
            more than a budget.
        keeps: the budgets, shares in (0, 1]. A target that names its own is one arm.

    Raises:
        PolicyError: for a name that is not there, arguments that it refuses, a budget out of range.
        EvaluationError: if there is no budget, one is given twice, or two targets have one name.
    """
    if not keeps:
        raise EvaluationError("keeps is empty: there is no budget to evaluate at. Hint: keeps=[0.5, 0.2].")
    for keep in keeps:
        KeepRatio(keep)
    named = list(targets) if targets is not None else [name for name in catalogue(keep=keeps[0]) if name != "full"]
    for what, values in (("targets", named), ("keeps", list(keeps))):
        if len(set(values)) < len(values):
            raise EvaluationError(f"{what}: {values} names one twice.")
    labels = [_label(target) for target in named]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise EvaluationError(f"targets: {named} name {twice[0]!r} twice. Hint: other names of files or functions.")
    arms = [FULL]
    for target, label in zip(named, labels, strict=True):
        if target == "full":
            continue
        made = [_policy(target, keep) for keep in keeps]
        if made[0] == _policy(target, _OTHER):
            arms.append(Arm(label, None, made[0]))
        else:
            arms += [Arm(label, keep, policy) for keep, policy in zip(keeps, made, strict=True)]
    return tuple(arms)


def _label(target: str) -> str:
    return Path(target).stem if _is_file(target) else target.partition(":")[2] or target


def _policy(target: str, keep: float) -> Policy:
    if _is_file(target):
        try:
            text = Path(target).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise EvaluationError(f"policy {target!r} cannot be read: {error}.") from error
        return from_json(text) if target.endswith(".json") else from_toml(text)
    made: Any = from_target(target, keep=keep)
    if isinstance(made, Policy):
        return made
    if callable(getattr(made, "score", None)):
        pipeline = Pipeline(schedule=KeepRatio(keep), score=made, select=TopK(recent=RECENT))
        return Policy(prefill=pipeline, decode=pipeline)
    raise EvaluationError(
        f"policy {target!r} is a {type(made).__name__}, neither a policy nor a scorer. "
        f"Hint: a function of keep that makes the policy."
    )


def _is_file(target: str) -> bool:
    return target.endswith((".json", ".toml"))
