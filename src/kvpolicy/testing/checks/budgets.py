"""Budgets are integers and are met; what stays is the best."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ... import _engine
from ..._policy import Pipeline
from ..._protocols import Ahead, Bounded
from ...policies import full
from ...schedulers import FixedRows
from .._drivers import Chosen, hosted
from .._drivers.planned import table_outcome
from .._law import MERGERS, law
from .._numbers import Arr
from .._outcome import Place, compare, fail
from .._scene import Scene
from .._subject import Example, Subject
from ..tables import Table

__all__ = [
    "ahead_allocates",
    "budget_exact",
    "dominance",
    "idempotent",
    "limit_holds",
    "monotone_budget",
    "monotone_score",
    "noop_within_budget",
]


@law("Selector", "Allocator", "Policy", after=("budget_exact", "ahead_allocates"))
def noop_within_budget(subject: Subject, example: Example) -> None:
    """budget >= rows held implies that every row stays, bit for bit."""
    arrays = subject.arrays(example)
    if not isinstance(arrays, Scene):
        policy = subject.fresh()
        within = replace(
            policy, **{name: _with_rows(getattr(policy, name), arrays.tokens + 1) for name in ("prefill", "decode")}
        )
        got = {place: _vectors(record) for place, record in subject.run(arrays, within).items() if place.token >= 0}
        due = subject.run(arrays, replace(full(), count_bias=policy.count_bias, positions=policy.positions))
        compare(got, {place: _vectors(record) for place, record in due.items()}, what="a full cache")
        return
    most = max(int(layer.held.max()) for layer in arrays.layers)
    layers = tuple(replace(layer, quota=np.full_like(layer.quota, most)) for layer in arrays.layers)
    enough = replace(arrays, layers=layers)
    if subject.kind.name == "Allocator":
        enough = replace(arrays, budget=np.full_like(arrays.budget, arrays.tokens))
        for place, record in subject.run(enough).items():
            held = int(arrays.layers[place.layer].held[place.batch_row, place.head])
            if record["quota"] < held:
                fail(
                    place,
                    f"the quota is {record['quota']}, of a budget of {arrays.tokens}; the head holds {held} rows.",
                )
        return
    for place, record in subject.run(enough).items():
        if not record["kept"]:
            fail(place, f"the row leaves although the quota of {most} is enough for all.")


def _with_rows(pipeline: Pipeline | None, rows: int) -> Pipeline | None:
    return None if pipeline is None else replace(pipeline, schedule=FixedRows(rows))


def _vectors(record: Any) -> Any:
    return {name: record[name] for name in ("key", "value", "count")}


@law("Selector", *MERGERS, after=("budget_exact", "noop_within_budget", "merge_convex", "anchor_unchanged"))
def idempotent(subject: Subject, example: Example) -> None:
    """f(f(x)) = f(x): what was selected once is selected again; a merge of nothing changes nothing."""
    scene = subject.arrays(example)
    assert isinstance(scene, Scene)
    if subject.kind.name == "Selector":
        for number, chosen in enumerate(subject.selections(scene)):
            layer = scene.layers[number]
            left = replace(
                layer,
                positions=np.where(chosen.keep, layer.positions, -1),
                valid=chosen.keep,
                columns={n: replace(c, data=np.where(chosen.keep, c.data, 0)) for n, c in layer.columns.items()},
                registers=chosen.registers,
            )
            fewer = replace(scene, layers=(left,), queries=scene.queries[number : number + 1])
            for again in subject.selections(fewer):
                for b, h, n in np.argwhere(again.keep != chosen.keep).tolist():
                    fail(
                        chosen.place(b, h, n)._replace(layer=number),
                        "the row stays at first, and leaves the second time.",
                    )
        return
    everything = tuple(replace(layer, keep=layer.valid, quota=layer.held) for layer in scene.layers)
    nothing_leaves = replace(scene, layers=everything)
    for planned in subject.plans(nothing_leaves):
        if planned.when == 0:
            due = table_outcome(planned.view, scene.padding, 0)
            got = table_outcome(planned.after, scene.padding, 0)
            rows = {place: record for place, record in got.items() if place.token >= 0}
            compare(rows, due, what="the table before, from which nothing leaves")


@law("Selector", "Allocator", "Policy")
def budget_exact(subject: Subject, example: Example) -> None:
    """|keep| = min(held, max(quota, |protected|)) for every head; quotas sum to budget * heads over the layers."""
    arrays = subject.arrays(example)
    if subject.kind.name == "Allocator":
        assert isinstance(arrays, Scene)
        total: dict[int, int] = {}
        for place, record in subject.run(arrays).items():
            total[place.batch_row] = total.get(place.batch_row, 0) + int(record["quota"])
        heads = sum(layer.valid.shape[1] for layer in arrays.layers)
        for b, rows in total.items():
            if rows != arrays.budget[b] * heads:
                whole = f"{arrays.budget[b]} for each of {heads} heads are {arrays.budget[b] * heads}"
                fail(Place(batch_row=b), f"the quotas sum to {rows}; {whole}.")
        return
    for chosen in subject.selections(arrays):
        held, kept = chosen.valid.sum(-1), chosen.keep.sum(-1)
        due = np.minimum(held, np.maximum(chosen.quota, chosen.protected.sum(-1)))
        for b, h in np.argwhere(kept != due).tolist():
            quota = f"with a quota of {chosen.quota[b, h]} due are {due[b, h]}"
            fail(chosen.place(b, h), f"{kept[b, h]} of {held[b, h]} rows are kept; {quota}.")


@law("Selector", "Scheduler")
def monotone_budget(subject: Subject, example: Example) -> None:
    """k <= k' implies keep(k) ⊆ keep(k'); for a schedule, t <= t' tokens seen imply budget(t) <= budget(t')."""
    scene = subject.arrays(example)
    assert isinstance(scene, Scene)
    if subject.kind.name == "Scheduler":
        before, after = subject.run(scene), subject.run(_longer(example))
        for place, record in before.items():
            later = after.get(place)
            if later is not None and later["budget"] < record["budget"]:
                fail(place, f"the budget falls from {record['budget']} to {later['budget']} as a token more is seen.")
        return
    for chosen in subject.selections(scene):
        more = chosen.otherwise(chosen.scores, chosen.quota + 1)
        for b, h, n in np.argwhere(chosen.keep & ~more).tolist():
            quota = chosen.quota[b, h]
            fail(chosen.place(b, h, n), f"the row stays at a quota of {quota}, and leaves at {quota + 1}.")


def _longer(example: Example) -> Scene:
    assert isinstance(example, Table)
    return replace(example, tokens=example.tokens + 1).build()


@law("Selector", "Policy")
def dominance(subject: Subject, example: Example) -> None:
    """n kept, m not, score_n < score_m implies n protected: no row that leaves beats one that competes and stays.

    Protected is a row that stays even with a score of -inf. A ranking by argsort taken for ranks breaks this law.
    """
    for chosen in subject.selections(subject.arrays(example)):
        leaves = chosen.valid & ~chosen.keep
        best = np.where(leaves, chosen.scores, -np.inf).max(-1, keepdims=True, initial=-np.inf)
        beaten = chosen.keep & chosen.valid & (chosen.scores < best)
        for b, h, n in np.argwhere(beaten).tolist():
            scores = chosen.scores.copy()
            scores[b, h, n] = -np.inf
            if not chosen.otherwise(scores, chosen.quota)[b, h, n]:
                m = int(np.argmax(np.where(leaves[b, h], chosen.scores[b, h], -np.inf)))
                stays = f"the row stays with a score of {chosen.scores[b, h, n]:.6g}"
                other = f"token {chosen.place(b, h, m).token} leaves with {chosen.scores[b, h, m]:.6g}"
                fail(chosen.place(b, h, n), f"{stays}, and {other}.")


@law("Selector", "Policy", after=("budget_exact", "dominance"))
def monotone_score(subject: Subject, example: Example) -> None:
    """n kept stays with score_n = +inf, and m that left still leaves with score_m = -inf: higher scores are better."""
    for chosen in subject.selections(subject.arrays(example)):
        stays, leaves = chosen.keep & chosen.valid & ~chosen.protected, chosen.valid & ~chosen.keep
        # Of each head the row for which it is least likely: the worst that stays, the best that leaves.
        _must_go_on(chosen, stays, np.where(stays, chosen.scores, np.inf).argmin(-1), np.inf)
        _must_go_on(chosen, leaves, np.where(leaves, chosen.scores, -np.inf).argmax(-1), -np.inf)


def _must_go_on(chosen: Chosen, rows: Arr, slots: Arr, score: float) -> None:
    """Whether the row in this slot of each head, where it is one of these, does as it did with this score."""
    changed = [(b, h, int(slots[b, h])) for b, h in np.ndindex(*slots.shape) if rows[b, h, slots[b, h]]]
    scores = chosen.scores.copy()
    for at in changed:
        scores[at] = score
    now = chosen.otherwise(scores, chosen.quota)
    for at in changed:
        if now[at] != chosen.keep[at]:
            did, does = ("stays", "leaves") if chosen.keep[at] else ("leaves", "stays")
            fail(chosen.place(*at), f"the row {did} with a score of {chosen.scores[at]:.6g}, and {does} with {score}.")


def _not_ahead(subject: Subject) -> str | None:
    return None if isinstance(subject.component, Ahead) else "it does not allocate ahead"


@law("Allocator", after=("budget_exact",), unless=_not_ahead)
def ahead_allocates(subject: Subject, example: Example) -> None:
    """ahead(budget, l, L, H) = allocate(budget, layers)_l: one layer by itself gets what it gets among all."""
    scene = subject.arrays(example)
    assert isinstance(scene, Scene)
    component, staged = subject.fresh(), scene.on(subject.ops, subject.device)
    together = _engine.allocate(hosted(allocate=component), staged.budget, staged.scored, staged.steps[-1])
    for number, (due, entry) in enumerate(zip(together, staged.scored, strict=True)):
        quota = _engine.ahead(component, staged.budget, entry.view, staged.steps[-1])
        for b, h in np.argwhere(quota != due).tolist():
            fail(
                Place(layer=number, batch_row=b, head=h),
                f"the quota is {quota[b, h]} ahead, and {due[b, h]} among all layers.",
            )


def _unbounded(subject: Subject) -> str | None:
    return None if isinstance(subject.component, Bounded) else "it names no limit"


@law("Scheduler", unless=_unbounded)
def limit_holds(subject: Subject, example: Example) -> None:
    """budget(t) <= limit for every t: a store that allocates once never has to grow."""
    assert isinstance(example, Table)
    component = subject.fresh()
    limits = [component.limit(step) for step in example.build().on(subject.ops, subject.device).steps]
    for tokens in range(example.tokens, example.tokens + 4):
        for step in replace(example, tokens=tokens).build().on(subject.ops, subject.device).steps:
            budget = _engine.budget_of(hosted(schedule=component), step)
            if budget is not None and budget.max() > limits[0]:
                place = Place(batch_row=int(budget.argmax()))
                fail(place, f"the budget is {budget.max()} after {tokens} tokens; the limit was {limits[0]}.")
