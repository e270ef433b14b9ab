"""The space that is searched: which parts a policy may be made of, and their arguments.

Optuna asks for one choice after the other, so that an argument exists only where its part was chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import kvpolicy
from kvpolicy import (
    Allocator,
    Assigner,
    ImportanceScorer,
    KeepRatio,
    Merger,
    Pipeline,
    Policy,
    TopK,
    Weigher,
)

__all__ = ["starts", "suggest"]

SCORES = ("mass", "window", "pooled", "expected", "key_difference")
SCORES_OF_PICTURES = (*SCORES, "post_image", "elite")
ALLOCATORS: dict[str, Callable[[], Allocator]] = {
    "uniform": kvpolicy.Uniform,
    "pyramid": kvpolicy.Pyramid,
    "heads": kvpolicy.AdaptiveHeads,
    "variance": kvpolicy.ByVariance,
    "strength and skew": kvpolicy.ByStrengthAndSkew,
    "variance and heads": lambda: kvpolicy.Nested(kvpolicy.ByVariance(), kvpolicy.AdaptiveHeads()),
}
WEIGHERS: dict[str, Callable[[], Weigher]] = {
    "mean": kvpolicy.Mean,
    "pivotal": kvpolicy.Pivotal,
    "softmax": kvpolicy.SimilaritySoftmax,
    "zero perturbation": kvpolicy.ZeroPerturbation,
}
_EVICT = {"first": 0, "last": 0, "recent": 0.0, "merge": "drop", "allocate": "uniform", "decode": "never"}
# Published compositions, as choices of the space: where a search begins.
_STARTS: tuple[dict[str, Any], ...] = (
    {**_EVICT, "score": "mass", "heads": "each", "recent": 0.5, "decode": "as the prompt"},  # H2O
    {**_EVICT, "score": "pooled", "window": 32, "heads": "each", "kernel": 7, "pool": "mean"},  # SnapKV
    {**_EVICT, "score": "expected", "first": 4},  # Expected Attention
)
_STARTS_OF_PICTURES: tuple[dict[str, Any], ...] = (
    {**_EVICT, "score": "elite", "allocate": "strength and skew", "text": True},  # AirCache
    {
        **_EVICT,
        "score": "post_image",
        "heads": "each",
        "allocate by sparsity": True,
        "recent": 0.1,
    },  # VL-Cache
)
DECODING = ("never", "as the prompt", "mass", "last query", "fixed point")


def suggest(trial: Any, *, pictures: bool) -> Callable[[float], Policy]:
    """A composition of the space, as a function of the budget.

    Args:
        trial: what chooses: an `optuna.Trial`, or whatever else has its ``suggest_`` methods.
        pictures: whether prompts hold pictures: then parts that tell text from pictures are in the space.

    Raises:
        PolicyError: by the function, if the parts refuse each other or the budget.
    """
    score = _score(trial, pictures)
    allocate = ALLOCATORS[trial.suggest_categorical("allocate", tuple(ALLOCATORS))]()
    if isinstance(score, kvpolicy.PostImageMass) and trial.suggest_categorical("allocate by sparsity", (False, True)):
        allocate = kvpolicy.BySparsity()  # which goes by what that scorer counts
    first = trial.suggest_categorical("first", (0, 1, 4))
    last = trial.suggest_categorical("last", (0, 1, 4, 8, 16))
    recent = trial.suggest_categorical("recent", (0.0, 0.1, 0.25, 0.5))
    text = pictures and trial.suggest_categorical("text", (False, True))
    select = TopK(first=first, last=last, recent=recent, text=text)
    merge, count_bias = _merge(trial, first, last)
    decoding = trial.suggest_categorical("decode", DECODING)

    def policy(keep: float) -> Policy:
        schedule = KeepRatio(keep)
        prompt = Pipeline(schedule=schedule, score=score, allocate=allocate, select=select, merge=merge)
        answer: Pipeline | None = None
        if decoding != "never":
            # Text that was protected in the prompt stays so; what is generated competes by recency.
            kept = TopK(first=first, recent=recent, text=text)
            if decoding == "as the prompt":
                answer = Pipeline(
                    schedule=schedule, score=score, allocate=kvpolicy.LikePrompt(), select=kept, merge=merge
                )
            else:
                decider = _while_decoding(decoding)
                answer = Pipeline(schedule=schedule, score=decider, allocate=kvpolicy.LikePrompt(), select=kept)
        return Policy(prefill=prompt, decode=answer, count_bias=count_bias)

    return policy


def starts(*, pictures: bool) -> list[dict[str, Any]]:
    """Published compositions as choices, for a search to begin with."""
    if not pictures:
        return [dict(one) for one in _STARTS]
    return [{**one, "text": one.get("text", False)} for one in (*_STARTS, *_STARTS_OF_PICTURES)]


def _score(trial: Any, pictures: bool) -> ImportanceScorer:
    kind = trial.suggest_categorical("score", SCORES_OF_PICTURES if pictures else SCORES)
    if kind == "key_difference":
        return kvpolicy.KeyDifference()
    if kind == "expected":
        return kvpolicy.ExpectedAttention()
    if kind == "elite":
        return kvpolicy.EliteMass()
    heads = trial.suggest_categorical("heads", ("each", "mean"))
    if kind == "mass":
        return kvpolicy.AttentionMass(heads=heads)
    if kind == "post_image":
        return kvpolicy.PostImageMass(heads=heads)
    window = kvpolicy.WindowMass(trial.suggest_categorical("window", (2, 4, 8, 16, 32)), heads=heads)
    if kind == "window":
        return window
    return kvpolicy.Pooled(
        window,
        kernel=trial.suggest_categorical("kernel", (3, 5, 7)),
        mode=trial.suggest_categorical("pool", ("mean", "max")),
    )


def _merge(trial: Any, first: int, last: int) -> tuple[Merger, bool]:
    """What becomes of rows that leave, and whether a merged row weighs as much as the tokens that it stands for."""
    kind = trial.suggest_categorical("merge", ("drop", "nearest", "similar", "gated"))
    if kind == "drop":
        return kvpolicy.Drop(), False
    assign: Assigner = kvpolicy.NearestPosition(first=first, last=last)
    if kind != "nearest":
        threshold = trial.suggest_categorical("threshold", (None, 0.6, 0.8)) if kind == "similar" else None
        assign = kvpolicy.MostSimilar(threshold)
    if kind == "gated":
        assign = kvpolicy.EMAGate(assign)
    by_position = kind == "nearest"  # which knows of no similarity
    weigh = WEIGHERS[
        trial.suggest_categorical("weigh by count", ("mean", "pivotal"))
        if by_position
        else trial.suggest_categorical("weigh", tuple(WEIGHERS))
    ]()
    keys = trial.suggest_categorical("merge_keys", (True, False))
    return kvpolicy.Fold(assign, weigh, keys=keys), trial.suggest_categorical("count_bias", (False, True))


def _while_decoding(kind: str) -> ImportanceScorer:
    if kind == "mass":
        return kvpolicy.AttentionMass()
    if kind == "last query":
        return kvpolicy.WindowMass(1, heads="mean", keep_window=False)
    return kvpolicy.FixedPoint()
