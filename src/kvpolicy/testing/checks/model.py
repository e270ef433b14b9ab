"""The whole engine against a slow, obvious model of it."""

from __future__ import annotations

from ..._policy import Pipeline, Policy
from ...mergers import Fold, Mean, MostSimilar
from ...schedulers import FixedRows
from ...scorers import AttentionMass
from .._law import law
from .._subject import Subject
from ..traces import Trace, replay

__all__ = ["agrees_with_model"]


# What a backend is tried with: rows leave, are merged, and carry columns, from the first pass on.
_MERGES = Pipeline(schedule=FixedRows(3), score=AttentionMass(), merge=Fold(MostSimilar(), Mean()))
_STOCK = Policy(prefill=_MERGES, decode=_MERGES)


_EXPLAIN = (
    "merge_mass",
    "padding_invariant",
    "batch_independent",
    "chunk_invariant",
    "agrees_with_numpy",
)


@law("Policy", "Backend", on=Trace, after=_EXPLAIN, effort=0.4)
def agrees_with_model(subject: Subject, example: Trace) -> None:
    """Tables, registers, archives and books after every operation are those of lists of rows, changed by the formula.

    Operations are prompts, chunks, decode steps, further turns, reordering for beams, cropping and starting over. A
    backend is tried with a policy that merges.
    """
    if subject.kind.name == "Backend":
        replay(_STOCK, example, backend=subject.fresh())
    else:
        replay(subject.fresh(), example, backend=subject.where)
