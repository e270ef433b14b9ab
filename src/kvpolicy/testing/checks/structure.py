"""The first laws: without them the others make no sense, and are not tried."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np

from ... import _engine
from ..._answers import check_total
from ..._errors import PlanError
from ..._plan import Plan, Selection
from ..._policy import Policy
from ..._protocols import Ahead, Backend, Bounded
from ...scorers._wrapped import observed_by
from .._drivers import hosted
from .._drivers.mergers import as_merger, selection_for
from .._law import ARRAYS, MERGERS, PLANNERS, STAGES, law
from .._numbers import Arr
from .._outcome import Place, fail
from .._scene import Scene, Staged
from .._subject import Example, Subject

__all__ = [
    "finite",
    "keeps_selected",
    "no_padding",
    "rows_unique",
    "sources_evicted",
    "unmutated",
    "well_formed",
    "within_quota",
]


# Sizes that differ, so that it can be seen which axis of a wrong shape is wrong.
_DIFFERENT = {"batch": 2, "heads": 3, "tokens": 5, "prompt": 5}


@law(*STAGES, "Policy", structural=True, shown=_DIFFERENT)
def well_formed(subject: Subject, example: Example) -> None:
    """The answer has the type, shape and dtype of its protocol: scores [B, H, S] floating, budgets >= 1, ...

    What the engine would refuse, or cannot carry out, is refused here with the same words.
    """
    component, arrays = subject.fresh(), subject.arrays(example)
    if not isinstance(arrays, Scene):
        subject.run(arrays, component)
        return
    staged = arrays.on(subject.ops, subject.device)
    _ASKED[subject.kind.name](component, staged)


def _ask_scorer(component: Any, staged: Staged) -> None:
    pipeline, layers = hosted(score=component), []
    for entry, step in zip(staged.scored, staged.steps, strict=True):
        columns = _engine.observe(Policy(prefill=pipeline, decode=pipeline), entry.view, step)
        layers.append(_engine.score(pipeline, entry.view.with_columns(columns), step, check=False))
    _engine.across(pipeline, layers, staged.steps[-1], check=False)


def _ask_scheduler(component: Any, staged: Staged) -> None:
    for step in staged.steps:
        _engine.budget_of(hosted(schedule=component), step)
        if isinstance(component, Bounded):
            limit: Any = component.limit(step)
            if isinstance(limit, bool) or not isinstance(limit, (int, np.integer)) or limit < 1:
                raise PlanError(f"{component!r}.limit() returned {limit!r}: it must be an integer >= 1.")


def _ask_allocator(component: Any, staged: Staged) -> None:
    pipeline = hosted(allocate=component)
    if component.whole_model:
        _engine.allocate(pipeline, staged.budget, staged.scored, staged.steps[-1])
        return
    handed, heads = np.zeros_like(staged.budget), 0
    for entry, step in zip(staged.scored, staged.steps, strict=True):
        if isinstance(component, Ahead):
            quota = _engine.ahead(component, staged.budget, entry.view, step)
        else:
            (quota,) = _engine.allocate(pipeline, staged.budget, [entry], step)
        handed, heads = handed + quota.sum(axis=1), heads + entry.view.shape[1]
    check_total(pipeline, handed, staged.budget * heads)


def _ask_selector(component: Any, staged: Staged) -> None:
    for entry, quota, step in zip(staged.scored, staged.quotas, staged.steps, strict=True):
        _engine.plan(hosted(select=component), entry, quota, step, check=False)


def _ask_merger(component: Any, staged: Staged) -> None:
    merger = as_merger(component)
    for number, (entry, step) in enumerate(zip(staged.scored, staged.steps, strict=True)):
        selection = selection_for(merger, entry, staged.keep[number], staged.quotas[number], step)
        pipeline = hosted(select=_Given(selection), merge=merger)
        _engine.plan(pipeline, entry, staged.quotas[number], step, check=False)


def _ask_recaller(component: Any, staged: Staged) -> None:
    for entry, step in zip(staged.scored, staged.steps, strict=True):
        view, scorer = entry.view, getattr(component, "score", None)
        if scorer is not None:
            observes = hosted(score=scorer)
            view = view.with_columns(_engine.observe(Policy(prefill=observes, decode=observes), view, step))
        _engine.recall(component, view, step)


_ASKED = {
    "ImportanceScorer": _ask_scorer,
    "Scheduler": _ask_scheduler,
    "Allocator": _ask_allocator,
    "Selector": _ask_selector,
    **dict.fromkeys(MERGERS, _ask_merger),
    "Recaller": _ask_recaller,
}


class _Given:
    """A selector whose selection was made elsewhere."""

    gives_groups = True

    def __init__(self, selection: Selection) -> None:
        self._selection = selection

    def select(self, scored: Any, quota: Any, step: Any, /) -> Selection:
        return self._selection


@law(*STAGES, "Backend", structural=True, effort=0.6)
def unmutated(subject: Subject, example: Example) -> None:
    """What a stage is given is the same, bit for bit, after it has run."""
    scene = subject.arrays(example)
    assert isinstance(scene, Scene)
    watched = _Watched(scene)
    with suppress(PlanError):  # what cannot be carried out is for the laws behind to tell
        subject.run(watched)  # type: ignore[arg-type]
    for staged, before in watched.given:
        for (place, name, data), (_, _, known) in zip(_inputs(staged), before, strict=True):
            now = _host(data, subject.ops)
            changed = np.argwhere(~_same(now, known))
            if len(changed):
                b, *more = (int(i) for i in changed[0])
                where = place._replace(batch_row=b, head=more[0] if more else -1)
                at = tuple(changed[0])
                fail(where, f"{name}{list(map(int, at))} was {known[at]} and is {now[at]}; a stage only reads.")


class _Watched:
    """A scene that remembers what it handed out."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self.given: list[tuple[Staged, list[tuple[Place, str, Arr]]]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scene, name)

    def on(self, ops: Any, device: str | None = None, **options: Any) -> Staged:
        staged = self._scene.on(ops, device, **options)
        copies = [(place, name, np.array(_host(data, ops))) for place, name, data in _inputs(staged)]
        self.given.append((staged, copies))
        return staged


def _host(data: Any, ops: Backend) -> Arr:
    return data if isinstance(data, np.ndarray) else ops.host(data)


def _inputs(staged: Staged) -> list[tuple[Place, str, Any]]:
    found: list[tuple[Place, str, Any]] = []
    for number, (entry, step) in enumerate(zip(staged.scored, staged.steps, strict=True)):
        view, place = entry.view, Place(layer=number)
        named = {name: getattr(view, name) for name in ("keys", "values", "positions", "valid")}
        named |= {f"column {name!r}": column.data for name, column in view.columns.items()}
        named |= {"scores": entry.scores, "keep": staged.keep[number], "quota": staged.quotas[number]}
        named |= {name: getattr(step, name) for name in ("queries", "query_positions", "query_valid", "seen")}
        found.extend((place, name, data) for name, data in named.items())
    return found


def _same(one: Arr, other: Arr) -> Arr:
    same: Arr = one == other
    return same | (np.isnan(one) & np.isnan(other)) if one.dtype.kind == "f" else same


@law(*MERGERS, structural=True)
def keeps_selected(subject: Subject, example: Example) -> None:
    """plan.keep = selection.keep: a merger decides what becomes of the rows that leave, not which."""
    scene = subject.arrays(example)
    assert isinstance(scene, Scene)
    merger = as_merger(subject.fresh())
    staged = scene.on(subject.ops, subject.device, count_bias=bool(getattr(merger, "needs_count_bias", False)))
    for number, (entry, step) in enumerate(zip(staged.scored, staged.steps, strict=True)):
        selection = selection_for(merger, entry, staged.keep[number], staged.quotas[number], step)
        made: Plan = merger.merge(entry, selection, step)
        keep, due = subject.ops.host(made.keep), subject.ops.host(selection.keep)
        for b, h, n in np.argwhere(keep != due).tolist():
            token = int(scene.layers[number].positions[b, h, n] - scene.padding[b])
            was = "selected and the plan drops it" if due[b, h, n] else "not selected and the plan keeps it"
            fail(Place(-1, number, b, h, token), f"slot {n} was {was}.")


@law("Policy", "Backend", structural=True)
def rows_unique(subject: Subject, example: Example) -> None:
    """Each head holds a token at most once, and only tokens that have arrived: {p_n} distinct, 0 <= p_n < seen."""
    arrays = subject.arrays(example)
    if isinstance(arrays, Scene):
        keep = [layer.keep for layer in arrays.layers]
        due = {
            Place(1, number, b, h, int(layer.positions[b, h, n] - arrays.padding[b]))
            for number, layer in enumerate(arrays.layers)
            for b, h, n in np.argwhere(keep[number]).tolist()
        }
        found = {place for place in subject.run(arrays) if place.when == 1 and place.token >= 0}
        for place in sorted(due ^ found):
            fail(place, "compact() " + ("loses this row." if place in due else "makes up this row."))
        return
    tables: list[Any] = []
    subject.run(arrays, watch=tables.append)
    for planned in tables:
        positions = np.where(planned.view.valid, planned.view.positions, -1)
        for b, h in np.ndindex(*positions.shape[:2]):
            there = positions[b, h][positions[b, h] >= 0]
            values, counts = np.unique(there, return_counts=True)
            if np.any(counts > 1):
                token = int(values[counts > 1][0] - arrays.padding[b])
                fail(planned.place(b, h)._replace(token=token), "this token has two rows.")


@law("Selector", *MERGERS, "Recaller", "Policy", structural=True)
def no_padding(subject: Subject, example: Example) -> None:
    """keep ⊆ valid: no padding and no empty slot is kept, folded or recalled."""
    arrays = subject.arrays(example)
    if subject.kind.name == "Recaller":
        return _no_padding_back(subject, arrays)
    if subject.kind.name in ("Selector", "Policy"):
        for chosen in subject.selections(arrays):
            for b, h, n in np.argwhere(chosen.keep & ~chosen.valid).tolist():
                fail(chosen.place(b, h), f"slot {n} is kept; it is {_kind(chosen.positions[b, h, n])}.")
    if subject.kind.name != "Selector":
        for planned in subject.plans(arrays):
            into = planned.plan.into
            folds = np.zeros_like(planned.view.valid) if into is None else (into >= 0).any(-1)
            for b, h, n in np.argwhere((planned.plan.keep | folds) & ~planned.view.valid).tolist():
                what = _kind(planned.view.positions[b, h, n])
                fail(planned.place(b, h), f"slot {n} is {'folded' if folds[b, h, n] else 'kept'}; it is {what}.")
    return None


def _no_padding_back(subject: Subject, arrays: Any) -> None:
    staged, component = arrays.on(subject.ops, subject.device), subject.fresh()
    for number, (entry, step) in enumerate(zip(staged.scored, staged.steps, strict=True)):
        view = entry.view.with_columns(observed_by(getattr(component, "score", None), entry.view, step))
        mask = subject.ops.host(component.recall(view, step))
        for b, h, n in np.argwhere(mask & ~arrays.layers[number].valid).tolist():
            fail(
                Place(-1, number, b, h),
                f"slot {n} is recalled; it is {_kind(arrays.layers[number].positions[b, h, n])}.",
            )


def _kind(position: int) -> str:
    return "padding" if position >= 0 else "an empty slot"


@law(*PLANNERS, structural=True)
def sources_evicted(subject: Subject, example: Example) -> None:
    """into[s] = n implies that s is valid and leaves, and that n stays: nothing folds twice, or into nothing."""
    for planned in subject.plans(subject.arrays(example)):
        plan, view = planned.plan, planned.view
        if plan.into is None:
            continue
        rows = view.shape[2]
        for b, h, s, m in np.argwhere(plan.into >= 0).tolist():
            n = int(plan.into[b, h, s, m])
            if plan.keep[b, h, s]:
                fail(planned.place(b, h, s), f"the row stays, and is also folded into slot {n}.")
            if not view.valid[b, h, s]:
                fail(planned.place(b, h), f"slot {s} is {_kind(view.positions[b, h, s])}, and is folded.")
            if n >= rows or not plan.keep[b, h, n]:
                fail(planned.place(b, h, s), f"the row is folded into slot {n}, which does not stay.")


@law("Selector", "Policy", structural=True)
def within_quota(subject: Subject, example: Example) -> None:
    """|keep| <= max(quota, |protected|), where protected rows are those that stay even at a quota of 0."""
    for chosen in subject.selections(subject.arrays(example)):
        most = np.maximum(chosen.quota, chosen.protected.sum(-1))
        kept = chosen.keep.sum(-1)
        for b, h in np.argwhere(kept > most).tolist():
            fail(chosen.place(b, h), f"{kept[b, h]} rows are kept; the quota is {chosen.quota[b, h]}.")


@law(*ARRAYS, "Policy", structural=True)
def finite(subject: Subject, example: Example) -> None:
    """Finite keys, values and queries give numbers: no NaN anywhere, no infinite key, value, weight or column."""
    for place, record in subject.run(subject.arrays(example)).items():
        for name, data in record.items() if place.token >= 0 else ():  # a register may be NaN as long as it is not set
            numbers = np.asarray(data, np.float64)
            if np.isnan(numbers).any():
                hint = " Hint: -inf marks a row as worthless, NaN means nothing." if name == "score" else ""
                fail(place, f"{name} is NaN.{hint}")
            if name != "score" and not np.isfinite(numbers).all():
                fail(place, f"{name} is infinite.")
