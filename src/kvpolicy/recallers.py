"""Which released rows come back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

from ._check import check_count, check_stage
from ._protocols import ImportanceScorer, Recaller
from ._repr import constructor_repr
from ._step import Step
from ._types import CacheView, KeepMask

__all__ = ["TopRecall"]


@final
@dataclass(frozen=True, slots=True)
class TopRecall(Recaller):
    """The released rows with the highest scores come back, to compete for their place anew.

    Source: ADORE (arXiv 2407.02328, section 3.3): the top-R released tokens are modelled beside the current one.

    Args:
        score: what a released row is worth to the current token, with the archive as its table. A scorer that goes by
            columns alone and says so (``reads_vectors = False``) spares fetching the archive's keys at every step.
        rows: R, for each head.
    """

    score: ImportanceScorer
    rows: int = 8

    __repr__ = constructor_repr

    def __post_init__(self) -> None:
        check_stage("TopRecall", "score", self.score, ImportanceScorer)
        check_count("TopRecall", "rows", self.rows, least=1)

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns that the scorer observes: the pipeline's own scorer must be the one that fills them."""
        return tuple(getattr(self.score, "columns", ()))

    @property
    def reads_vectors(self) -> bool:
        """Whether the scorer looks at keys, values or attention, and not at columns only."""
        return bool(getattr(self.score, "reads_vectors", True))

    def recall(self, archive: CacheView, step: Step, /) -> KeepMask:
        """The best ``rows`` rows of each head; ties go to the later arrival."""
        xp = archive.xp
        quota = xp.full(archive.shape[:2], self.rows, dtype=xp.int64, device=archive.positions.device)
        scores = self.score.score(archive, replace(step, held=step.archived))  # the archive is its table
        return step.ops.top_k(scores, quota, archive)
