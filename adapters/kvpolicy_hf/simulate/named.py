"""What a user names, and how: a policy in every spelling that there is, and its budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kvpolicy import KeepRatio, Pipeline, Policy, PolicyError, TopK, from_json, from_target, from_toml

__all__ = ["check_keep", "is_file", "policy_of"]

RECENT = 0.5  # of the budget of a scorer that comes without a policy


def check_keep(keep: Any) -> None:
    """Refuse a budget that is no share of the cache.

    Raises:
        PolicyError: names the value, and what it is as a share where it reads as per cent.
    """
    try:
        KeepRatio(keep)
    except PolicyError:
        per_cent = keep if isinstance(keep, int | float) and 1 < keep <= 100 else 20
        raise PolicyError(
            f"keep={keep!r}: what may be kept is a share of the cache, in (0, 1]. "
            f"Hint: --keep {per_cent / 100:g}, or keep={per_cent / 100:g}, is {per_cent:g}%."
        ) from None


def policy_of(label: str, target: object, keep: float) -> Policy:
    """The policy that a target stands for, at this budget unless it names its own.

    Args:
        label: what errors call it.
        target: a name, as a command line has them: a recipe (``"h2o"``, ``"elastic_cache(last=8)"``); a file of a
            policy (``"tuned.json"``, ``"mine.toml"``); ``"module:Name"``. Or what one of these names: a policy; a
            function of ``keep`` that makes one; a scorer, with half of its rows the recent ones, in the prompt and
            while decoding.
        keep: the budget, a share in (0, 1].

    Raises:
        PolicyError: for a name that is not there, arguments that it refuses, a file that cannot be read, or what is
            no policy.
    """
    if isinstance(target, str) and is_file(target):
        try:
            text = Path(target).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:  # ValueError: no UTF-8, or a name that no file can have
            raise PolicyError(f"policy {target!r} cannot be read: {error}.") from error
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
    raise PolicyError(
        f"policy {label!r} is a {type(made).__name__}, neither a policy nor a scorer. "
        f"Hint: a function of keep that makes the policy."
    )


def is_file(target: str) -> bool:
    """Whether it names a file of a policy."""
    return target.endswith((".json", ".toml"))
