"""The laws, each a function of a component and an example that raises `ConformanceError` where it does not hold.

``LAWS`` has them by name, in the order in which they are tried: the structural ones first, without which the others
make no sense.
"""

from collections.abc import Mapping
from types import MappingProxyType

from .._law import ConformanceError, Law
from .budgets import (
    ahead_allocates,
    budget_exact,
    dominance,
    idempotent,
    limit_holds,
    monotone_budget,
    monotone_score,
    noop_within_budget,
)
from .history import chunk_invariant, deterministic, immutable, request_isolated, thread_safe
from .merging import anchor_unchanged, merge_convex, merge_linear, merge_mass
from .model import agrees_with_model
from .numbers import agrees_with_numpy, dtype_stable
from .structure import (
    finite,
    keeps_selected,
    no_padding,
    rows_unique,
    sources_evicted,
    unmutated,
    well_formed,
    within_quota,
)
from .symmetry import batch_independent, head_equivariant, head_independent, padding_invariant, slot_equivariant

LAWS: Mapping[str, Law] = MappingProxyType(
    {
        law.name: law
        for law in (
            well_formed,
            unmutated,
            keeps_selected,
            rows_unique,
            no_padding,
            sources_evicted,
            within_quota,
            finite,
            deterministic,
            request_isolated,
            merge_convex,
            merge_mass,
            merge_linear,
            anchor_unchanged,
            budget_exact,
            ahead_allocates,
            noop_within_budget,
            idempotent,
            monotone_budget,
            limit_holds,
            dominance,
            monotone_score,
            thread_safe,
            head_equivariant,
            head_independent,
            slot_equivariant,
            padding_invariant,
            batch_independent,
            chunk_invariant,
            dtype_stable,
            agrees_with_numpy,
            agrees_with_model,
            immutable,
        )
    }
)

__all__ = [
    "LAWS",
    "ConformanceError",
    "Law",
    "agrees_with_model",
    "agrees_with_numpy",
    "ahead_allocates",
    "anchor_unchanged",
    "batch_independent",
    "budget_exact",
    "chunk_invariant",
    "deterministic",
    "dominance",
    "dtype_stable",
    "finite",
    "head_equivariant",
    "head_independent",
    "idempotent",
    "immutable",
    "keeps_selected",
    "limit_holds",
    "merge_convex",
    "merge_linear",
    "merge_mass",
    "monotone_budget",
    "monotone_score",
    "no_padding",
    "noop_within_budget",
    "padding_invariant",
    "request_isolated",
    "rows_unique",
    "slot_equivariant",
    "sources_evicted",
    "thread_safe",
    "unmutated",
    "well_formed",
    "within_quota",
]
