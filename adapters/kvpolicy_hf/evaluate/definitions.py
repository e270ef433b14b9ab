"""The metrics of an evaluation: what each is called, what it means, and which way is better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

from .errors import EvaluationError

__all__ = ["ALL", "BASELINE", "CONFIDENCE", "METRICS", "Metric", "Verdict", "metric_of"]

ALL = "all"  # the pseudo-task: every task counts alike
BASELINE = "full"  # the policy that keeps everything
CONFIDENCE = 0.95

Verdict: TypeAlias = Literal["better", "worse", "undecided"]


@final
@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        name: as in the tables.
        title: as readers see it.
        meaning: one sentence.
        better: +1 where more is better, -1 where less is.
        share: whether it is a share of one, and reads best in per cent.
        ratio: whether it is the exponential of a ratio of sums, rather than a mean over samples.
    """

    name: str
    title: str
    meaning: str
    better: int = 1
    share: bool = True
    ratio: bool = False

    def verdict(self, groups: int, low: float, high: float) -> Verdict:
        """What the interval of a difference says; nothing where it holds zero, or there are no groups to draw from."""
        if groups == 0 or low <= 0 <= high:
            return "undecided"
        return "better" if (low > 0) == (self.better > 0) else "worse"


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "quality",
            "quality",
            "The task's own score, from 0 to 1: right answers, needles found, or, where a text is scored, the "
            "likelihood of a token beside what the full cache gives it, exp((nats of full - nats) / tokens).",
        ),
        Metric("correct", "right answers", "The share of the answers that are right."),
        Metric(
            "rouge",
            "ROUGE-L",
            "The F1 of the longest common subsequence of the answer and of what the same model answers with the full "
            "cache.",
        ),
        Metric(
            "same",
            "same as full",
            "The share of the full cache's answer, in tokens, before this answer first differs from it.",
        ),
        Metric(
            "agreement",
            "next token agrees",
            "The share of the tokens of the wanted answer, fed one by one, at which the most likely token is the full "
            "cache's; where a task wants no answer of its own, the full cache's answer is fed.",
        ),
        Metric(
            "perplexity",
            "perplexity",
            "exp(nats / tokens) of the same tokens; both are summed over the samples of a task before the division. "
            "Lower is better.",
            better=-1,
            share=False,
            ratio=True,
        ),
        Metric(
            "mass",
            "attention kept",
            "The share of the full cache's attention that falls on rows that are still held, in the samples that were "
            "recorded.",
        ),
        Metric(
            "error",
            "output error",
            "How far the attention's output is from the full cache's, relative to its length, in the samples that were "
            "recorded. Lower is better.",
            better=-1,
            share=False,
        ),
        Metric(
            "seconds",
            "seconds",
            "Wall time of a batch, prompt included, divided by its samples. Lower is better.",
            better=-1,
            share=False,
        ),
    )
}


def metric_of(name: str) -> Metric:
    """The metric of this name.

    Raises:
        EvaluationError: if there is none.
    """
    if name not in METRICS:
        raise EvaluationError(f"no metric {name!r}. Hint: the metrics are {', '.join(METRICS)}.")
    return METRICS[name]
