"""One request, layer by layer and pass by pass: what every method starts from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .rope import rotate

__all__ = ["IMAGE", "TEXT", "Arr", "Head", "Inputs", "Now", "Outcome", "Row", "budget", "causal_attention", "simulate"]

Arr = np.ndarray[Any, np.dtype[Any]]

TEXT, IMAGE = 0, 1


@dataclass(frozen=True)
class Inputs:
    """What a model computes for one request without padding; ``Hq / H`` neighbouring query heads share a head.

    ``store`` is what writing a vector into the cache does to it: rounding, where the cache is half precision.
    ``exact_sums``: whether what is compared with adds the same numbers up to the same sum, to the last bit. A
    vectorised sum over queries need not, where the rows do not fill its lanes; the formulas then do not decide between
    equal sums.
    """

    q: Arr  # [L, Hq, N, D], after the rotary embedding
    k: Arr  # [L, H, N, D], after the rotary embedding
    v: Arr  # [L, H, N, Dv]
    prompt: int  # the first so many tokens are the prompt, every other one is a pass of its own
    scale: float
    segment: Arr | None = None  # int [N], IMAGE or TEXT; None: all text
    store: Callable[[Arr], Arr] = np.asarray
    exact_sums: bool = True


@dataclass
class Row:
    """One cached row of one head."""

    position: int
    key: Arr
    value: Arr
    segment: int = TEXT
    count: float = 1  # tokens it stands for
    mass: float = 0.0  # attention it has received so far, mean over the query heads of its head
    paid: dict[int, list[float]] = field(default_factory=dict)  # by a query's position: what each query head paid it


Head = list[Row]  # in order of arrival


@dataclass
class Now:
    """A request after a pass has attended and before its method acts; the method replaces the heads in ``layers``."""

    layers: list[list[Head]]
    queries: Arr  # [L, Hq, n, D], all n so far
    scale: float
    decoding: bool

    @property
    def seen(self) -> int:
        """Tokens so far."""
        return int(self.queries.shape[2])

    def holds_more_than(self, rows: int) -> bool:
        """Whether the model holds more than so many rows per layer and head on average."""
        heads = [head for layer in self.layers for head in layer]
        return sum(len(head) for head in heads) > rows * len(heads)


@dataclass
class Outcome:
    """After a pass: the rows of each layer and head, and what the pass's queries read, [L, Hq, Q, Dv]."""

    layers: list[list[Head]]
    outputs: Arr


def budget(tokens: int, keep: float | None, rows: int | None) -> int:
    """Rows that may stay: a constant, or a share of the tokens seen, half to even, at least one."""
    if rows is not None:
        return rows
    assert keep is not None
    return max(1, round(keep * tokens))


def causal_attention(
    q: Arr, k: Arr, scale: float, asked_at: list[int], stands_at: list[list[int]], bias: list[list[float]] | None = None
) -> list[list[list[float]]]:
    """Probabilities [Hq][Q][n] of queries [Hq, Q, D] over the rows of H heads, of which each has its own number.

    A query at ``asked_at[i]`` sees the rows of its head that stand at or before it. ``bias`` is added to the logits.
    """
    group = len(q) // len(k)
    shares = [[[0.0] * len(k[head // group]) for _ in asked_at] for head in range(len(q))]
    for head, lines in enumerate(shares):
        shared = head // group
        for i, line in enumerate(lines):
            seen = [j for j in range(len(line)) if stands_at[shared][j] <= asked_at[i]]
            logits = [scale * float(q[head][i] @ k[shared][j]) for j in seen]
            if bias is not None:
                logits = [logit + bias[shared][j] for logit, j in zip(logits, seen, strict=True)]
            largest = max(logits)
            powers = [math.exp(logit - largest) for logit in logits]
            total = sum(powers)
            for j, power in zip(seen, powers, strict=True):
                line[j] = power / total
    return shares


def simulate(
    inputs: Inputs, act: Callable[[Now], None], *, count_bias: bool = False, slots: bool = False
) -> list[Outcome]:
    """The prompt, then a token at a time; after each of them, ``act`` may remove and change rows.

    ``count_bias``: attend with ``+ log(count)``. ``slots``: attend with every key, and every query, rotated from its
    position to the place that its row has in the table.
    """
    layers: list[list[Head]] = [[[] for _ in range(inputs.k.shape[1])] for _ in inputs.k]
    segment = [TEXT] * inputs.k.shape[2] if inputs.segment is None else [int(s) for s in inputs.segment]
    outcomes = []
    for start, stop in [(0, inputs.prompt), *((t, t + 1) for t in range(inputs.prompt, inputs.q.shape[2]))]:
        outputs = []
        for layer, heads in enumerate(layers):
            for h, head in enumerate(heads):
                head.extend(
                    Row(t, inputs.k[layer, h, t], inputs.v[layer, h, t], segment[t]) for t in range(start, stop)
                )
            outputs.append(_attend(inputs, layer, heads, start, stop, count_bias=count_bias, slots=slots))
        now = Now(layers, inputs.q[:, :, :stop], inputs.scale, decoding=stop > inputs.prompt)
        act(now)
        layers = [
            [[replace(row, key=inputs.store(row.key), value=inputs.store(row.value)) for row in head] for head in heads]
            for heads in now.layers
        ]
        outcomes.append(
            Outcome([[[replace(row) for row in head] for head in heads] for heads in layers], np.array(outputs))
        )
    return outcomes


def _attend(
    inputs: Inputs, layer: int, heads: list[Head], start: int, stop: int, *, count_bias: bool, slots: bool
) -> Arr:
    """What the queries of a pass read, [Hq, Q, Dv]; every row notes what it was paid."""
    queries = inputs.q[layer, :, start:stop]
    keys = [[row.key for row in head] for head in heads]
    group = len(queries) // len(heads)
    if slots:
        keys = [[rotate(row.key, n - row.position) for n, row in enumerate(head)] for head in heads]
        turned = np.array(queries)
        for hq, i in np.ndindex(*queries.shape[:2]):
            (slot,) = [n for n, row in enumerate(heads[hq // group]) if row.position == start + i]
            turned[hq, i] = rotate(queries[hq, i], slot - (start + i))
        queries = turned
    shares = causal_attention(
        queries,
        keys,  # type: ignore[arg-type]
        inputs.scale,
        list(range(start, stop)),
        [[row.position for row in head] for head in heads],
        [[math.log(row.count) for row in head] for head in heads] if count_bias else None,
    )
    outputs = np.zeros((*queries.shape[:2], inputs.v.shape[3]))
    for hq, i in np.ndindex(*queries.shape[:2]):
        for j, row in enumerate(heads[hq // group]):
            outputs[hq, i] += shares[hq][i][j] * row.value
    for h, head in enumerate(heads):
        for j, row in enumerate(head):
            for i in range(stop - start):
                if row.position <= start + i:
                    row.paid[start + i] = [shares[h * group + g][i][j] for g in range(group)]
                    row.mass += sum(row.paid[start + i]) / group
    return outputs
