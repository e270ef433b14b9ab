"""Faults of the engine, put in its place for the time of a check, and policies that show them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

import kvpolicy as kv
from kvpolicy import CacheView, Phase, Pipeline, Plan, Policy, Session, _engine
from kvpolicy._layer import Layer
from kvpolicy.backends import _torch_store, _torch_table
from kvpolicy.backends._torch_store import TorchStore
from kvpolicy.backends._torch_table import StoredTable
from kvpolicy.backends.numpy import store as numpy_store
from kvpolicy.backends.torch import TorchBackend

from . import mergers, scorers, selectors
from ._mutant import Mutant

__all__ = ["MUTANTS", "TWINS"]


def stale_columns(table: Any, rows: CacheView, slots: Any, put: Any = StoredTable.put) -> None:
    """What was observed of the row that left a slot is taken for that of the next one."""
    known = set(table.columns) - {"count", "segment"}
    kept = {name: table.columns[name].data.clone() for name in known}
    put(table, rows, slots)
    for name, data in kept.items():
        table.columns[name].data.copy_(data)


def padding_seen(layer: Any, rows: Any, tokens: Any, append: Any = Layer.append) -> CacheView:
    """Padding counts as seen."""
    view = append(layer, rows, tokens)
    layer.seen = layer.seen + int(rows.positions.shape[-1]) - tokens
    return view


def chunk_is_prompt(session: Any, *args: Any, begin: Any = Session.__init__, **options: Any) -> None:
    """Every chunk of a prompt is compacted as if it were a whole one."""
    begin(session, *args, **{**options, "prompt_length": 0})


def nothing_remembered(session: Any, step: Any, goes_on: bool) -> None:
    """Queries of earlier chunks are not kept for a scorer that asks for them."""


def budget_of_the_batch(pipeline: Any, step: Any, budget_of: Any = _engine.budget_of) -> Any:
    """The whole batch gets the largest budget of its rows."""
    budget = budget_of(pipeline, step)
    return None if budget is None else np.full_like(budget, budget.max())


def archive_keeps(layer: Any, mask: Any, ops: Any, take_back: Any = Layer.take_back) -> None:
    """Rows that are called back stay in the archive, and may be called again."""
    before, apply = layer.archived, layer.archive.apply
    layer.archive.apply = lambda plan, kept: None
    try:
        take_back(layer, mask, ops)
    finally:
        layer.archive.apply = apply
    layer.archived = before


def count_forgotten(backend: Any, view: CacheView, plan: Plan, rows: int, compact: Any = TorchBackend.compact) -> Any:
    """A merged row goes on counting for one."""
    only = compact(backend, view, Plan(keep=plan.keep), rows)
    return replace(compact(backend, view, plan, rows), columns=only.columns)


def registers_forgotten(
    backend: Any, view: CacheView, plan: Plan, rows: int, compact: Any = TorchBackend.compact
) -> Any:
    """Registers do not survive a compaction."""
    return replace(compact(backend, view, plan, rows), registers={})


def columns_stay(view: CacheView, plan: Plan, rows: int, compacted: Any = numpy_store.compacted) -> Any:
    """Keys and values move together, and what was observed stays where it was."""
    made = compacted(view, plan, rows)
    stay = {name: replace(c, data=c.data[..., :rows] * made.valid) for name, c in view.columns.items()}
    return replace(made, columns={**stay, "count": made.columns["count"]})


def padding_is_a_row(data: Any, heads: int, per_head: Any = numpy_store._per_head) -> Any:
    """Padding is stored as rows like any other."""
    made = per_head(data, heads)
    return np.ones_like(made) if made.dtype == bool else made


def half_rounded(rows: Any, heads: int, as_table: Any = _torch_table.as_table) -> CacheView:
    """Values are stored in half precision."""
    view = as_table(rows, heads)
    return replace(view, values=view.values.half().to(view.values.dtype))


def turn_is_decoding(session: Any, now: Any) -> Phase:
    """A further turn is taken for decoding."""
    return Phase.PREFILL if now.start < session._prompt_length or now.start == 0 else Phase.DECODE


def observed_twice(observers: Any, view: CacheView, step: Any, observed_by: Any = _engine.observed_by) -> Any:
    """A prompt is observed for the prompt, and again for decoding."""
    columns = observed_by(observers, view, step)
    return observed_by(observers, view.with_columns(columns), step) if step.phase is Phase.PREFILL else columns


def registers_stay(store: Any, clear: Any = TorchStore.clear) -> None:
    """Registers go on with the next request."""
    registers = store._registers
    clear(store)
    store._registers = registers


def beams_share_registers(store: Any, index: Any, select_batch: Any = TorchStore.select_batch) -> None:
    """Rows of a beam search take their columns along, and leave their registers behind."""
    first = {name: data[:1].expand(len(index), -1) for name, data in store._registers.items()}
    select_batch(store, index)
    store._registers = first


def first_queries(queries: Any, count: int, latest: Any = kv.Queries.latest) -> Any:
    """The first queries are taken for the latest."""
    return (
        latest(queries, count)
        if queries.positions.shape[1] <= count
        else kv.Queries(queries.vectors[:, :, :count], queries.positions[:, :count], queries.valid[:, :count])
    )


def cropped_by_one_too_few(layer: Any, length: int, ops: Any, crop: Any = Layer.crop) -> None:
    """One of the tokens that were to be taken back stays."""
    crop(layer, min(length + 1, layer.length), ops)
    layer.length = length


def bias_forgotten(session: Any, *args: Any, step: Any = Session._step) -> Any:
    """Scorers are not told that attention goes by counts."""
    return replace(step(session, *args), count_bias=False)


def prompt_not_counted(layer: Any, by: str, settle: Any = Layer.settle) -> None:
    """What was left of the prompt is forgotten."""
    settle(layer, by)
    layer.prompt_kept = np.zeros_like(layer.prompt_kept)


def merged_not_counted(layer: Any, *plan: Any, apply: Any = Layer.apply) -> None:
    """Rows that were merged are reported as evicted."""
    merged = layer.merged
    apply(layer, *plan)
    layer.merged = merged


def archive_takes_merged(layer: Any, view: Any, plan: Plan, *rest: Any, release: Any = Layer.release) -> None:
    """Rows that were merged go to the archive as well, and may come back."""
    release(layer, view, Plan(keep=plan.keep), *rest)


def both(**stages: Any) -> Policy:
    pipeline = Pipeline(**{"schedule": kv.FixedRows(2), "score": kv.AttentionMass(), **stages})
    return Policy(prefill=pipeline, decode=pipeline)


def gated() -> Policy:
    return both(merge=kv.Fold(mergers.Gate(), mergers.Evenly()))


def merging() -> Policy:
    return both(merge=mergers.IntoNearest())


def recalling() -> Policy:
    return both(recall=kv.TopRecall(kv.AttentionMass(), rows=2))


TWINS = (
    both(score=scorers.Received(), select=selectors.Best()),
    merging(),
    recalling(),
)
MUTANTS = (
    # Faults of stages, as a policy shows them.
    Mutant(
        "policy-padding-kept",
        lambda: both(score=kv.Noise(), select=selectors.PaddingKept()),
        law="no_padding",
        also=("well_formed",),
    ),
    Mutant(
        "policy-argsort-as-rank",
        lambda: both(schedule=kv.FixedRows(4), score=kv.Noise(), select=selectors.ArgsortAsRank()),
        law="dominance",
        also=("budget_exact",),
    ),
    Mutant(
        "policy-the-worst-stay",
        lambda: both(schedule=kv.FixedRows(4), select=selectors.Worst()),
        law="monotone_score",
    ),
    Mutant("policy-epsilon", lambda: both(merge=mergers.Epsilon()), law="anchor_unchanged", backends=("numpy",)),
    Mutant(
        "policy-weights-below-one",
        lambda: both(merge=mergers.OneTooMany()),
        law="merge_convex",
    ),
    Mutant("policy-last-chunk-only", lambda: both(score=scorers.LastChunk()), law="chunk_invariant"),
    Mutant(
        "policy-gate-of-nothing",
        lambda: both(merge=kv.Fold(mergers.GateOfNothing(), mergers.Evenly())),
        law="batch_independent",
    ),
    # Faults of the engine.
    Mutant(
        "stale-columns",
        both,
        law="agrees_with_numpy",
        patches=((StoredTable, "put", stale_columns),),
    ),
    Mutant(
        "columns-stay",
        both,
        law="padding_invariant",
        backends=("numpy",),
        patches=((numpy_store, "compacted", columns_stay),),
    ),
    Mutant(
        "padding-seen",
        lambda: both(schedule=kv.KeepRatio(0.5)),
        law="padding_invariant",
        patches=((Layer, "append", padding_seen),),
    ),
    Mutant(
        "padding-is-a-row",
        both,
        law="padding_invariant",
        backends=("numpy",),
        patches=((numpy_store, "_per_head", padding_is_a_row),),
        also=("merge_mass",),
    ),
    Mutant("chunk-is-a-prompt", both, law="chunk_invariant", patches=((Session, "__init__", chunk_is_prompt),)),
    Mutant(
        "queries-not-remembered",
        lambda: both(score=kv.WindowMass(window=2)),
        law="chunk_invariant",
        patches=((Session, "_remembered", nothing_remembered),),
    ),
    Mutant(
        "budget-of-the-batch",
        lambda: both(schedule=kv.KeepRatio(0.5)),
        law="batch_independent",
        patches=((_engine, "budget_of", budget_of_the_batch),),
    ),
    Mutant("archive-keeps", recalling, law="rows_unique", patches=((Layer, "take_back", archive_keeps),)),
    Mutant(
        "policy-count-forgotten",
        merging,
        law="merge_mass",
        patches=((TorchBackend, "compact", count_forgotten),),
    ),
    Mutant(
        "policy-registers-forgotten",
        gated,
        law="agrees_with_numpy",
        patches=((TorchBackend, "compact", registers_forgotten),),
    ),
    Mutant(
        "values-in-half",
        both,
        law="agrees_with_numpy",
        patches=((_torch_store, "as_table", half_rounded), (_torch_table, "as_table", half_rounded)),
    ),
    # Faults that only a model of the whole engine sees.
    Mutant(
        "turn-is-decoding",
        lambda: Policy(prefill=both().prefill),
        law="agrees_with_model",
        patches=((Session, "_phase", turn_is_decoding),),
    ),
    Mutant("observed-twice", both, law="agrees_with_model", patches=((_engine, "observed_by", observed_twice),)),
    Mutant(
        "registers-stay",
        gated,
        law="agrees_with_model",
        patches=((TorchStore, "clear", registers_stay),),
    ),
    Mutant(
        "beams-share-registers",
        gated,
        law="agrees_with_model",
        patches=((TorchStore, "select_batch", beams_share_registers),),
    ),
    Mutant(
        "first-queries",
        lambda: both(score=kv.WindowMass(window=2)),
        law="agrees_with_model",
        patches=((kv.Queries, "latest", first_queries),),
    ),
    Mutant(
        "cropped-by-one-too-few", kv.full, law="agrees_with_model", patches=((Layer, "crop", cropped_by_one_too_few),)
    ),
    Mutant(
        "count-bias-forgotten",
        lambda: replace(merging(), count_bias=True),
        law="agrees_with_model",
        patches=((Session, "_step", bias_forgotten),),
    ),
    Mutant(
        "prompt-not-counted",
        lambda: both(score=kv.FixedPoint(distance=1)),
        law="agrees_with_model",
        patches=((Layer, "settle", prompt_not_counted),),
    ),
    Mutant("merged-not-counted", merging, law="agrees_with_model", patches=((Layer, "apply", merged_not_counted),)),
    Mutant(
        "archive-takes-merged",
        lambda: both(merge=mergers.IntoNearest(), recall=kv.TopRecall(kv.Recency(), rows=1)),
        law="agrees_with_model",
        patches=((Layer, "release", archive_takes_merged),),
    ),
)
