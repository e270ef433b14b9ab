"""Rows of an evaluation that never ran."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

SCHEMA: Mapping[str, Any] = {
    "task": pl.String,
    "sample": pl.Int64,
    "group": pl.String,
    "policy": pl.String,
    "keep": pl.Float64,
    **dict.fromkeys(("quality", "correct", "rouge"), pl.Float64),
    **dict.fromkeys(("same", "new_tokens"), pl.Int64),
    **dict.fromkeys(("agreement", "nats"), pl.Float64),
    "scored": pl.Int64,
    **dict.fromkeys(("mass", "error"), pl.Float64),
    **dict.fromkeys(("prompt_tokens", "kv_bytes", "full_kv_bytes"), pl.Int64),
    "seconds": pl.Float64,
    **dict.fromkeys(("said", "answer"), pl.String),
}
WORDS = "the red bird sits by a green cup near two tall trees and sees one small dog".split()


def frame(rows: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """The rows as a table; what a row leaves out is null, but for bytes and text."""
    made = []
    for row in rows:
        keep = row.get("keep", 1.0)
        usual = {
            "group": "",
            "keep": keep,
            "prompt_tokens": 100,
            "kv_bytes": round(1000 * (0.3 if keep is None else keep)),
            "full_kv_bytes": 1000,
            "said": "",
        }
        made.append({name: {**usual, **row}.get(name) for name in SCHEMA})
    return pl.DataFrame(made, schema=dict(SCHEMA))


def simple(
    values: Mapping[tuple[str, float | None], Sequence[float | None]],
    *,
    task: str = "cups",
    groups: Sequence[str] | None = None,
    metric: str = "quality",
) -> pl.DataFrame:
    """One metric of some arms, a value a sample."""
    return frame(
        [
            {
                "task": task,
                "sample": sample,
                "policy": policy,
                "keep": keep,
                metric: value,
                "group": groups[sample] if groups else "",
            }
            for (policy, keep), samples in values.items()
            for sample, value in enumerate(samples)
        ]
    )


def realistic(
    *,
    tasks: Sequence[str] = ("where", "needle", "story"),
    policies: Sequence[str] = ("h2o", "snapkv", "random"),
    keeps: Sequence[float] = (0.5, 0.2),
    own: Sequence[str] = (),
    samples: int = 12,
    seed: int = 0,
) -> pl.DataFrame:
    """Rows as a run gives them: policies differ, harder budgets hurt, four samples share a group.

    Every third task is scored by likelihood and generates nothing; two samples of each task have mass and error.
    """
    rng = np.random.default_rng(seed)
    arms: list[tuple[str, float | None]] = [("full", 1.0)]
    arms += [(policy, keep) for policy in policies for keep in keeps]
    arms += [(policy, None) for policy in own]
    strength = {policy: np.random.default_rng(zlib.crc32(policy.encode())).uniform(0.15, 1) for policy, _ in arms}
    rows: list[dict[str, Any]] = []
    for number, task in enumerate(tasks):
        forced = number % 3 == 2
        for sample in range(samples):
            hard = rng.uniform(0, 0.5)
            tokens = int(rng.integers(4, 9))
            whole = " ".join(rng.choice(WORDS, tokens))
            nats = rng.gamma(2.0, 0.6) * tokens
            prompt = int(rng.integers(180, 900))
            for policy, keep in arms:
                held = 1.0 if policy == "full" else min((keep or 0.3) * rng.uniform(1.0, 1.15), 1.0)
                harm = 0.0 if policy == "full" else 1.5 * (1 - held) ** 3 / strength[policy] * (0.4 + hard)
                right = float(rng.uniform() < 0.95 * np.exp(-2.0 * harm) * (1 - 0.3 * hard))
                first = tokens if policy == "full" or rng.uniform() > harm else int(rng.integers(0, tokens))
                words = whole.split()[:first] + list(rng.choice(WORDS, tokens - first))
                lost = nats + tokens * harm * rng.uniform(0.2, 1.4)
                recorded = sample < 2
                rows.append(
                    {
                        "task": task,
                        "sample": sample,
                        "group": f"picture {sample // 4}",
                        "policy": policy,
                        "keep": keep,
                        "quality": np.exp((nats - lost) / tokens) if forced else right,
                        "correct": None if forced else right,
                        "rouge": None if forced else 2 * first / (tokens + max(first, tokens)),
                        "same": None if forced else first,
                        "new_tokens": 0 if forced else tokens,
                        "agreement": max(0.0, 1 - harm * rng.uniform(0.2, 1.0)),
                        "nats": lost,
                        "scored": tokens,
                        "mass": (held + 1) / 2 if recorded else None,
                        "error": harm if recorded else None,
                        "prompt_tokens": prompt,
                        "kv_bytes": round(held * prompt * 256),
                        "full_kv_bytes": prompt * 256,
                        "seconds": 0.2 + 0.001 * prompt * held * rng.uniform(0.9, 1.1),
                        "said": "" if forced else " ".join(words),
                        "answer": None if forced else whole,
                    }
                )
    return frame(rows)
