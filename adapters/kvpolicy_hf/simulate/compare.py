"""Several policies over one record, and the clairvoyant beside them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TypeAlias

from kvpolicy import KeepRatio, KVPolicyError, Policy, PolicyError, catalogue

from .clairvoyant import clairvoyant
from .named import check_keep, policy_of
from .record import Record
from .replay import Replay, replay

__all__ = ["BOUNDS", "Results", "choose", "compare"]

BOUNDS = BOUND, BOUND_ONCE = ("clairvoyant", "clairvoyant, prompt only")

QUOTED_OR_MARK = re.compile(r"""'[^']*'|"[^"]*"|#[^\n]*|[\[\](){},]""")  # or a comment
OPENING, CLOSING = "[({", "])}"

Results: TypeAlias = Mapping[str, Replay | KVPolicyError]  # by policy; an error where it cannot be replayed


def choose(names: str | None, keep: float) -> dict[str, Policy]:
    """The policies of a list such as ``"h2o, elastic_cache(last=8, rows=64), my_module:MyScorer"`` at this budget.

    Args:
        names: names as `policy_of` takes them, between commas; None: every recipe that needs no more than a budget.
        keep: the budget of those that name none.

    Raises:
        PolicyError: for a name that is not there, arguments that it refuses, or a budget out of range.
    """
    check_keep(keep)  # out of range it is refused, also where every name has a budget of its own
    if names is None:
        return dict(catalogue(keep=keep))
    return {part: policy_of(part, part, keep) for part in _split(names)}


def compare(
    record: Record, policies: Mapping[str, Policy], keep: float, *, done: Callable[[], None] = lambda: None
) -> Results:
    """Replay every policy, then the clairvoyant at the same budget; ``done`` is called after each of the policies.

    Where a policy compresses the prompt only, the clairvoyant that does so too is added: the bound of that policy.

    Raises:
        PolicyError: if none of the policies can be replayed; gives the first one's reason.
    """
    results: dict[str, Replay | KVPolicyError] = {}
    for name, policy in policies.items():
        try:
            results[name] = replay(record, policy)
        except KVPolicyError as error:
            results[name] = error
        done()
    errors = [f"{name}: {result}" for name, result in results.items() if isinstance(result, KVPolicyError)]
    if len(errors) == len(results):
        raise PolicyError(f"none of the policies can be replayed. {' '.join(errors[:1])}")
    results[BOUND] = replay(record, clairvoyant(record, KeepRatio(keep)))
    if any(policy.prefill is not None and policy.decode is None for policy in policies.values()):
        results[BOUND_ONCE] = replay(record, clairvoyant(record, KeepRatio(keep), decode=False))
    return results


def _split(names: str) -> list[str]:
    """What stands between the commas that are not inside brackets or quotes; one more at the end is no harm."""
    parts, start, depth = [], 0, 0
    for found in QUOTED_OR_MARK.finditer(names):
        mark = found[0]
        depth += (mark in OPENING) - (mark in CLOSING)
        if mark == "," and not depth:
            parts.append(names[start : found.start()].strip())
            start = found.end()
    last = names[start:].strip()
    parts += [last] if last or not parts else []
    if depth or not all(parts):
        raise PolicyError(
            f"policies {names[:200]!r} are no list of policies. Hint: 'h2o, elastic_cache(last=8), my_module:MyScorer'."
        )
    return parts
