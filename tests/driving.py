"""A stand-in for a model: given queries, keys and values go through a `Session`, attended in plain numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from kvpolicy import CacheView, Pass, Policy, Session, backend_by_name

__all__ = [
    "PassTrace",
    "Request",
    "Table",
    "Trace",
    "attend",
    "drive",
    "feed",
    "make_request",
    "only",
    "requests",
    "rotary",
    "rounded",
    "same_tables",
    "segments",
    "splits",
    "table_of",
    "tables_of",
    "to",
    "with_image",
]

Arr = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Request:
    """What a model would compute for one batch: L layers, N tokens, the first ``prompt`` of them a prompt."""

    queries: Arr  # [L, B, Hq, N, D]
    keys: Arr  # [L, B, H, N, D]
    values: Arr  # [L, B, H, N, Dv]
    prompt: int
    scale: float
    padding: tuple[int, ...] = ()  # left padding of each batch row; none if empty
    segment: Arr | None = None  # int64 [B, N], 1 where a token is part of an image; None: not said

    def __repr__(self) -> str:
        """Sizes only: hypothesis reproduces a failing case by its blob, and kilobytes of numbers help nobody."""
        sizes = dict(zip("LBHN", self.keys.shape, strict=False), Hq=self.queries.shape[2])
        segment = None if self.segment is None else self.segment.tolist()
        return f"Request({sizes}, prompt={self.prompt}, padding={self.padding}, segment={segment})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))  # hypothesis prints dataclasses field by field otherwise

    @property
    def left(self) -> tuple[int, ...]:
        return self.padding or (0,) * self.queries.shape[1]

    @property
    def tokens(self) -> int:
        return int(self.queries.shape[3])

    def alone(self, b: int) -> Request:
        """Batch row ``b`` without its padding."""
        rows = np.s_[:, b : b + 1, :, self.left[b] :]
        cut = (np.ascontiguousarray(data[rows]) for data in (self.queries, self.keys, self.values))
        segment = None if self.segment is None else self.segment[b : b + 1, self.left[b] :]
        return Request(*cut, prompt=self.prompt - self.left[b], scale=self.scale, segment=segment)


@dataclass(frozen=True)
class Table:
    """The valid rows of one head, oldest first."""

    positions: list[int]
    keys: Arr  # [n, D]
    values: Arr  # [n, Dv]
    columns: dict[str, Arr]  # each [n]


@dataclass(frozen=True)
class PassTrace:
    """One forward pass: what attention gave and what the tables were after it."""

    outputs: Arr  # [L, B, Hq, Q, Dv]
    tables: list[list[list[Table]]]  # [layer][batch row][head]


@dataclass(frozen=True)
class Trace:
    session: Session
    passes: list[PassTrace] = field(default_factory=list)


def to(backend: str, data: Any, dtype: str | None = None) -> Any:
    """A fresh array of that backend: nothing that a store does to it reaches the test's own data."""
    if backend == "numpy":
        return np.array(data, dtype=dtype)
    made = torch.tensor(np.asarray(data), device="cuda" if backend == "triton" and torch.cuda.is_available() else "cpu")
    return made if dtype is None else made.to(getattr(torch, dtype))


def rotary(x: Any, by: Any) -> Any:
    """Vectors [..., D] of even D turned by so many positions [...]: the half-rotation layout with base 10000."""
    vectors, turn = np.asarray(x, dtype=np.float64), np.asarray(by, dtype=np.float64)
    half = vectors.shape[-1] // 2
    angle = turn[..., None] * 10000.0 ** (-np.arange(half) / half)
    one, other = vectors[..., :half], vectors[..., half:]
    cos, sin = np.cos(angle), np.sin(angle)
    turned = np.concatenate([one * cos - other * sin, other * cos + one * sin], axis=-1)
    return turned.astype(x.dtype) if isinstance(x, np.ndarray) else torch.as_tensor(turned).to(x.dtype)


def on_host(vectors: Any, host: Any) -> Arr:
    """Keys or values as numpy, which has no bfloat16."""
    if isinstance(vectors, torch.Tensor) and vectors.dtype == torch.bfloat16:
        vectors = vectors.float()
    return np.asarray(host(vectors))


def attend(
    view: CacheView, queries: Arr, positions: Arr, scale: float, host: Any, *, count_bias: bool = False
) -> tuple[Arr, Arr]:
    """Outputs [B, Hq, Q, Dv] and probabilities [B, Hq, Q, S]; zeros for a query that sees nothing."""
    per_head = queries.shape[1] // view.shape[1]
    columns = (on_host(view.keys, host), on_host(view.values, host), host(view.positions), host(view.valid))
    keys, values, places, valid = (np.repeat(data, per_head, axis=1) for data in columns)
    seen = valid[:, :, None, :] & (places[:, :, None, :] <= positions[:, None, :, None])
    logits = scale * np.einsum("bhqd,bhsd->bhqs", queries, keys.astype(np.float64))
    if count_bias:
        count = np.repeat(host(view.columns["count"].data), per_head, axis=1)
        logits = logits + np.log(np.where(valid, count, 1.0), dtype=np.float64)[:, :, None, :]
    logits = np.where(seen, logits, -np.inf)
    top = logits.max(axis=-1, keepdims=True)
    shares = np.exp(logits - np.where(np.isfinite(top), top, 0.0))
    shares = shares / np.maximum(shares.sum(axis=-1, keepdims=True), 1e-300)
    return np.einsum("bhqs,bhsd->bhqd", shares, values.astype(np.float64)), shares


def table_of(view: CacheView, b: int, h: int, host: Any) -> Table:
    positions = host(view.positions)[b, h]
    rows = [n for n in np.argsort(positions, kind="stable").tolist() if host(view.valid)[b, h, n]]
    return Table(
        positions=positions[rows].tolist(),
        keys=on_host(view.keys, host)[b, h, rows],
        values=on_host(view.values, host)[b, h, rows],
        columns={name: host(column.data)[b, h, rows] for name, column in view.columns.items()},
    )


def drive(
    policy: Policy,
    request: Request,
    *,
    backend: str = "torch",
    dtype: str = "float64",
    chunks: Sequence[int] | None = None,
    session: Session | None = None,
    **settings: Any,
) -> Trace:
    """Run a whole request: the prompt (in ``chunks`` that sum to it, or whole), then one token at a time."""
    if chunks is not None:
        settings.setdefault("prompt_length", request.prompt)
    trace = Trace(session or Session(policy, backend_by_name(backend), len(request.keys), **settings))
    start = 0
    for length in (*(chunks or (request.prompt,)), *(1,) * (request.tokens - request.prompt)):
        trace.passes.append(feed(trace.session, request, start, length, dtype=dtype))
        start += length
    return trace


def feed(session: Session, request: Request, start: int, length: int, *, dtype: str = "float64") -> PassTrace:
    """One forward pass over ``length`` tokens."""
    backend, host = session.ops.name, session.ops.host
    layers, batch = request.keys.shape[:2]
    now = np.s_[start : start + length]
    positions = np.broadcast_to(np.arange(start, start + length), (batch, length))
    valid = positions >= np.array(request.left)[:, None]
    columns = {} if request.segment is None else {"segment": to(backend, request.segment[:, now])}
    step = Pass(start, to(backend, positions), to(backend, valid), valid.sum(axis=1).astype(np.int64), columns)
    outputs = []
    for layer in range(layers):
        keys, values, queries = (
            to(backend, data[layer][:, :, now], dtype) for data in (request.keys, request.values, request.queries)
        )
        view = session.append(layer, keys, values, step)
        asking = request.queries[layer][:, :, now]
        if session.policy.positions == "slots":
            queries = session.turned(layer, queries, step)
            asking = on_host(queries, host).astype(np.float64)
        bias = session.policy.count_bias
        outputs.append(attend(view, asking, positions, request.scale, host, count_bias=bias)[0])
        session.advance(layer, queries, request.scale, step)
    return PassTrace(np.stack(outputs), tables_of(session, batch))


def tables_of(session: Session, batch: int) -> list[list[list[Table]]]:
    """All tables as they are; a whole-model allocator acts on every layer after the last has attended."""
    views = [session._layers[layer].store.view() for layer in range(len(session))]
    host = session.ops.host
    return [[[table_of(view, b, h, host) for h in range(view.shape[1])] for b in range(batch)] for view in views]


def same_tables(one: PassTrace, other: PassTrace, *, tolerance: float = 0.0, shift: int = 0) -> None:
    """The same rows in both: equal positions (``one`` minus ``shift``) and keys, values and columns to a tolerance."""
    for mine, yours in zip(one.tables, other.tables, strict=True):
        for my_heads, your_heads in zip(mine, yours, strict=True):
            for a, b in zip(my_heads, your_heads, strict=True):
                assert [p - shift for p in a.positions] == b.positions
                assert a.columns.keys() == b.columns.keys()
                pairs = [(a.keys, b.keys), (a.values, b.values), *((a.columns[c], b.columns[c]) for c in a.columns)]
                for left, right in pairs:
                    np.testing.assert_allclose(left, right, rtol=tolerance, atol=tolerance)


def only(trace: PassTrace, b: int, queries: int) -> PassTrace:
    """Batch row ``b`` of a pass, its last ``queries`` queries."""
    return PassTrace(trace.outputs[:, b : b + 1, :, -queries:], [[layer[b]] for layer in trace.tables])


def make_request(
    *,
    seed: int = 0,
    layers: int = 1,
    batch: int = 1,
    heads: int = 2,
    groups: int = 1,
    dim: int = 4,
    value_dim: int | None = None,
    prompt: int = 8,
    steps: int = 4,
    padding: tuple[int, ...] = (),
    kind: str = "random",
) -> Request:
    """Data of a kind.

    ``random``: normal. ``flat``: queries of zero, every query pays all it sees the same. ``dominant``: in each layer
    one row takes everything, so that the attention on every row after it is exactly 0 and they all tie.
    """
    rng = np.random.default_rng(seed)
    tokens = prompt + steps
    queries = rng.standard_normal((layers, batch, heads * groups, tokens, dim))
    keys = rng.standard_normal((layers, batch, heads, tokens, dim))
    values = rng.standard_normal((layers, batch, heads, tokens, dim if value_dim is None else value_dim))
    if kind == "flat":
        queries = np.zeros_like(queries)
    elif kind == "dominant":
        queries, keys = np.ones_like(queries), np.zeros_like(keys)
        for layer in range(layers):
            keys[layer, :, :, rng.integers(max(padding, default=0), prompt)] = 1e4
    return Request(queries, keys, values, prompt, 2.0 * dim**-0.5, padding)


def with_image(request: Request, start: int, stop: int) -> Request:
    """The same request where the tokens ``start .. stop - 1`` are an image."""
    segment = np.zeros((request.keys.shape[1], request.tokens), dtype=np.int64)
    segment[:, start:stop] = 1
    return replace(request, segment=segment)


def rounded(request: Request, dtype: str) -> Request:
    """The same request as a model of that dtype computes it."""
    data = (to("torch", array, dtype).double().numpy() for array in (request.queries, request.keys, request.values))
    return replace(request, **dict(zip(("queries", "keys", "values"), data, strict=True)))


@st.composite
def requests(
    draw: st.DrawFn,
    *,
    max_prompt: int = 40,
    max_steps: int = 10,
    max_batch: int = 1,
    max_layers: int = 2,
    padded: bool = False,
    images: bool = False,
    even: bool = False,
) -> Request:
    """Requests of every shape.

    With ``padded``, each batch row has its own left padding; with ``images``, image tokens of its own. ``even``: an
    even key dim, as rotary embeddings need.
    """
    prompt = draw(st.integers(1, max_prompt), label="prompt")
    batch = draw(st.integers(1, max_batch), label="batch")
    steps = draw(st.integers(0, max_steps), label="steps")
    pads = st.tuples(*(st.integers(0, prompt - 1) for _ in range(batch)))
    request = make_request(
        seed=draw(st.integers(0, 2**32 - 1), label="seed"),
        layers=draw(st.integers(1, max_layers), label="layers"),
        batch=batch,
        heads=draw(st.integers(1, 4), label="heads"),
        groups=draw(st.integers(1, 3), label="groups"),
        dim=2 * draw(st.integers(1, 4), label="dim") if even else draw(st.integers(1, 8), label="dim"),
        value_dim=draw(st.integers(1, 8), label="value_dim"),
        prompt=prompt,
        steps=steps,
        padding=draw(pads, label="padding") if padded else (),
        kind=draw(st.sampled_from(["random", "random", "flat", "dominant"]), label="kind"),
    )
    if images:
        rows = [draw(segments(prompt, steps), label="segment") for _ in range(batch)]
        request = replace(request, segment=np.array(rows))
    return request


@st.composite
def segments(draw: st.DrawFn, prompt: int, steps: int) -> list[int]:
    """Image (1) and text (0) tokens: one image or a mixture in the prompt, text after it."""
    if draw(st.booleans()):
        start, stop = sorted(draw(st.tuples(st.integers(0, prompt), st.integers(0, prompt))))
        shown = [int(start <= t < stop) for t in range(prompt)]
    else:
        shown = draw(st.lists(st.integers(0, 1), min_size=prompt, max_size=prompt))
    return [*shown, *[0] * steps]


@st.composite
def splits(draw: st.DrawFn, total: int) -> tuple[int, ...]:
    """``total`` as a sum of chunk lengths."""
    cuts = sorted(draw(st.sets(st.integers(1, total - 1), max_size=4))) if total > 1 else []
    edges = [0, *cuts, total]
    return tuple(b - a for a, b in pairwise(edges))
