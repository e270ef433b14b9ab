"""What attention mass costs beside the attention itself: one layer's prefill on one GPU.

    python -m benchmarks.attention_mass result.json

Before anything is timed, the triton backend is held against the torch backend, which accumulates in float32, on the
same tensors and in this process: no sum may be off by more than `TOLERANCE` of itself, or nothing is timed. Then three
arms, on random bfloat16 data in rotating buffers: causal attention as torch's sdpa computes it (its own choice of
kernel; grouped heads are not expanded), and the column sums by either backend. Each time is the median of CUDA events
around single calls, with the fastest and the slowest beside it.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton
from torch.nn.functional import scaled_dot_product_attention

import kvpolicy
from kvpolicy import CacheView, Phase, Step
from kvpolicy.backends.torch import TorchBackend
from kvpolicy.backends.triton import TritonBackend

LENGTHS = (1024, 4096, 16384, 32768)
TOLERANCE = 1e-4  # both sum in float32, in different orders; a wrong mask or a lost tile is off by far more
BUFFERS = 3
WARM_UPS, SECONDS, FEWEST, MOST = 3, 0.5, 5, 50


@dataclass(frozen=True)
class Shape:
    """One layer of a model: query heads, key/value heads, head dim."""

    model: str
    query_heads: int
    heads: int
    dim: int


SHAPES = (Shape("LLaVA-1.5-7B", 32, 32, 128), Shape("Llama-3.1-8B", 32, 8, 128))


def inputs(shape: Shape, length: int, seed: int) -> tuple[CacheView, Step]:
    """A whole prompt of batch 1, laid out as a model's projections leave it: [B, N, H, D], transposed."""
    generator = torch.Generator("cuda").manual_seed(seed)

    def drawn(heads: int) -> torch.Tensor:
        made = torch.randn(1, length, heads, shape.dim, device="cuda", dtype=torch.bfloat16, generator=generator)
        return made.transpose(1, 2)

    places = torch.arange(length, device="cuda")[None]
    real = torch.ones(1, length, device="cuda", dtype=torch.bool)
    per_head = (1, shape.heads, length)
    view = CacheView(drawn(shape.heads), drawn(shape.heads), places.expand(per_head), real.expand(per_head), {})
    seen = np.array([length])
    none_kept = np.zeros((1, shape.heads), np.int64)
    step = Step(
        *(Phase.PREFILL, seen, seen, none_kept, drawn(shape.query_heads), places, real, shape.dim**-0.5),
        ops=TorchBackend(),
    )
    return view, step


def attention(view: CacheView, step: Step) -> torch.Tensor:
    """The layer's own attention."""
    grouped = step.queries.shape[1] != view.keys.shape[1]
    return scaled_dot_product_attention(
        step.queries, view.keys, view.values, is_causal=True, scale=step.scale, enable_gqa=grouped
    )


ARMS: dict[str, Callable[[CacheView, Step], Any]] = {
    "sdpa": attention,
    "torch": TorchBackend().attention_mass,
    "triton": TritonBackend().attention_mass,
}


def error(view: CacheView, step: Step) -> float:
    """The largest relative difference of a sum between the two backends.

    Raises:
        SystemExit: if it is more than `TOLERANCE`, or not a number, or two runs of the kernels differ.
    """
    due = ARMS["torch"](view, step)
    got = ARMS["triton"](view, step)
    off = float(((got - due).abs() / due).max())
    if not off <= TOLERANCE:
        raise SystemExit(f"the backends disagree by {off:.1e} of a sum, allowed {TOLERANCE:.0e}: not timed.")
    if not torch.equal(got, ARMS["triton"](view, step)):
        raise SystemExit("two runs of the kernels gave different bits: not timed.")
    return off


def milliseconds(arm: Callable[[CacheView, Step], Any], buffers: list[tuple[CacheView, Step]]) -> list[float]:
    """Single calls, about `SECONDS` of them, after warm-ups."""
    turn = cycle(buffers)

    def once() -> float:
        view, step = next(turn)
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        arm(view, step)
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    warm = [once() for _ in range(WARM_UPS)]
    return [once() for _ in range(max(FEWEST, min(MOST, int(1000 * SECONDS / warm[-1]))))]


def measured(shape: Shape, length: int) -> dict[str, Any]:
    """One line of the table."""
    buffers = [inputs(shape, length, seed) for seed in range(BUFFERS)]
    off = error(*buffers[0])
    line: dict[str, Any] = {**asdict(shape), "length": length, "error": off, "milliseconds": {}, "extra_bytes": {}}
    for name, arm in ARMS.items():
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        times = milliseconds(arm, buffers)
        line["extra_bytes"][name] = torch.cuda.max_memory_allocated() - before
        line["milliseconds"][name] = {
            **{"median": statistics.median(times), "least": min(times), "most": max(times), "calls": len(times)}
        }
    return line


def machine() -> dict[str, str]:
    """Where and with what this ran."""
    return {
        "gpu": torch.cuda.get_device_name(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": str(torch.version.cuda),
        "kvpolicy": kvpolicy.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def printed(line: dict[str, Any]) -> str:
    """A line of the table, for people."""
    times = {name: time["median"] for name, time in line["milliseconds"].items()}
    return (
        f"{line['model']:<14}{line['length']:>7}"
        + "".join(f"{times[name]:>11.3f}" for name in ARMS)
        + f"{times['triton'] / times['sdpa']:>13.2f}{times['torch'] / times['triton']:>15.1f}"
        + f"{line['extra_bytes']['torch'] / 2**20:>12.0f}{line['extra_bytes']['triton'] / 2**20:>12.1f}"
        + f"{line['error']:>10.0e}"
    )


def main(path: str) -> None:
    """All shapes and lengths, as a table and as JSON."""
    where = machine()
    print(*(f"{name} {value}" for name, value in where.items()), sep=", ")
    print(
        f"{'model':<14}{'tokens':>7}{'sdpa ms':>11}{'torch ms':>11}{'triton ms':>11}{'triton/sdpa':>13}"
        f"{'torch/triton':>15}{'torch MiB':>12}{'triton MiB':>12}{'error':>10}"
    )
    lines = []
    for shape in SHAPES:
        for length in LENGTHS:
            lines.append(measured(shape, length))
            print(printed(lines[-1]), flush=True)
    Path(path).write_text(json.dumps({"machine": where, "tolerance": TOLERANCE, "lines": lines}, indent=2) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmarks.attention_mass result.json")
    main(sys.argv[1])
