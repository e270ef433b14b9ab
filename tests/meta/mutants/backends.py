"""A backend of a user's own, torch with attention in one piece, and what may go wrong with it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from kvpolicy import BackendUnavailableError, CacheView, Column, Plan, Step
from kvpolicy.backends.torch import TorchBackend

from ._mutant import Mutant

__all__ = ["MUTANTS", "TWINS"]


@dataclass(frozen=True)
class Dense(TorchBackend):
    """Attention in one piece; the rest is the torch backend's."""

    def attention_mass(
        self,
        view: CacheView,
        step: Step,
        /,
        *,
        weights: Tensor | None = None,
        group: str = "mean",
        above: float | None = None,
    ) -> Tensor:
        (batch, heads, _), dtype = view.shape, self.wide(step)
        asked = step.queries.to(dtype).reshape(batch, heads, -1, *step.queries.shape[2:])
        logits = self.capped(self.scale(step) * (asked @ view.keys.to(dtype)[:, :, None].mT), step)
        if step.count_bias:
            logits = logits + view.columns["count"].data.to(dtype).clamp(min=1e-30).log()[:, :, None, None]
        hidden = self.hidden(view, step)[:, :, None]
        logits = logits.masked_fill(hidden, -torch.inf)
        shares = self.shares(logits, hidden) * self.taken(logits, step)
        if above is not None:
            shares = (shares >= above * shares.amax(-1, keepdim=True)).to(dtype).masked_fill(hidden, 0.0)
        counted = self.counted(step).to(dtype) * (1 if weights is None else weights.to(dtype))
        return self.grouped((shares * counted[:, None, None, :, None]).sum(-2), group)

    def capped(self, logits: Tensor, step: Step) -> Tensor:
        return logits if step.softcap is None else step.softcap * torch.tanh(logits / step.softcap)

    def taken(self, logits: Tensor, step: Step) -> Tensor | float:
        """The share that sinks leave to the rows."""
        if step.sinks is None:
            return 1.0
        sinks = step.sinks.to(logits.dtype).reshape(1, logits.shape[1], -1, 1, 1)
        return torch.sigmoid(logits.logsumexp(-1, keepdim=True) - sinks)

    def wide(self, step: Step) -> torch.dtype:
        return torch.float64 if step.queries.dtype == torch.float64 else torch.float32

    def scale(self, step: Step) -> float:
        return step.scale

    def hidden(self, view: CacheView, step: Step) -> Tensor:
        return (view.positions[:, :, None] > step.asked.sees[:, None, :, None]) | ~view.valid[:, :, None]

    def shares(self, logits: Tensor, hidden: Tensor) -> Tensor:
        return torch.softmax(logits, dim=-1).masked_fill(hidden, 0.0)

    def counted(self, step: Step) -> Tensor:
        return step.query_valid

    def grouped(self, mass: Tensor, group: str) -> Tensor:
        return mass.mean(2) if group == "mean" else mass.amax(2)


# Attention ---------------------------------------------------------------------------------------------------------


class MeanForMax(Dense):
    """Query heads that share keys are averaged, whatever was asked for."""

    def grouped(self, mass: Tensor, group: str) -> Tensor:
        return mass.mean(2)


class MeanOfAllHeads(Dense):
    """The mean goes over all heads of a layer."""

    def grouped(self, mass: Tensor, group: str) -> Tensor:
        return super().grouped(mass, group).mean(1, keepdim=True).expand(mass.shape[0], mass.shape[1], mass.shape[3])


class NotItself(Dense):
    """``>=`` for ``>``: no token sees itself."""

    def hidden(self, view: CacheView, step: Step) -> Tensor:
        return (view.positions[:, :, None] >= step.asked.sees[:, None, :, None]) | ~view.valid[:, :, None]


class SeesTheNext(Dense):
    """Every token sees the one after it too."""

    def hidden(self, view: CacheView, step: Step) -> Tensor:
        return (view.positions[:, :, None] > step.asked.sees[:, None, :, None] + 1) | ~view.valid[:, :, None]


class SeesPadding(Dense):
    """Padding is attended to."""

    def hidden(self, view: CacheView, step: Step) -> Tensor:
        return view.positions[:, :, None] > step.asked.sees[:, None, :, None]


class CausalBySlot(Dense):
    """Rows are hidden by their slot, as if they lay in the order of the text."""

    def hidden(self, view: CacheView, step: Step) -> Tensor:
        behind = torch.arange(view.shape[2]) - (view.shape[2] - step.queries.shape[2])
        return (behind > torch.arange(step.queries.shape[2])[:, None]) | ~view.valid[:, :, None]


class CapIgnored(Dense):
    """Logits are those of the products, whatever the model caps them at."""

    def capped(self, logits: Tensor, step: Step) -> Tensor:
        return logits


class SinksIgnored(Dense):
    """Every softmax is over rows alone."""

    def taken(self, logits: Tensor, step: Step) -> Tensor | float:
        return 1.0


class ReachIgnored(Dense):
    """No token sees later ones, also where the model lets it."""

    def attention_mass(self, view: CacheView, step: Step, /, **options: Any) -> Tensor:
        return super().attention_mass(view, replace(step, query_reach=None), **options)


class NoScale(Dense):
    """Scales by the root of the key dim, whatever the model did."""

    def scale(self, step: Step) -> float:
        return 1.0


class NotSilent(Dense):
    """A query that sees nothing pays nothing divided by nothing."""

    def shares(self, logits: Tensor, hidden: Tensor) -> Tensor:
        return torch.softmax(logits, dim=-1)


class PaddingAsks(Dense):
    """Queries on padding count, and padding may see what lies to its left: a turn's padding the turn before."""

    def counted(self, step: Step) -> Tensor:
        return torch.ones_like(step.query_valid)

    def hidden(self, view: CacheView, step: Step) -> Tensor:
        causal = super().hidden(view, step)
        return causal & step.query_valid[:, None, :, None] | ~view.valid[:, :, None]


class FirstRowsPadding(Dense):
    """What is padding in the first row of a batch counts as padding in all."""

    def counted(self, step: Step) -> Tensor:
        return step.query_valid[:1].expand_as(step.query_valid)


class InCacheDtype(Dense):
    """Attention is summed in the dtype of the cache."""

    def wide(self, step: Step) -> torch.dtype:
        return step.queries.dtype


class NotStable(Dense):
    """A softmax without taking the largest logit off first."""

    def shares(self, logits: Tensor, hidden: Tensor) -> Tensor:
        powers = logits.exp()
        return powers / powers.sum(-1, keepdim=True).clamp(min=1e-30)


class InTheModelsKeys(Dense):
    """Keys are scaled where they lie, which saves a copy."""

    def attention_mass(self, view: CacheView, step: Step, /, **options: Any) -> Tensor:
        view.keys.mul_(step.scale)
        return super().attention_mass(view, replace(step, scale=1.0), **options)


@dataclass(frozen=True)
class Workspace(Dense):
    """What is returned lies in a workspace that the next call writes over."""

    _space: dict[Any, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def attention_mass(self, view: CacheView, step: Step, /, **options: Any) -> Tensor:
        mass = super().attention_mass(view, step, **options)
        space = self._space.setdefault((mass.shape, mass.dtype), torch.empty_like(mass))
        return space.copy_(mass)


@dataclass(frozen=True)
class RemembersRanks(Dense):
    """Ranks are looked up by the shape of the table."""

    _ranks: dict[Any, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def arrival_rank(self, view: CacheView, /) -> Tensor:
        return self._ranks.setdefault((view.layer, view.shape), super().arrival_rank(view))


# Ranking and neighbours --------------------------------------------------------------------------------------------


class TiesByMemory(Dense):
    """Of rows with equal scores the one that lies first in memory stays."""

    def top_k(self, scores: Tensor, quota: Any, view: CacheView, /, **told: Any) -> Tensor:
        slots = torch.arange(view.shape[2], 0, -1).expand(view.shape)
        return super().top_k(scores, quota, replace(view, positions=slots), **told)


class TiesToTheEarlier(Dense):
    """Of rows with equal scores the earlier one stays."""

    def top_k(self, scores: Tensor, quota: Any, view: CacheView, /, **told: Any) -> Tensor:
        early = replace(view, positions=view.positions.max() - view.positions)
        return super().top_k(scores, quota, early, **told)


class NoneToSpare(Dense):
    """Where no head has more than one row too many, every head loses its worst one."""

    def top_k(self, scores: Tensor, quota: Any, view: CacheView, /, **told: Any) -> Tensor:
        less = view.valid.sum(-1) - 1
        return super().top_k(scores, less if told.get("surplus") == 1 else quota, view, **told)


class RankBySlot(Dense):
    """Valid rows are numbered as they lie."""

    def arrival_rank(self, view: CacheView, /) -> Tensor:
        return torch.where(view.valid, view.valid.to(torch.int64).cumsum(-1) - 1, view.shape[2])


class RankFromOne(Dense):
    """The oldest row is number one."""

    def arrival_rank(self, view: CacheView, /) -> Tensor:
        return torch.where(view.valid, super().arrival_rank(view) + 1, view.shape[2])


class TiesToTheLater(Dense):
    """A row half way between two kept ones goes to the later."""

    def nearest_position(self, view: CacheView, keep: Tensor, /) -> Tensor:
        mirrored = torch.where(view.positions >= 0, view.positions.max() - view.positions, -1)
        return super().nearest_position(replace(view, positions=mirrored), keep)


class Euclid(Dense):
    """The kept key at the smallest distance, not at the smallest angle."""

    def most_similar(self, view: CacheView, rows: Tensor, anchors: Tensor, /) -> tuple[Tensor, Tensor]:
        _, similarity = super().most_similar(view, rows, anchors)
        anchors, keys, order = anchors & view.valid, view.keys.double(), view.positions.argsort(-1)
        apart = (keys[:, :, :, None] - keys[:, :, None]).norm(dim=-1).masked_fill(~anchors[:, :, None], torch.inf)
        first = apart.gather(-1, order[:, :, None].expand_as(apart)).argmin(-1)
        found = rows & view.valid & anchors.any(-1, keepdim=True)
        return torch.where(found, order.gather(-1, first), -1), similarity


class AnchorsOfAllHeads(Dense):
    """Similarity to the mean key of the layer is taken off first."""

    def most_similar(self, view: CacheView, rows: Tensor, anchors: Tensor, /) -> tuple[Tensor, Tensor]:
        valid = view.valid[..., None].to(view.keys.dtype)
        mean = (view.keys * valid).sum((1, 2), keepdim=True) / valid.sum((1, 2), keepdim=True).clamp(min=1)
        return super().most_similar(replace(view, keys=view.keys - mean), rows, anchors)


class LastOneWins(Dense):
    """Where several rows have the same target, one of them is written there."""

    def segment_sum(self, data: Tensor, index: Tensor, /) -> Tensor:
        out = data.new_zeros(*index.shape[:2], index.shape[2] + 1)
        target = torch.where(index >= 0, index, index.shape[2]).flatten(2)
        return out.scatter_(-1, target, data.flatten(2))[..., :-1]


# Compaction --------------------------------------------------------------------------------------------------------


class CountForgotten(Dense):
    """A merged row goes on counting for one."""

    def compact(self, view: CacheView, plan: Plan, rows: int, /) -> CacheView:
        made = super().compact(view, plan, rows)
        only = super().compact(view, Plan(keep=plan.keep), rows)
        return replace(made, columns=only.columns)


class ColumnsStay(Dense):
    """Keys and values move together, and the columns stay where they were."""

    def compact(self, view: CacheView, plan: Plan, rows: int, /) -> CacheView:
        made = super().compact(view, plan, rows)
        stay = {n: replace(c, data=c.data[..., :rows] * made.valid) for n, c in view.columns.items() if n != "count"}
        return replace(made, columns={**made.columns, **stay})


class RegistersForgotten(Dense):
    """Registers do not survive a compaction."""

    def compact(self, view: CacheView, plan: Plan, rows: int, /) -> CacheView:
        return replace(super().compact(view, plan, rows), registers={})


class LastRowLost(Dense):
    """Off by one: the row that came last is cut off."""

    def compact(self, view: CacheView, plan: Plan, rows: int, /) -> CacheView:
        made = super().compact(view, plan, rows)
        last = made.valid & (torch.arange(rows) >= max(1, rows - 1))
        return replace(made, valid=made.valid & ~last, positions=made.positions.masked_fill(last, -1))


class KeysNotMerged(Dense):
    """Values are merged and keys are not, whatever the plan says."""

    def compact(self, view: CacheView, plan: Plan, rows: int, /) -> CacheView:
        return super().compact(view, replace(plan, merge_keys=False), rows)


class OwnWeightForgotten(Dense):
    """What folds in comes on top of the row, which keeps its weight of one."""

    def compact(self, view: CacheView, plan: Plan, rows: int, /) -> CacheView:
        own = None if plan.self_weight is None else torch.ones_like(plan.self_weight)
        return super().compact(view, replace(plan, self_weight=own), rows)


class ScaleForgotten(Dense):
    """Keys and values of merged rows are not scaled."""

    def compact(self, view: CacheView, plan: Plan, rows: int, /) -> CacheView:
        return super().compact(view, replace(plan, key_scale=None, value_scale=None), rows)


class EveryColumnSums(Dense):
    """Every column is added up on a merge, also those that say ``keep``."""

    def compact(self, view: CacheView, plan: Plan, rows: int, /) -> CacheView:
        columns = {name: Column(c.data, on_merge="sum") for name, c in view.columns.items()}
        made = super().compact(replace(view, columns=columns), plan, rows)
        kept = {name: replace(c, on_merge=view.columns[name].on_merge) for name, c in made.columns.items()}
        return replace(made, columns=kept)


@dataclass(frozen=True)
class NoStore(Dense):
    """There is no store for this device."""

    def store(self, layer: int, num_layers: int, /, *, on_host: bool = False) -> Any:
        raise BackendUnavailableError("there is no store for this device.")


TWINS = (Dense(),)
MUTANTS = (
    Mutant("group-mean-for-max", MeanForMax, law="agrees_with_numpy"),
    Mutant("mean-of-all-heads", MeanOfAllHeads, law="head_independent"),
    Mutant("no-token-sees-itself", NotItself, law="agrees_with_numpy"),
    Mutant("sees-the-next", SeesTheNext, law="agrees_with_numpy"),
    Mutant("sees-padding", SeesPadding, law="padding_invariant"),
    Mutant("causal-by-slot", CausalBySlot, law="slot_equivariant"),
    Mutant("cap-ignored", CapIgnored, law="agrees_with_numpy"),
    Mutant("sinks-ignored", SinksIgnored, law="agrees_with_numpy"),
    Mutant("reach-ignored", ReachIgnored, law="agrees_with_numpy"),
    Mutant("scale-ignored", NoScale, law="agrees_with_numpy"),
    Mutant("silent-queries-pay-nan", NotSilent, law="finite"),
    Mutant("padding-asks", PaddingAsks, law="padding_invariant"),
    Mutant(
        "padding-of-the-first-row",
        FirstRowsPadding,
        law="batch_independent",
    ),
    Mutant("attention-in-cache-dtype", InCacheDtype, law="dtype_stable"),
    Mutant("softmax-overflows", NotStable, law="dtype_stable"),
    Mutant("scales-keys-in-place", InTheModelsKeys, law="unmutated"),
    Mutant("returns-its-workspace", Workspace, law="agrees_with_numpy", also=("thread_safe", "immutable")),
    Mutant("remembers-ranks", RemembersRanks, law="request_isolated"),
    Mutant("top-k-ties-by-memory", TiesByMemory, law="slot_equivariant"),
    Mutant("top-k-ties-to-the-earlier", TiesToTheEarlier, law="agrees_with_numpy"),
    Mutant("top-k-with-none-to-spare", NoneToSpare, law="agrees_with_numpy"),
    Mutant("rank-by-slot", RankBySlot, law="slot_equivariant"),
    Mutant("rank-from-one", RankFromOne, law="agrees_with_numpy"),
    Mutant("nearest-ties-to-the-later", TiesToTheLater, law="agrees_with_numpy"),
    Mutant("euclid-for-cosine", Euclid, law="agrees_with_numpy"),
    Mutant("centred-over-all-heads", AnchorsOfAllHeads, law="head_independent"),
    Mutant("repeated-targets-dropped", LastOneWins, law="agrees_with_numpy", also=("slot_equivariant",)),
    Mutant("count-forgotten", CountForgotten, law="merge_mass"),
    Mutant("columns-not-compacted", ColumnsStay, law="padding_invariant", also=("slot_equivariant",)),
    Mutant("last-row-lost", LastRowLost, law="rows_unique"),
    Mutant("registers-dropped", RegistersForgotten, law="agrees_with_numpy"),
    Mutant("scale-of-merged-ignored", ScaleForgotten, law="agrees_with_numpy"),
    Mutant("no-store", NoStore, law="agrees_with_model"),
    Mutant("keys-not-merged", KeysNotMerged, law="agrees_with_numpy"),
    Mutant("own-weight-forgotten", OwnWeightForgotten, law="agrees_with_numpy"),
    Mutant("every-column-sums", EveryColumnSums, law="agrees_with_numpy"),
)
