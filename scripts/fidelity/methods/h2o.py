from __future__ import annotations

from collections.abc import Sequence

import torch

from ..prompts import Prompt, Samples, best, mean

RELEASED = """
The authors' code that really drops rows follows the formula, but adds the scores up in the model's own precision,
where a small amount is lost beside a large sum. The H2O in the code of Elastic Cache is another matter: one set of
rows for all layers and heads, chosen by `argsort` as if it were a rank, with scores that do not move with their
rows, and without the recent half: of new rows only the newest is safe.
"""
CHOSEN = """
Scores in float32 at least, for each key/value head (mean over the query heads that share it), and columns of the
table: they move with their rows. Half of the budget for recent rows, as in the authors' runs; `recent` sets the
share.
"""
MEASURED = """
In float16, {lost:.0%} of the amounts that decode steps would add change nothing, and {differ:.1%} of the heavy
hitters after {steps:.0f} steps are others than in float64 ({heavy:.0%} of the tokens are heavy hitters).

The baseline in the Elastic Cache code, which evicts while decoding too: attention to the rows that are left, of all
attention, mean over {steps:.0f} steps. Each column mends one more fault; the last is H2O with one set of rows.

| keep | as released | true ranks | scores move with their rows | recent half |
|---|---|---|---|---|
| {keep_0:.0%} | {released_0:.1%} | {ranked_0:.1%} | {moved_0:.1%} | {recent_0:.1%} |
| {keep_1:.0%} | {released_1:.1%} | {ranked_1:.1%} | {moved_1:.1%} | {recent_1:.1%} |

A row's accumulated score is small while it is new. So without a recent half right scores evict the newest rows
first, and scores that belong to other rows do better by accident.
"""

KEEP = (0.5, 0.2)
MENDED = ("released", "ranked", "moved", "recent")
HEAVY = 0.1


def measure(samples: Samples) -> dict[str, float]:
    texts = samples.texts
    numbers: dict[str, float] = {"heavy": HEAVY, "steps": texts[0].record.steps}
    numbers["lost"], numbers["differ"] = (mean(part) for part in zip(*map(_in_float16, texts), strict=True))
    for place, keep in enumerate(KEEP):
        numbers[f"keep_{place}"] = keep
        for mended, name in enumerate(MENDED):
            numbers[f"{name}_{place}"] = mean(_baseline(one, keep, MENDED[1 : mended + 1]) for one in texts)
    return numbers


def _in_float16(prompt: Prompt) -> tuple[float, float]:
    """Amounts that change nothing, and heavy hitters that are others, where sums are kept in float16."""
    sums = torch.stack([prompt.attention(layer, prompt.tokens).half().sum(2) for layer in range(prompt.layers)])
    exact, lost = prompt.mass.clone(), []
    for step in range(prompt.record.steps):
        paid = prompt.future[:, :, :, step, : prompt.tokens]
        lost.append(mean((sums + paid.half() == sums).double()))
        sums, exact = sums + paid.half(), exact + paid
    count = round(HEAVY * prompt.tokens)
    return mean(lost), 1 - mean((best(sums, count) & best(exact, count)).sum(-1) / count)


def _baseline(prompt: Prompt, keep: float, mended: Sequence[str]) -> float:
    """One set of rows for the whole model: the share of full attention that is on it, mean over steps."""
    tokens, scores = prompt.tokens, prompt.mass.mean((0, 1, 2))
    safe = int(0.5 * keep * tokens) if "recent" in mended else 1  # of the newest rows
    stays = scores[:-safe].argsort() > int(tokens - tokens * keep)
    if mended:
        stays = best(scores[:-safe], round(keep * tokens) - safe)
    rows = [*torch.where(stays)[0].tolist(), *range(tokens - safe, tokens)]
    sums = torch.zeros(prompt.record.length, dtype=scores.dtype)
    moved = scores[rows] if "moved" in mended else scores
    sums[: len(moved)] = moved
    shares = []
    for step in range(prompt.record.steps):
        rows.append(tokens + step)
        shares.append(mean(prompt.future[:, :, :, step, rows].sum(-1)))
        sums[: len(rows)] += torch.softmax(prompt.logits[:, :, :, step, rows], -1).mean((0, 1, 2))
        if len(rows) > round(keep * (tokens + step + 1)):
            gone = int(sums[1 : len(rows) - safe].argmin()) + 1
            del rows[gone]
            sums = torch.cat([sums[:gone], sums[gone + 1 :], sums.new_zeros(1)])
    return mean(shares)
