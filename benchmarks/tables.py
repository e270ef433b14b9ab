"""One layer's table after a prompt, with random rows: what the verbs of a backend work on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.caches import KEEP
from benchmarks.models import Shape
from kvpolicy import CacheView, Column, Fold, KeyNorm, Mean, NearestPosition, Phase, Plan, Scored, Step, TopK
from kvpolicy import backend_by_name as named

__all__ = ["in_numpy", "plan", "prompted"]


def prompted(shape: Shape, length: int, device: torch.device, dtype: torch.dtype, seed: int) -> tuple[CacheView, Step]:
    """A whole prompt of batch 1, laid out as a model's projections leave it: [B, N, H, D], transposed."""
    generator = torch.Generator(device).manual_seed(seed)

    def drawn(heads: int) -> torch.Tensor:
        made = torch.randn(1, length, heads, shape.dim, device=device, dtype=dtype, generator=generator)
        return made.transpose(1, 2)

    places = torch.arange(length, device=device)[None]
    real = torch.ones(1, length, device=device, dtype=torch.bool)
    per_head = (1, shape.heads, length)
    view = CacheView(
        keys=drawn(shape.heads),
        values=drawn(shape.heads),
        positions=places.expand(per_head).contiguous(),
        valid=real.expand(per_head).contiguous(),
        columns={"count": Column(torch.ones(per_head, device=device), on_merge="sum")},
    )
    seen = np.array([length])
    step = Step(
        phase=Phase.PREFILL,
        seen=seen,
        prompt=seen,
        prompt_kept=np.zeros((1, shape.heads), np.int64),
        queries=drawn(shape.query_heads),
        query_positions=places,
        query_valid=real,
        scale=shape.dim**-0.5,
        ops=named("torch"),
        length=length,
    )
    return view, step


def plan(view: CacheView, step: Step, *, merge: bool) -> Plan:
    """Each head keeps the rows with the shortest keys, the first and the last; the others fold into the nearest."""
    batch, heads, rows = view.shape
    scored = Scored(view, KeyNorm().score(view, step))
    selection = TopK(first=1, last=1).select(scored, np.full((batch, heads), round(KEEP * rows)), step)
    return Fold(NearestPosition(), Mean()).merge(scored, selection, step) if merge else Plan(keep=selection.keep)


def in_numpy(data: Any) -> Any:
    """The same view, step or plan with numpy arrays, floating ones in float64; fields that hold no tensor stay."""
    if isinstance(data, torch.Tensor):
        array = data.cpu()
        return (array.double() if array.is_floating_point() else array).numpy()
    if isinstance(data, Column):
        return replace(data, data=in_numpy(data.data))
    if isinstance(data, dict):
        return {name: in_numpy(value) for name, value in data.items()}
    if isinstance(data, CacheView | Step | Plan):
        fields = {name: in_numpy(getattr(data, name)) for name in data.__dataclass_fields__}
        return replace(data, **fields)
    return data
