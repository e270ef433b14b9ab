"""The section on prompts: what a policy adds to the first pass, and its peak."""

from __future__ import annotations

from scripts.page import escaped

from kvpolicy import format_bytes

from .parts import Arm, Found, arms, figures, section, span
from .plots import picture

__all__ = ["prompts"]


def prompts(found: Found) -> str:
    """What a policy adds to the first pass."""
    return section("Prompts", _prompts(arms(found, "prefill", "prefill")), picture("prefill", found), *_peak(found))


def _prompts(timed: list[Arm]) -> str:
    plain = {arm["prompt"]: arm["ms"]["median"] for arm in timed if arm["arm"] == "DynamicCache"}
    names = dict.fromkeys(arm["arm"] for arm in timed)
    by = {(arm["arm"], arm["prompt"]): arm for arm in timed}

    def cell(name: str, length: int) -> str:
        arm = by.get((name, length))
        if arm is None:
            return ""
        median = arm["ms"]["median"]
        if name == "DynamicCache" or length not in plain:
            return span(arm["ms"])
        return f"{median:.2f} ({median - plain[length]:+.2f} ms, {median / plain[length]:.2f}x)"

    lengths = sorted({arm["prompt"] for arm in timed})
    head = ["milliseconds", *(f"{length:,} tokens" for length in lengths)]
    return figures(head, [[escaped(name), *(cell(name, length) for length in lengths)] for name in names])


def _peak(found: Found) -> list[str]:
    timed = arms(found, "prefill", "prefill")
    if not timed:
        return []
    lengths = sorted({arm["prompt"] for arm in timed})
    by = {(arm["arm"], arm["prompt"]): format_bytes(arm["peak_bytes"]) for arm in timed}
    rows = [
        [escaped(n), *(by.get((n, length), "") for length in lengths)] for n in dict.fromkeys(a["arm"] for a in timed)
    ]
    return [
        "Peak memory of the prompt beyond the weights:\n",
        figures(["peak", *(f"{length:,} tokens" for length in lengths)], rows),
    ]
