"""One query a batch row over a table, as in decoding: equal heads, and ragged ones with as many rows in all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.decoding import distance
from benchmarks.models import LLAMA, LLAVA, QWEN, SMALL, Shape
from benchmarks.suite import Hold, Suite
from kvpolicy.backends.triton.decode import decode_attention

__all__ = ["decode_attention_arms"]

SHAPES = {False: (LLAVA, LLAMA, QWEN), True: (SMALL,)}
BATCH, ROWS = {False: 16, True: 2}, {False: 307, True: 24}
BUFFERS = 6  # of 80 MB each at the first shape
ALLOWED = 1e-2  # relative, bfloat16 against float64


@dataclass(frozen=True)
class Ragged:
    """Rows of all heads one after another, as the store keeps them where heads differ.

    Attributes:
        queries: [B, Hq, 1, D].
        keys: [R, D].
        values: [R, D].
        base: int64 [B, H], where each head begins.
        length: int64 [B, H], its rows.
        visible: bool [B, H, S].
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    base: Tensor
    length: Tensor
    visible: Tensor


def ragged(shape: Shape, batch: int, rows: int, spread: float, device: torch.device, seed: int) -> Ragged:
    """Heads of ``rows`` rows on average, between 1 - spread and 1 + spread times that."""
    generator = torch.Generator().manual_seed(seed)
    part = (batch, shape.heads)
    share = 1 + spread * (2 * torch.rand(part, generator=generator) - 1)
    length = (rows * share).round().long()
    short = rows * length.numel() - int(length.sum())  # the same number in all, whatever was drawn
    length.view(-1)[: abs(short)] += 1 if short > 0 else -1
    flat = length.flatten()
    base = (flat.cumsum(0) - flat).view(part)
    visible = torch.arange(int(length.max())) < length[..., None]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    made = torch.Generator(device).manual_seed(seed)

    def drawn(*size: int) -> Tensor:
        return torch.randn(*size, device=device, dtype=dtype, generator=made)

    count = int(flat.sum())
    return Ragged(
        queries=drawn(batch, shape.query_heads, 1, shape.dim),
        keys=drawn(count, shape.dim),
        values=drawn(count, shape.dim),
        base=base.to(device),
        length=length.to(device),
        visible=visible.to(device),
    )


def flat(table: Ragged) -> Tensor:
    """The kernel, from where the rows lie."""
    dim = table.queries.shape[-1]
    return decode_attention(
        *(table.queries, table.keys, table.values),
        visible=table.visible,
        base=table.base,
        length=table.length,
        scale=dim**-0.5,
    )[0]


def block(table: Ragged) -> Tensor:
    """The kernel over equal heads, which are a block."""
    keys, values = _blocks(table)
    return decode_attention(table.queries, keys, values, scale=table.queries.shape[-1] ** -0.5)[0]


def sdpa(table: Ragged) -> Tensor:
    """torch's own attention over equal heads."""
    keys, values = _blocks(table)
    grouped = table.queries.shape[1] != keys.shape[1]
    return scaled_dot_product_attention(table.queries, keys, values, enable_gqa=grouped)


def shares(table: Ragged) -> Tensor:
    """The kernel over equal heads, with what each row receives, as accumulating policies need it."""
    keys, values = _blocks(table)
    return decode_attention(table.queries, keys, values, scale=table.queries.shape[-1] ** -0.5, want_shares=True)[0]


def decode_attention_arms(suite: Suite) -> None:
    """All shapes."""
    batch, rows = BATCH[suite.small], ROWS[suite.small]
    for shape in SHAPES[suite.small]:
        case = {"case": "decode attention", "model": shape.model, "batch": batch, "rows": rows}
        for arm, spread, run in (
            ("sdpa, equal heads", 0.0, sdpa),
            ("kernel, equal heads", 0.0, block),
            ("kernel, equal heads, with shares", 0.0, shares),
            ("kernel, equal heads in flat storage", 0.0, flat),
            ("kernel, ragged heads", 0.8, flat),
        ):

            def measured(hold: Hold, shape: Shape = shape, spread: float = spread, run: Any = run) -> dict[str, Any]:
                tables = [ragged(shape, batch, rows, spread, suite.device, seed) for seed in range(BUFFERS)]
                hold("float64, head by head", distance(run(tables[0])[:, :, 0].cpu(), _due(tables[0])), ALLOWED)
                times = suite.timed(run, tables, queued=True)
                moved = tables[0].keys.nbytes + tables[0].values.nbytes
                gb_s = moved / times.median / 1e6
                longest = int(tables[0].length.max())
                of_copy = gb_s / suite.ceilings["copy_gb_s"]
                return {"ms": times, "gb_s": gb_s, "of_copy": of_copy, "longest_head": longest}

            suite.arm(case, arm, measured)


def _blocks(table: Ragged) -> tuple[Tensor, Tensor]:
    """Keys and values as [B, H, S, D], where all heads are alike."""
    shape = (*table.visible.shape, table.keys.shape[-1])
    return table.keys.view(shape), table.values.view(shape)


def _due(table: Ragged) -> Tensor:
    """[B, Hq, D] in float64, from the formula."""
    batch, asking, _, dim = table.queries.shape
    heads = table.base.shape[1]
    due = torch.empty(batch, asking, dim, dtype=torch.float64)
    keys, values, queries = (data.double().cpu() for data in (table.keys, table.values, table.queries))
    for b in range(batch):
        for h in range(heads):
            first, count = int(table.base[b, h]), int(table.length[b, h])
            own = slice(first, first + count)
            mine = slice(h * (asking // heads), (h + 1) * (asking // heads))
            logits = queries[b, mine, 0] @ keys[own].T * dim**-0.5
            due[b, mine] = logits.softmax(-1) @ values[own]
    return due
