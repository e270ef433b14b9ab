"""KVMerger: runs of similar keys become one."""

from __future__ import annotations

from typing import Literal

from .._check import check_choice
from .._policy import Pipeline, Policy
from ..mergers import Fold, Gaussian, SameCluster
from ..scorers import AttentionMass
from ..selectors import Clusters
from ._budget import schedule_for

__all__ = ["kv_merger"]


def kv_merger(
    *,
    keep: float | None = None,
    rows: int | None = None,
    memory: int | str | None = None,
    epsilon: float | None = None,
    sigma: float | None = None,
    values: Literal["mean", "scaled"] = "mean",
) -> Policy:
    """Merge runs of neighbouring rows with similar keys into their most attended row.

    Formula: row i joins its successor where ``cos(K_i, K_{i+1}) > epsilon``; in each run the pivot p is the row with
    the most attention and ``K' = sum g_i K_i / sum g_i`` with ``g_i = exp(-||K_p - K_i||^2 / 2 sigma^2)``, the same for
    V; recent rows and the most attended rows stay by themselves. Prompt only. As printed the paper scales V' by the
    size of the run (``values="scaled"``); the default keeps the mean and lets the row weigh as many tokens as it stands
    for.

    Source: Wang et al., "Model Tells You Where to Merge: Adaptive KV Cache Merging for LLMs on Long-Context Tasks",
    arXiv 2407.08454, algorithm 1 and equations 4 to 7. No official code.

    Good for: long texts with runs of similar keys: they become one row that weighs as many tokens as it stands for.

    Not for: long answers, since generated rows all stay; prompts whose neighbouring tokens differ, where the budget can
    only be met by merging what is not alike.

    Args:
        keep: fraction of the tokens seen that stays, in (0, 1].
        rows: or: rows per layer and head, on average.
        memory: or: bytes for the keys and values of the whole request, or text such as ``"64MiB"``.
        epsilon: similarity above which rows join (0.75 in the paper): the size is then what the data gives, and the
            budget only says when to act. None: the largest one that meets the budget.
        sigma: of the Gaussian; None: the mean distance to the pivot in each run.
        values: mean with a count bias, or scaled as printed.

    Raises:
        PolicyError: unless exactly one of keep, rows and memory is given and in range.
    """
    check_choice("kv_merger", "values", values, ("mean", "scaled"))
    schedule = schedule_for("kv_merger", keep=keep, rows=rows, memory=memory)
    return Policy(
        prefill=Pipeline(
            schedule=schedule,
            score=AttentionMass(),
            select=Clusters(epsilon=epsilon),
            merge=Fold(SameCluster(), Gaussian(sigma=sigma, scale_values=values == "scaled")),
        ),
        count_bias=values == "mean",
    )
