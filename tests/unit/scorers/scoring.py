"""A scorer by itself: it watches a request pass by pass, and the attention that it should have seen, in plain numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from driving import Request, make_request, rotary, rounded, to, with_image

from kvpolicy import CacheView, Observer, Phase, Plan, Queries, Rows, Step, Windowed, backend_by_name

Arr = np.ndarray[Any, np.dtype[Any]]
Formula = Callable[[Request, int], Sequence[Sequence[float]]]  # an unpadded request, tokens seen -> [H][tokens]

BACKENDS = ["numpy", "torch"]
CHUNKS: list[tuple[int, ...]] = [(5, 5, 2), (3, 1, 1, 7)]  # of a prompt of 12


@dataclass(frozen=True)
class Watched:
    """What a scorer said after one pass."""

    view: CacheView
    step: Step
    scores: Arr  # [B, H, S]

    def line(self, b: int, h: int) -> tuple[list[int], list[float]]:
        """Positions and scores of a head's valid rows, oldest first."""
        host = self.step.ops.host
        positions, valid = host(self.view.positions)[b, h], host(self.view.valid)[b, h]
        order = [n for n in np.argsort(positions, kind="stable") if valid[n]]
        return positions[order].tolist(), [float(score) for score in self.scores[b, h, order]]


def watch(
    scorer: Any,
    request: Request,
    *,
    backend: str = "torch",
    dtype: str = "float64",
    chunks: Sequence[int] = (),
    keep: Sequence[int] | None = None,
    **changes: Any,
) -> list[Watched]:
    """Every pass of a request: the prompt, whole or in chunks, then token by token.

    After the prompt only the rows at the positions in ``keep`` stay. ``changes`` go into every step.
    """
    ops, heads = backend_by_name(backend), request.keys.shape[2]
    batch, left = request.keys.shape[1], np.array(request.left)[:, None]
    store, earlier, start, out = ops.store(0, 1), None, 0, []
    for length in (*(chunks or (request.prompt,)), *(1,) * (request.tokens - request.prompt)):
        now = np.s_[:, :, start : start + length]
        places = np.broadcast_to(np.arange(start, start + length), (batch, length))
        keys, values, queries = (to(backend, d[0][now], dtype) for d in (request.keys, request.values, request.queries))
        columns = {}
        if request.segment is not None:
            columns["segment"] = to(backend, request.segment[:, start : start + length])
        positions, valid = to(backend, places), to(backend, places >= left)
        view = store.append(Rows(keys, values, positions, valid, columns))
        start += length
        step = Step(
            phase=Phase.PREFILL if start <= request.prompt else Phase.DECODE,
            seen=start - left[:, 0],
            prompt=np.minimum(start, request.prompt) - left[:, 0],
            prompt_kept=np.zeros((batch, heads), np.int64),
            queries=queries,
            query_positions=positions,
            query_valid=valid,
            scale=request.scale,
            ops=ops,
            length=start,
            earlier=earlier,
            **changes,
        )
        if isinstance(scorer, Observer):
            observed = scorer.observe(view, step)
            store.observe(observed)
            view = view.with_columns(observed)
        scores = scorer.score(view, step)
        assert view.xp.isdtype(scores.dtype, "real floating")
        assert not np.isnan(ops.host(scores)[ops.host(view.valid)]).any()
        out.append(Watched(view, step, ops.host(scores).copy()))
        last = step.latest(scorer.window if isinstance(scorer, Windowed) else 1)
        earlier = Queries(last.queries, last.query_positions, last.query_valid)
        if keep is not None and start == request.prompt:
            stays = view.valid & to(backend, np.isin(ops.host(view.positions), keep))
            store.apply(Plan(keep=stays), ops.host(stays).sum(axis=-1))
    return out


def paid(request: Request) -> Arr:
    """The causal attention of every query head of an unpadded request, [Hq, N, N]."""
    heads, tokens = request.queries.shape[2], request.tokens
    keys = np.repeat(request.keys[0, 0], heads // request.keys.shape[2], axis=0)
    logits = request.scale * np.einsum("hid,hjd->hij", request.queries[0, 0], keys)
    logits = np.where(np.tril(np.ones((tokens, tokens), dtype=bool)), logits, -np.inf)
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def of_group(attention: Arr, h: int, heads: int) -> Arr:
    """Mean over the query heads of a key/value head, [N, N]."""
    group = len(attention) // heads
    return np.mean(attention[h * group : (h + 1) * group], axis=0)


def requests(dtype: str = "float64") -> list[Request]:
    """Of every kind: grouped heads, padding, an image, all attention equal, all on one row, one token."""
    made = [
        make_request(groups=2, prompt=12, steps=3),
        make_request(seed=1, batch=3, heads=1, groups=3, prompt=12, steps=3, padding=(0, 4, 11)),
        make_request(seed=2, batch=2, groups=1, prompt=12, steps=2, kind="flat", padding=(3, 0)),
        make_request(seed=3, groups=2, prompt=12, steps=2, kind="dominant"),
        make_request(seed=4, prompt=1, steps=3),
    ]
    return [rounded(with_image(request, 2, min(7, request.prompt)), dtype) for request in made]


def agrees(
    scorer: Any,
    formula: Formula,
    *,
    backend: str = "torch",
    dtype: str = "float64",
    tolerance: float = 1e-11,
    chunked: bool = True,
    **changes: Any,
) -> None:
    """After every pass of every request, whole and in chunks, the scores are those of the formula."""
    for request in requests(dtype):
        known: dict[tuple[int, int], Sequence[Sequence[float]]] = {}
        for chunks in [(), *(CHUNKS if chunked and request.prompt == 12 else ())]:
            said = watch(scorer, request, backend=backend, dtype=dtype, chunks=chunks, **changes)
            for one in said[max(len(chunks) - 1, 0) :]:
                for b, left in enumerate(request.left):
                    tokens = int(one.step.seen[b])
                    if (b, tokens) not in known:
                        known[b, tokens] = formula(request.alone(b), tokens)
                    due = known[b, tokens]
                    for h in range(request.keys.shape[2]):
                        positions, scores = one.line(b, h)
                        assert positions == list(range(left, left + tokens))
                        np.testing.assert_allclose(scores, due[h], rtol=tolerance, atol=tolerance)


__all__ = [
    "BACKENDS",
    "CHUNKS",
    "Formula",
    "Watched",
    "agrees",
    "of_group",
    "paid",
    "replace",
    "requests",
    "rotary",
    "watch",
]
