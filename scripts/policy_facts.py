"""What a recipe does and needs, found out by running it on a small request, for `scripts.policy_pages`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvpolicy import (
    IMAGE,
    TEXT,
    KVPolicyError,
    MissingColumnError,
    Pass,
    Phase,
    Plan,
    Policy,
    PolicyError,
    Session,
    backend_by_name,
)
from kvpolicy._forecast import check_foreseeable
from kvpolicy._tentative import check_layerwise
from kvpolicy.cli._recipes import Recipe

__all__ = ["facts"]

LAYERS, HEADS, TOKENS, DIM = 3, 3, 120, 4
IMAGES = slice(10, 100)
KEEP = 0.4
TABLE = {"table": ((3.0, 2.0, 1.0),) * LAYERS}


def facts(recipe: Recipe) -> Mapping[str, str]:
    """Label and answer, in the order of the page."""
    more = {name: value for name, value in TABLE.items() if name in recipe.example_arguments}
    budgeted = "keep" in recipe.example_arguments
    policy = recipe.function(**({"keep": KEEP} if budgeted else {}), **more)
    seen = _run(policy)
    found = {
        "acts on": _when(policy),
        "which rows stay": seen.which(),
        "how many": seen.how_many(),
        "what leaves": _fate(policy),
        "needs": _needs(policy, more),
    }
    if budgeted:
        found["smallest `rows=`"] = str(_smallest(lambda rows: recipe.function(rows=rows, **more)))
    found["assisted decoding"] = _served(lambda: check_layerwise(policy), "exact", "[refused](../generation.md)")
    found["compiled decoding"] = _served(
        lambda: check_foreseeable(policy.decode), "yes", "[no](../mechanism.md#decoding-in-place)"
    )
    return found


@dataclass(frozen=True)
class Seen:
    """The plans for the prompt, a layer each."""

    plans: list[Plan]

    def which(self) -> str:
        """Whether heads, or layers, agree."""
        if not self.plans:
            return "all"
        keeps = [plan.keep[0] for plan in self.plans]
        if not all((keep == keep[:1]).all() for keep in keeps):
            return "each head has its own"
        if not all((keep == keeps[0]).all() for keep in keeps):
            return "one set for all heads of a layer"
        return "one set for the model"

    def how_many(self) -> str:
        """Whether heads, or layers, have the same number."""
        if not self.plans:
            return "all"
        counts = np.array([plan.keep[0].sum(-1) for plan in self.plans])  # [layers, heads]
        if (counts != counts[:, :1]).any():
            return "heads differ: they are ragged"
        return "layers differ" if (counts != counts[:1]).any() else "as many in every layer and head"


def _run(policy: Policy, segment: bool = True, rotary: bool = True) -> Seen:
    """The plans of a prompt of random numbers, most of it image."""
    rng, plans = np.random.default_rng(0), []

    def listen(_layer: int, _view: Any, plan: Plan, step: Any) -> None:
        assert step.phase is Phase.PREFILL
        plans.append(plan)

    session = Session(
        policy,
        backend_by_name("numpy"),
        num_layers=LAYERS,
        listen=listen,
        rotate=(lambda vectors, _by: vectors) if rotary else None,
    )
    kinds = np.full((1, TOKENS), TEXT)
    kinds[:, IMAGES] = IMAGE
    now = Pass(
        start=0,
        positions=np.arange(TOKENS)[None],
        valid=np.ones((1, TOKENS), dtype=bool),
        tokens=np.array([TOKENS]),
        columns={"segment": kinds} if segment else {},
    )
    for layer in range(LAYERS):
        scale = 3.0 ** (1 + layer)  # later layers look at fewer rows
        keys, values, queries = rng.standard_normal((3, 1, HEADS, TOKENS, DIM))
        keys[:, 0] /= 4  # and so do later heads
        session.append(layer, keys=keys, values=values, now=now)
        session.advance(layer, queries=queries, scale=scale / DIM, now=now)
    return Seen(plans)


def _when(policy: Policy) -> str:
    if policy.prefill is None:
        return "nothing"
    return "the prompt; generated rows all stay" if policy.decode is None else "the prompt, and every generated token"


def _fate(policy: Policy) -> str:
    if policy.prefill is None:
        return "nothing leaves"
    if policy.prefill.recall is not None:
        return "goes to an archive in host memory, from where it can return"
    merges = [repr(pipeline.merge) != "Drop()" for pipeline in (policy.prefill, policy.decode) if pipeline is not None]
    if not any(merges):
        return "is dropped"
    return "is merged" if all(merges) else "is merged in the prompt, and dropped while decoding"


def _needs(policy: Policy, more: Mapping[str, Any]) -> str:
    needs = ["a table of the model's heads"] if more else []
    try:
        _run(policy, segment=False)
    except MissingColumnError:
        needs.append("to know which tokens are image: `inputs=`")
    try:
        _run(policy, rotary=False)
    except KVPolicyError:
        needs.append("plain rotary positions")
    if policy.count_bias:
        needs.append("counts in the attention, which it switches on")
    return "; ".join(needs) or "nothing more than the table"


def _smallest(make: Callable[[int], Policy]) -> int:
    """The smallest number of rows that is not refused."""
    for rows in range(1, 1000):
        try:
            make(rows)
        except PolicyError:
            continue
        return rows
    raise AssertionError("no number of rows is accepted")


def _served(check: Callable[[], None], yes: str, no: str) -> str:
    try:
        check()
    except KVPolicyError as error:
        return f"{no}: {_reason(str(error))}"
    return yes


def _reason(message: str) -> str:
    """The stage that an error names, without its arguments, and what it does."""
    found = re.match(r"Policy\(\w+=\.\.\.\): (?:\w+=)?(\w+)\(.*\) (.+?),", message)
    assert found is not None, message
    return f"`{found[1]}` {found[2]}"
