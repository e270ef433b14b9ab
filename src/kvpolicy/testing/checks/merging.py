"""What a merge must be to be called one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..._types import CacheView
from .._drivers import Planned
from .._drivers.planned import handed, handed_plan, in_numpy
from .._law import MERGERS, PLANNERS, law
from .._numbers import Arr
from .._outcome import Place, compare, fail
from .._scene import Scene
from .._subject import Example, Subject

__all__ = ["anchor_unchanged", "merge_convex", "merge_linear", "merge_mass"]

_CLOSE = 1e-5  # weights may be float32


@law(*PLANNERS)
def merge_convex(subject: Subject, example: Example) -> None:
    """own_n >= 0, w_sn >= 0, own_n + sum_s w_sn = 1, and no scale: a kept row becomes a mean, inside the hull.

    A merger that adds values, or scales what it merged, is none: say so in its docstring, and expect this failure.
    """
    for planned in subject.plans(subject.arrays(example)):
        plan = planned.plan
        if plan.into is None:
            continue
        weight, own = _weights(planned)
        total = own + _summed(planned, weight)
        for b, h, n in np.argwhere(plan.keep).tolist():
            here = planned.place(b, h, n)
            mine = weight[b, h][plan.into[b, h] == n]
            if own[b, h, n] < -_CLOSE or np.any(mine < -_CLOSE):
                fail(here, f"weights {_list(mine)} and {own[b, h, n]:.6g} for the row itself: one is negative.")
            if abs(total[b, h, n] - 1) > _CLOSE:
                fail(
                    here,
                    f"weights {_list(mine)} and {own[b, h, n]:.6g} for the row itself sum to {total[b, h, n]:.6g}.",
                )
            for name in ("key_scale", "value_scale"):
                scale = getattr(plan, name)
                if scale is not None and abs(scale[b, h, n] - 1) > _CLOSE:
                    fail(here, f"the merged row is multiplied by {name} = {scale[b, h, n]:.6g}.")


@law(*PLANNERS, "Backend")
def merge_mass(subject: Subject, example: Example) -> None:
    """sum of count after = sum of count before - count of the rows dropped: no token is lost or counted twice."""
    arrays = subject.arrays(example)
    if subject.kind.name == "Backend":
        return _mass_of_verbs(subject, arrays)
    for planned in subject.plans(arrays):
        plan, view = planned.plan, planned.view
        folds = np.zeros_like(view.valid) if plan.into is None else (plan.into >= 0).any(-1)
        stays = np.where(view.valid & (plan.keep | folds), view.columns["count"].data, 0.0).sum(-1)
        after = _carried_out(subject, planned)
        found = np.where(after.valid, after.columns["count"].data, 0.0).sum(-1)
        for b, h in np.argwhere(np.abs(found - stays) > 1e-3).tolist():
            fail(planned.place(b, h), f"the rows stand for {found[b, h]:.6g} tokens; they took in {stays[b, h]:.6g}.")
    if subject.kind.name == "Policy":
        _mass_of_request(subject, arrays)
    return None


def _mass_of_verbs(subject: Subject, arrays: Any) -> None:
    out = subject.run(arrays)
    for number, layer in enumerate(arrays.layers):
        for b, h in np.ndindex(*layer.valid.shape[:2]):
            due = float(layer.columns["count"].data[b, h].sum()) if layer.keep[b, h].any() else 0.0
            rows = [r for p, r in out.items() if p.when == 1 and (p.layer, p.batch_row, p.head) == (number, b, h)]
            found = sum(float(row["count"]) for row in rows if "count" in row)
            if abs(found - due) > 1e-3:
                fail(Place(1, number, b, h), f"the rows stand for {found:.6g} tokens; they took in {due:.6g}.")


def _mass_of_request(subject: Subject, arrays: Any) -> None:
    """The tables as they really are: tokens seen, less what plans dropped."""
    if any(p is not None and p.recall is not None for p in (subject.component.prefill, subject.component.decode)):
        return  # what comes back from an archive has been dropped, and not lost
    dropped: dict[tuple[int, int, int], float] = {}

    def watch(planned: Planned) -> None:
        plan, view = planned.plan, planned.view
        folds = np.zeros_like(view.valid) if plan.into is None else (plan.into >= 0).any(-1)
        gone = np.where(view.valid & ~plan.keep & ~folds, view.columns["count"].data, 0.0).sum(-1)
        for b, h in np.ndindex(*gone.shape):
            at = (view.layer, b, h)
            dropped[at] = dropped.get(at, 0.0) + float(gone[b, h])

    out = subject.run(arrays, watch=watch)
    last = max(place.when for place in out)
    found: dict[tuple[int, int, int], float] = {}
    for place, record in out.items():
        if place.when == last and place.token >= 0:
            at = (place.layer, place.batch_row, place.head)
            found[at] = found.get(at, 0.0) + float(record["count"])
    for at, count in found.items():
        due = arrays.tokens - int(arrays.padding[at[1]]) - dropped.get(at, 0.0)
        if abs(count - due) > 1e-3:
            fail(Place(last, *at), f"the rows stand for {count:.6g} tokens; seen and not dropped were {due:.6g}.")


@law(*MERGERS)
def merge_linear(subject: Subject, example: Example) -> None:
    """M(V + W) = M(V) + M(W) for the same keys and scores: weights do not depend on the values that they weigh."""
    scene = subject.arrays(example)
    assert isinstance(scene, Scene)
    rng = np.random.default_rng([example.seed, 3])
    other = [np.asarray(rng.standard_normal(layer.values.shape)) for layer in scene.layers]
    one = subject.run(scene)
    two = subject.run(_with_values(scene, other))
    both = subject.run(_with_values(scene, [a.values + b for a, b in zip(scene.layers, other, strict=True)]))
    due = {
        place: {**record, "value": record["value"] + two[place]["value"]}
        for place, record in one.items()
        if "value" in record and place in two
    }
    got = {place: record for place, record in both.items() if "value" in record}
    compare(got, due, what="the sum of the two merges", tolerance=1e-6)


@law(*PLANNERS, after=("merge_convex",))
def anchor_unchanged(subject: Subject, example: Example) -> None:
    """No s with into[s] = n implies K_n, V_n unchanged, bit for bit: a row that takes nothing in stays as it is."""
    for planned in subject.plans(subject.arrays(example)):
        view, plan = planned.view, planned.plan
        after = planned.after
        for b, h, n in np.argwhere(plan.keep).tolist():
            if plan.into is not None and (plan.into[b, h] == n).any():
                continue
            (slot,) = np.flatnonzero(after.positions[b, h] == view.positions[b, h, n])
            for name in ("keys", "values"):
                was, now = getattr(view, name)[b, h, n], getattr(after, name)[b, h, slot]
                if not np.array_equal(was, now):
                    fail(
                        planned.place(b, h, n),
                        f"nothing folds into it, and its {name} {_list(was)} become {_list(now)}.",
                    )


def _carried_out(subject: Subject, planned: Planned) -> CacheView:
    """By the backend under test, in numpy."""
    view = handed(planned.view, "float64", subject.ops, subject.device)
    rows = max(1, int(planned.plan.keep.sum(-1).max(initial=0)))
    return in_numpy(
        subject.ops.compact(view, handed_plan(planned.plan, subject.ops, subject.device), rows), subject.ops
    )


def _weights(planned: Planned) -> tuple[Arr, Arr]:
    plan = planned.plan
    assert plan.into is not None
    weight = np.where(plan.into >= 0, np.asarray(plan.weight, np.float64), 0.0)
    return weight, np.asarray(plan.self_weight, np.float64)


def _summed(planned: Planned, weight: Arr) -> Arr:
    into = planned.plan.into
    assert into is not None
    total = np.zeros(planned.view.shape)
    for b, h, s, m in np.argwhere(into >= 0).tolist():
        total[b, h, into[b, h, s, m]] += weight[b, h, s, m]
    return total


def _with_values(scene: Scene, values: list[Arr]) -> Scene:
    layers = tuple(replace(layer, values=data) for layer, data in zip(scene.layers, values, strict=True))
    return replace(scene, layers=layers, dtype="float64")


def _list(numbers: Arr) -> str:
    return "[" + ", ".join(f"{number:.6g}" for number in numbers.tolist()) + "]"
