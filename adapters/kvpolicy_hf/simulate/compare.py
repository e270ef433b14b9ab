"""Several policies over one record, and the clairvoyant beside them."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from typing import TypeAlias

from kvpolicy import KeepRatio, KVPolicyError, Policy, PolicyError, catalogue, from_text

from .clairvoyant import clairvoyant
from .record import Record
from .replay import Replay, replay

__all__ = ["BOUNDS", "Results", "choose", "compare"]

BOUNDS = BOUND, BOUND_ONCE = ("clairvoyant", "clairvoyant, prompt only")

Results: TypeAlias = Mapping[str, Replay | KVPolicyError]  # by policy; an error where it cannot be replayed


def choose(names: str | None, keep: float) -> dict[str, Policy]:
    """The policies of a list such as ``"h2o, elastic_cache(last=8, rows=64)"`` at this budget.

    Args:
        names: recipes or calls of them, between commas; None: every recipe that needs no more than a budget.
        keep: the budget of those that name none.

    Raises:
        PolicyError: for a name that is no recipe, arguments that it refuses, or a budget out of range.
    """
    KeepRatio(keep)  # out of range it is refused, also where every name has a budget of its own
    if names is None:
        return dict(catalogue(keep=keep))
    return {part: from_text(part, keep=keep) for part in _split(names)}


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
    """What stands between the commas that are not inside brackets."""
    text = f"[{names}]"
    try:
        node = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two: brackets without end
        node = None
    if not isinstance(node, ast.List) or not node.elts:
        raise PolicyError(
            f"policies {names[:200]!r} are no list of recipes or calls of them. Hint: 'h2o, elastic_cache(last=8)'."
        )
    return [ast.get_source_segment(text, part) or "" for part in node.elts]
