"""A merger, an assigner and a weigher of a user's own, and what may go wrong with them."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any

from kvpolicy import Assignment, CacheView, Plan, Scored, Selection, Step, Weights

from ._mutant import BY_CHANCE, Mutant

__all__ = ["MUTANTS", "TWINS"]


@dataclass(frozen=True)
class IntoNearest:
    """Every row that leaves folds into the kept row that arrived nearest, which becomes the mean over tokens."""

    def merge(self, scored: Scored, selection: Selection, step: Step) -> Plan:
        into = self.into(scored.view, selection, step)
        weight, own = self.weights(scored.view, into, step)
        return Plan(keep=selection.keep, into=into[..., None], weight=weight[..., None], self_weight=own)

    def into(self, view: CacheView, selection: Selection, step: Step) -> Any:
        near = step.ops.nearest_position(view, selection.keep)
        return view.xp.where(self.leaves(view, selection), near, view.xp.full_like(near, -1))

    def leaves(self, view: CacheView, selection: Selection) -> Any:
        return view.valid & ~selection.keep

    def weights(self, view: CacheView, into: Any, step: Step) -> tuple[Any, Any]:
        xp, share = view.xp, self.share(view)
        total = self.total(view, share + summed(view, share, into, step))
        return share / xp.take_along_axis(total, xp.where(into >= 0, into, xp.zeros_like(into)), axis=-1), share / total

    def share(self, view: CacheView) -> Any:
        return view.xp.astype(view.column("count", needed_by="IntoNearest"), view.xp.float64)

    def total(self, view: CacheView, total: Any) -> Any:
        return view.xp.where(total > 0, total, view.xp.ones_like(total))


def summed(view: CacheView, data: Any, into: Any, step: Step) -> Any:
    """What folds into each row."""
    goes = view.xp.where(into >= 0, data, view.xp.zeros_like(data))
    return step.ops.segment_sum(goes[..., None], into[..., None])


class OneTooMany(IntoNearest):
    """Divides by one token more than there are: weights sum to less than one."""

    def total(self, view: CacheView, total: Any) -> Any:
        return total + 1


class SumOfValues(IntoNearest):
    """Rows are added up, not averaged."""

    def weights(self, view: CacheView, into: Any, step: Step) -> tuple[Any, Any]:
        ones = view.xp.ones_like(self.share(view))
        return ones, ones


class LongerKeys(IntoNearest):
    """Merged keys are made longer by a tenth, so that they are noticed."""

    def merge(self, scored: Scored, selection: Selection, step: Step) -> Plan:
        made = super().merge(scored, selection, step)
        return replace(made, key_scale=1.1 * scored.view.xp.ones_like(made.self_weight))


class Epsilon(IntoNearest):
    """A small number against division by zero moves rows that nothing folds into."""

    def total(self, view: CacheView, total: Any) -> Any:
        return total + 1e-7


class ByValueNorm(IntoNearest):
    """Rows weigh what their values are long."""

    def share(self, view: CacheView) -> Any:
        xp = view.xp
        values = xp.astype(view.values, xp.float64)
        length = xp.sqrt(xp.sum(values * values, axis=-1))
        return xp.where(view.valid, 0.1 + length, xp.zeros_like(length))


class ByKeyNorm(IntoNearest):
    """Rows weigh what their keys are long, and a row with keys of no length is divided by nothing."""

    def share(self, view: CacheView) -> Any:
        keys = view.xp.astype(view.keys, view.xp.float64)
        return view.xp.sqrt(view.xp.sum(keys * keys, axis=-1))

    def total(self, view: CacheView, total: Any) -> Any:
        return total


class SourcesShifted(IntoNearest):
    """Targets stand one slot behind their sources."""

    def into(self, view: CacheView, selection: Selection, step: Step) -> Any:
        return view.xp.roll(super().into(view, selection, step), 1, axis=-1)


class KeptFoldToo(IntoNearest):
    """Rows that stay fold as well: into themselves."""

    def leaves(self, view: CacheView, selection: Selection) -> Any:
        return view.valid


class IntoAnyNeighbour(IntoNearest):
    """The nearest other row, be it one that stays or not."""

    def into(self, view: CacheView, selection: Selection, step: Step) -> Any:
        xp, rank = view.xp, step.ops.arrival_rank(view)
        before = xp.argsort(rank, axis=-1, stable=True)
        slot = xp.take_along_axis(before, xp.clip(rank - 1, 0, view.shape[2] - 1), axis=-1)
        return xp.where(self.leaves(view, selection) & (rank > 0), slot, xp.full_like(slot, -1))


class PaddingFolds(IntoNearest):
    """All that does not stay folds, padding too."""

    def into(self, view: CacheView, selection: Selection, step: Step) -> Any:
        xp = view.xp
        any_kept = xp.argmax(xp.astype(selection.keep, xp.int64), axis=-1, keepdims=True)
        goes = ~selection.keep & xp.any(selection.keep, axis=-1, keepdims=True)
        return xp.where(goes, any_kept, xp.full_like(view.positions, -1))


class KeepsTheLatest(IntoNearest):
    """The latest row stays whatever was selected."""

    def merge(self, scored: Scored, selection: Selection, step: Step) -> Plan:
        view, xp = scored.view, scored.view.xp
        latest = xp.max(xp.where(view.valid, view.positions, xp.full_like(view.positions, -1)), axis=-1, keepdims=True)
        return super().merge(scored, Selection(selection.keep | (view.valid & (view.positions == latest))), step)


class NearestSlot(IntoNearest):
    """The nearest slot is taken for the nearest in the text."""

    def into(self, view: CacheView, selection: Selection, step: Step) -> Any:
        slots = view.xp.broadcast_to(view.xp.arange(view.shape[2], device=view.positions.device), view.shape)
        return super().into(replace(view, positions=slots), selection, step)


class EvenPositions(IntoNearest):
    """Only rows at even positions fold, and padding counts."""

    def leaves(self, view: CacheView, selection: Selection) -> Any:
        return super().leaves(view, selection) & (view.positions % 2 == 0)


class SquaresInCacheDtype(IntoNearest):
    """Rows weigh the squares of their keys, summed in the dtype of the cache: a long key weighs infinitely much."""

    def share(self, view: CacheView) -> Any:
        keys = 8 * view.keys
        return view.xp.astype(1 + view.xp.sum(keys * keys, axis=-1), view.xp.float64)


class SharedDice(IntoNearest):
    """Whether a head merges at all is decided by the generator that the whole process shares."""

    def leaves(self, view: CacheView, selection: Selection) -> Any:
        return super().leaves(view, selection) & (random.random() < 0.5)


class WritesKeep(IntoNearest):
    """Rows that stand for three tokens are selected on the way, in the mask that was given."""

    def merge(self, scored: Scored, selection: Selection, step: Step) -> Plan:
        keep = selection.keep
        keep |= scored.view.valid & (scored.view.columns["count"].data >= 3)
        return super().merge(scored, selection, step)


class MaskOfNumbers(IntoNearest):
    """Targets are float."""

    def into(self, view: CacheView, selection: Selection, step: Step) -> Any:
        return view.xp.astype(super().into(view, selection, step), view.xp.float64)

    def weights(self, view: CacheView, into: Any, step: Step) -> tuple[Any, Any]:
        return super().weights(view, view.xp.astype(into, view.xp.int64), step)


# Assigners ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gate:
    """Rows fold into the most similar kept row, if they reach their head's moving mean of similarities."""

    beta: float = 0.5

    def assign(self, scored: Scored, selection: Selection, step: Step) -> Assignment:
        view, xp = scored.view, scored.view.xp
        into, similarity = step.ops.most_similar(view, view.valid & ~selection.keep, selection.keep)
        similarity = xp.astype(similarity, xp.float64)
        goes = xp.astype(into >= 0, xp.float64)
        total, number = self.gathered(xp, xp.sum(similarity * goes, axis=-1), xp.sum(goes, axis=-1))
        mean = total / xp.where(number > 0, number, xp.ones_like(number))
        bar = self.moved(xp, view, mean, number)
        into = xp.where(similarity >= bar[..., None] - 1e-4, into, xp.full_like(into, -1))
        return Assignment(into[..., None], similarity[..., None], registers={"bar": bar})

    def gathered(self, xp: Any, total: Any, number: Any) -> tuple[Any, Any]:
        return total, number

    def moved(self, xp: Any, view: CacheView, mean: Any, number: Any) -> Any:
        before = view.registers.get("bar", xp.full_like(mean, xp.nan))
        moved = xp.where(xp.isnan(before), mean, self.beta * mean + (1 - self.beta) * before)
        return xp.where(number > 0, moved, before)


class GateOfAllHeads(Gate):
    """One mean for all heads of a layer."""

    def gathered(self, xp: Any, total: Any, number: Any) -> tuple[Any, Any]:
        return tuple(xp.broadcast_to(xp.sum(n, axis=1, keepdims=True), n.shape) for n in (total, number))


class GateOfTheBatch(Gate):
    """One mean for all rows of a batch."""

    def gathered(self, xp: Any, total: Any, number: Any) -> tuple[Any, Any]:
        return tuple(xp.broadcast_to(xp.sum(n, axis=0, keepdims=True), n.shape) for n in (total, number))


class GateOfNothing(Gate):
    """Where nothing folds yet, the mean of nothing, 0, is where it begins."""

    def moved(self, xp: Any, view: CacheView, mean: Any, number: Any) -> Any:
        before = view.registers.get("bar", mean)
        return xp.where(number > 0, self.beta * mean + (1 - self.beta) * before, before)


@dataclass
class GateOfItsOwn:
    """The moving mean is kept in the assigner, and goes on with the next request."""

    beta: float = 0.5
    _bars: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    def assign(self, scored: Scored, selection: Selection, step: Step) -> Assignment:
        key = (scored.view.layer, scored.view.shape[:2])
        known = {"bar": self._bars[key]} if key in self._bars else {}
        made = Gate(self.beta).assign(replace(scored, view=replace(scored.view, registers=known)), selection, step)
        self._bars[key] = made.registers["bar"]
        return made


# Weighers ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evenly:
    """All rows weigh the same."""

    def weigh(self, scored: Scored, selection: Selection, assignment: Assignment, step: Step) -> Weights:
        view, xp = scored.view, scored.view.xp
        goes = xp.astype(assignment.into >= 0, xp.float64)
        number = 1 + step.ops.segment_sum(goes, assignment.into)
        into = xp.where(assignment.into >= 0, assignment.into, xp.zeros_like(assignment.into))[..., 0]
        return self.made(view, (1 / xp.take_along_axis(number, into, axis=-1))[..., None], 1 / number)

    def made(self, view: CacheView, weight: Any, own: Any) -> Weights:
        return Weights(weight, own)


class NothingForTheKept(Evenly):
    """The row that stays keeps its whole weight, and the others come on top."""

    def made(self, view: CacheView, weight: Any, own: Any) -> Weights:
        return Weights(weight, view.xp.ones_like(own))


class NegativeWeights(Evenly):
    """Rows that fold are taken away from the row that stays, which makes up for it."""

    def made(self, view: CacheView, weight: Any, own: Any) -> Weights:
        return Weights(-weight, 2 - own)


class WeightOfTheRow(Evenly):
    """One weight a row, where it is one a target."""

    def made(self, view: CacheView, weight: Any, own: Any) -> Weights:
        return Weights(weight[..., 0], own)


TWINS = (IntoNearest(), Gate(), Evenly())
BOTH = ("numpy", "torch")
MUTANTS = (
    Mutant("weights-below-one", OneTooMany, law="merge_convex", backends=BOTH),
    Mutant("sum-of-values", SumOfValues, law="merge_convex"),
    Mutant("longer-keys", LongerKeys, law="merge_convex", backends=("numpy",)),
    Mutant("kept-row-keeps-its-weight", NothingForTheKept, law="merge_convex"),
    Mutant("negative-weights", NegativeWeights, law="merge_convex", backends=("numpy",)),
    Mutant("epsilon", Epsilon, law="anchor_unchanged", backends=("numpy",)),
    Mutant("weights-by-value-norm", ByValueNorm, law="merge_linear"),
    Mutant("weights-by-key-norm", ByKeyNorm, law="finite"),
    Mutant("sources-shifted", SourcesShifted, law="sources_evicted", backends=("numpy",), also=("no_padding",)),
    Mutant("kept-rows-fold-too", KeptFoldToo, law="sources_evicted"),
    Mutant("into-any-neighbour", IntoAnyNeighbour, law="sources_evicted"),
    Mutant("padding-folds", PaddingFolds, law="no_padding"),
    Mutant("keeps-the-latest", KeepsTheLatest, law="keeps_selected", backends=("numpy",)),
    Mutant("nearest-slot", NearestSlot, law="slot_equivariant"),
    Mutant("even-positions", EvenPositions, law="padding_invariant"),
    Mutant("weights-in-cache-dtype", SquaresInCacheDtype, law="dtype_stable", sizes={"vectors": "dominant"}),
    Mutant("merges-by-dice", SharedDice, law="deterministic", backends=("numpy",), also=BY_CHANCE),
    Mutant("writes-the-mask", WritesKeep, law="unmutated"),
    Mutant("targets-are-float", MaskOfNumbers, law="well_formed"),
    Mutant("weight-by-row", WeightOfTheRow, law="well_formed"),
    Mutant("gate-of-all-heads", GateOfAllHeads, law="head_independent", backends=BOTH),
    Mutant("gate-of-the-batch", GateOfTheBatch, law="batch_independent"),
    Mutant("gate-of-its-own", GateOfItsOwn, law="request_isolated", backends=("numpy",)),
)
