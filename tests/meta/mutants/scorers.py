"""Scorers of a user's own, and what may go wrong with them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from kvpolicy import CacheView, Column, Step

from ._mutant import BY_CHANCE, Mutant

__all__ = ["MUTANTS", "TWINS"]


# By the attention that rows have received --------------------------------------------------------------------------


@dataclass(frozen=True)
class Received:
    """The attention that a row has received from every query so far, in a column of its own."""

    def observe(self, view: CacheView, step: Step) -> Mapping[str, Column]:
        return {"got": Column(self.before(view) + step.ops.attention_mass(view, step), on_merge="sum")}

    def score(self, view: CacheView, step: Step) -> Any:
        return view.column("got", needed_by="Received")

    def before(self, view: CacheView) -> Any:
        return view.columns["got"].data if "got" in view.columns else 0.0


class LastChunk(Received):
    """Only what the latest pass has paid is known; a prompt may come in several."""

    def before(self, view: CacheView) -> Any:
        return 0.0


class SumInCacheDtype(Received):
    """The sum is kept in the dtype of the cache, float16, where adding to it soon changes nothing."""

    def observe(self, view: CacheView, step: Step) -> Mapping[str, Column]:
        got = super().observe(view, step)["got"]
        return {"got": replace(got, data=view.xp.astype(got.data, view.keys.dtype))}


class ShareOfTheBatch(Received):
    """Attention as a share of the most that any row of the batch has received."""

    def score(self, view: CacheView, step: Step) -> Any:
        got = super().score(view, step)
        return got / (1 + view.xp.max(view.xp.where(view.valid, got, view.xp.zeros_like(got))))


class FirstHeadTwice(Received):
    """The first head counts twice."""

    def score(self, view: CacheView, step: Step) -> Any:
        got = super().score(view, step)
        first = view.xp.arange(got.shape[1], device=got.device) == 0
        return view.xp.where(first[:, None], 2 * got, got)


class PaddingHasAShare(Received):
    """Attention as a share of the mean over all slots, padding and empty ones too."""

    def score(self, view: CacheView, step: Step) -> Any:
        got = super().score(view, step)
        return got - view.xp.sum(got, axis=-1, keepdims=True) / got.shape[-1]


class AddsInPlace(Received):
    """``+=`` on a column of the table that it was given."""

    def score(self, view: CacheView, step: Step) -> Any:
        count = view.column("count", needed_by="AddsInPlace")
        count += view.xp.astype(super().score(view, step), count.dtype)
        return count


class OneScoreForAllHeads(Received):
    """The mean over heads, [B, 1, S]."""

    def score(self, view: CacheView, step: Step) -> Any:
        return view.xp.mean(super().score(view, step), axis=1, keepdims=True)


class ObservesAnArray(Received):
    """Observing gives bare arrays, not columns."""

    def observe(self, view: CacheView, step: Step) -> Any:
        return {"got": super().observe(view, step)["got"].data}


class SharedTemperature(Received):
    """A temperature from the generator that the whole process shares."""

    def score(self, view: CacheView, step: Step) -> Any:
        return super().score(view, step) * np.random.random()


@dataclass(frozen=True)
class OwnTemperature(Received):
    """A temperature from a generator of its own: seeded, and one request further on with each request."""

    seed: int = 0
    _generator: Any = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_generator", np.random.default_rng(self.seed))

    def score(self, view: CacheView, step: Step) -> Any:
        return super().score(view, step) * self._generator.random()


# By the latest queries ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Window:
    """The attention that the latest queries pay."""

    window: int = 2

    def score(self, view: CacheView, step: Step) -> Any:
        return step.ops.attention_mass(view, step.latest(self.window))


class WindowOfThisPass(Window):
    """The latest queries of this pass: where a prompt came in chunks, there are others."""

    def score(self, view: CacheView, step: Step) -> Any:
        last = np.s_[:, -self.window :]
        cut = replace(
            step,
            queries=step.queries[:, :, -self.window :],
            query_positions=step.query_positions[last],
            query_valid=step.query_valid[last],
            whole_pass=False,
        )
        return step.ops.attention_mass(view, cut)


@dataclass(frozen=True)
class Logit:
    """What the latest query asks of each row, mean over the query heads that share it."""

    def score(self, view: CacheView, step: Step) -> Any:
        xp, keys = view.xp, view.xp.astype(view.keys, view.xp.float64)
        query = self.grouped(xp, xp.astype(step.latest(1).queries[:, :, -1], xp.float64), view.shape[1])
        return step.scale * xp.sum(keys * query[:, :, None, :], axis=-1)

    def grouped(self, xp: Any, queries: Any, heads: int) -> Any:
        return xp.mean(xp.reshape(queries, (queries.shape[0], heads, -1, queries.shape[-1])), axis=2)


class WrongGroups(Logit):
    """Query heads that share a key/value head stand side by side, and not every H-th."""

    def grouped(self, xp: Any, queries: Any, heads: int) -> Any:
        return xp.mean(xp.reshape(queries, (queries.shape[0], -1, heads, queries.shape[-1])), axis=1)


class FirstOfTheGroup(Logit):
    """Query head h for key/value head h, as where no heads share keys."""

    def grouped(self, xp: Any, queries: Any, heads: int) -> Any:
        return queries[:, :heads]


class LastOfTheBatch(Logit):
    """Every batch row goes by the query of the last one."""

    def grouped(self, xp: Any, queries: Any, heads: int) -> Any:
        return super().grouped(xp, queries, heads)[-1:]


@dataclass
class FirstLayerKnows:
    """What the first layer has found is kept for the others in the scorer, which other threads use too."""

    def score(self, view: CacheView, step: Step) -> Any:
        got = Window().score(view, step)
        if view.layer == 0:
            self._least = view.xp.min(view.xp.where(view.valid, got, view.xp.inf), axis=-1, keepdims=True)
        time.sleep(5e-3)  # a kernel runs, and other threads with it
        return view.xp.where(view.xp.isfinite(self._least), got - self._least, got)


@dataclass
class KeepsALog:
    """A list of what it has scored, for the log."""

    log: list[int] = field(default_factory=list)

    def score(self, view: CacheView, step: Step) -> Any:
        self.log.append(view.layer)
        return Logit().score(view, step)


# By where a row came from ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EveryFourth:
    """Every fourth token, and of the others the latest."""

    def score(self, view: CacheView, step: Step) -> Any:
        place = self.place(view, step)
        return view.xp.astype(view.xp.where(place % 4 == 0, place + 1000, place), view.xp.float64)

    def place(self, view: CacheView, step: Step) -> Any:
        padding = view.xp.asarray(step.padding, device=view.positions.device)
        return view.positions - padding[:, None, None]


class CountsPadding(EveryFourth):
    """Every fourth position, with padding counted."""

    def place(self, view: CacheView, step: Step) -> Any:
        return view.positions


class BySlot(EveryFourth):
    """The slot of a row is taken for its place in the text."""

    def place(self, view: CacheView, step: Step) -> Any:
        slots = view.xp.arange(view.shape[2], device=view.positions.device)
        return view.xp.broadcast_to(slots, view.shape)


class IntegerScores(EveryFourth):
    """Scores are integers."""

    def score(self, view: CacheView, step: Step) -> Any:
        return self.place(view, step)


# By keys -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outlier:
    """How far a key's direction is from the first axis."""

    def score(self, view: CacheView, step: Step) -> Any:
        xp, keys = view.xp, view.xp.astype(view.keys, view.xp.float64)
        length = xp.sqrt(xp.sum(keys * keys, axis=-1))
        return 1 - keys[..., 0] / self.safe(xp, length)

    def safe(self, xp: Any, length: Any) -> Any:
        return xp.where(length > 0, length, xp.ones_like(length))


class ZeroByZero(Outlier):
    """A key of length zero is divided by its length."""

    def safe(self, xp: Any, length: Any) -> Any:
        return length


class UnitInPlace(Outlier):
    """Keys are brought to length one where they lie."""

    def score(self, view: CacheView, step: Step) -> Any:
        keys, xp = view.keys, view.xp
        length = xp.sqrt(xp.sum(keys * keys, axis=-1, keepdims=True))
        keys /= self.safe(xp, length)
        return super().score(view, step)


class HalfSquares(Outlier):
    """Squares are summed in the dtype of the cache, and a long key is infinitely long."""

    def score(self, view: CacheView, step: Step) -> Any:
        xp, keys = view.xp, 8 * view.keys
        length = xp.sqrt(xp.sum(keys * keys, axis=-1))
        return xp.astype(1 - keys[..., 0] / self.safe(xp, length), xp.float64)


@dataclass(frozen=True)
class Spread:
    """The standard deviation of a key's numbers."""

    def score(self, view: CacheView, step: Step) -> Any:
        return view.xp.std(view.xp.astype(view.keys, view.xp.float64), axis=-1)


class SpreadByMethod(Spread):
    """The arrays' own method, which divides by n - 1 in torch and by n in numpy."""

    def score(self, view: CacheView, step: Step) -> Any:
        return view.xp.astype(view.keys, view.xp.float64).std(-1)


class TorchOnly(Spread):
    """What has torch's methods goes another, faster way, with another result."""

    def score(self, view: CacheView, step: Step) -> Any:
        if hasattr(view.keys, "logsumexp"):
            return view.keys.double().logsumexp(-1)
        return super().score(view, step)


TWINS = (Received(), Window(), Logit(), EveryFourth(), Outlier(), Spread())
BOTH = ("numpy", "torch")
MUTANTS = (
    Mutant("last-chunk-only", LastChunk, law="chunk_invariant", backends=BOTH),
    Mutant("window-of-this-pass", WindowOfThisPass, law="chunk_invariant"),
    Mutant("sum-in-cache-dtype", SumInCacheDtype, law="dtype_stable"),
    Mutant("squares-in-cache-dtype", HalfSquares, law="dtype_stable", sizes={"vectors": "dominant"}),
    Mutant("share-of-the-batch", ShareOfTheBatch, law="batch_independent"),
    Mutant("last-query-of-the-batch", LastOfTheBatch, law="batch_independent"),
    Mutant("first-head-twice", FirstHeadTwice, law="head_equivariant"),
    Mutant("interleaved-groups", WrongGroups, law="head_equivariant"),
    Mutant("first-query-heads", FirstOfTheGroup, law="head_equivariant", backends=("numpy",)),
    Mutant("mean-over-padding", PaddingHasAShare, law="padding_invariant", backends=("numpy",)),
    Mutant("padding-is-a-place", CountsPadding, law="padding_invariant"),
    Mutant("slot-is-a-place", BySlot, law="slot_equivariant"),
    Mutant("adds-in-place", AddsInPlace, law="unmutated"),
    Mutant("unit-keys-in-place", UnitInPlace, law="unmutated"),
    Mutant("one-score-for-all-heads", OneScoreForAllHeads, law="well_formed"),
    Mutant("integer-scores", IntegerScores, law="well_formed", backends=("numpy",)),
    Mutant("observes-arrays", ObservesAnArray, law="well_formed"),
    Mutant("zero-by-zero", ZeroByZero, law="finite"),
    Mutant("unbiased-in-torch", SpreadByMethod, law="agrees_with_numpy"),
    Mutant("torch-only-branch", TorchOnly, law="agrees_with_numpy"),
    Mutant("shared-temperature", SharedTemperature, law="deterministic", backends=("numpy",), also=BY_CHANCE),
    Mutant("own-temperature", OwnTemperature, law="request_isolated"),
    Mutant("first-layer-knows", FirstLayerKnows, law="thread_safe"),
    Mutant("keeps-a-log", KeepsALog, law="immutable", backends=("numpy",)),
)
