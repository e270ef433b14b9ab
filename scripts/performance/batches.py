"""The sections on many requests at once: tokens a second against the batch, and the largest batches."""

from __future__ import annotations

from scripts.page import escaped

from kvpolicy import format_bytes

from .parts import Arm, Found, figures, section
from .plots import picture

__all__ = ["capacity", "throughput"]


def throughput(found: Found) -> str:
    """Tokens a second against the batch."""
    every = [arm for arm in found.get("series", {}).get("arms", []) if arm["case"] == "batch"]
    rows = []
    for batch in sorted({arm["batch"] for arm in every}):
        of = {arm["arm"]: arm for arm in every if arm["batch"] == batch}
        rows.append([f"{batch}", *(_throughput(of.get(name)) for name in ("full", "elastic_cache"))])
    return section(
        "Throughput",
        figures(["batch", "full: tokens/s (ms a step)", "elastic\\_cache: tokens/s (ms a step)"], rows),
        picture("throughput", found),
    )


def _throughput(arm: Arm | None) -> str:
    if arm is None:
        return ""
    if "ms" not in arm:
        return "out of memory" if "out_of_memory" in arm else "not timed"
    return f"{arm['tokens_per_s']:,.0f} ({arm['ms']['median']:.2f})"


def capacity(found: Found) -> str:
    """The largest batches."""
    ran = [arm for arm in found.get("capacity", {}).get("arms", []) if "batch" in arm]
    rows = [
        [
            escaped(arm["arm"]),
            f"{arm['batch']}",
            format_bytes(arm["kv_bytes"]),
            *(
                format_bytes(arm[what] / arm["batch"])
                for what in ("kv_bytes", "prefill_peak_bytes", "decode_peak_bytes")
            ),
        ]
        for arm in ran
    ]
    if not rows:
        return ""
    case = ran[0]
    memory = found["capacity"].get("options", {}).get("gib")
    return section(
        "Capacity",
        f"The largest batch that fits at {case['prompt']:,} + {case['most'] - case['prompt']:,} tokens, the peak of "
        f"the prompt included, in {'all of the memory' if memory is None else f'{memory:g} GiB'}; weights take "
        f"{format_bytes(case['weight_bytes'])} of it. Peaks are beyond the weights. What the model "
        f"itself needs for the activations of a prompt is the same for each request, whatever its cache.\n",
        figures(
            ["arm", "batch", "K/V", "K/V a request", "peak of the prompt, a request", "peak of decoding, a request"],
            rows,
        ),
    )
