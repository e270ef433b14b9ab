"""ADORE: release, archive, recall."""

from __future__ import annotations

from .._policy import Pipeline, Policy
from .._protocols import ImportanceScorer
from ..recallers import TopRecall
from ..scorers import AttentionMass
from ..selectors import TopK
from ._budget import schedule_for

__all__ = ["adore"]


def adore(
    *,
    keep: float | None = None,
    rows: int | None = None,
    memory: int | str | None = None,
    recall: int = 8,
    last: int = 1,
    controller: ImportanceScorer | None = None,
) -> Policy:
    """Hold a constant number of rows; release the least important to host memory, and bring back what matters again.

    Formula: at every step the controller scores the rows of the table and of the archive for the current token; the
    best ``recall`` archived rows return and the best k of all stay. What is recalled at one token is attended to from
    the next.

    Source: Zhang et al., "Efficient Sparse Attention needs Adaptive Token Release", ACL 2024 Findings, arXiv
    2407.02328, section 3. The mechanism only: the paper's trained controller was not published.

    Good for: a small, constant table on the device where the host has room: a token that was released can come back
    when it matters again.

    Not for: saving memory altogether, since the archive grows with the tokens; speed, since every step scores the
    archive and moves rows. What it is worth depends on the controller.

    Args:
        keep: fraction of the tokens seen that stays, in (0, 1].
        rows: or: rows per layer and head, on average.
        memory: or: bytes for the keys and values of the whole request, or text such as ``"64MiB"``.
        recall: R, rows of each head that may return at every step.
        last: most recent tokens that are always kept.
        controller: what a row is worth to the current token, from its columns; None: a moving average of the attention
            it receives. `kvpolicy_hf.train_controller` fits a small GRU on recorded attention.

    Raises:
        PolicyError: unless exactly one of keep, rows and memory is given and in range.
    """
    select = TopK(last=last)
    schedule = schedule_for("adore", keep=keep, rows=rows, memory=memory, floor=max(select.floor, 1))
    score = AttentionMass(reduce="moving") if controller is None else controller
    pipeline = Pipeline(schedule=schedule, score=score, select=select, recall=TopRecall(score, rows=recall))
    return Policy(prefill=pipeline, decode=pipeline)
