"""Why a target was missed: a sentence of numbers that were measured beside it, or nothing where there are none."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from kvpolicy import format_bytes

from .kernels import by_kernel
from .parts import Arm, Found, arms

__all__ = ["EQUAL", "RAGGED", "capacity", "compaction", "prompt", "ragged", "step", "uneven"]

Within: TypeAlias = Callable[[float, float], bool]  # whether a policy's time is in the target, from the plain cache's

EQUAL, FLAT, RAGGED = "kernel, equal heads", "kernel, equal heads in flat storage", "kernel, ragged heads"


def prompt(found: Found, length: int, within: Within) -> str:
    """Of a prompt under Elastic Cache: what the device does of it."""
    case = {"pass": "prompt", "prompt": length}
    return _launched(found, f"a prompt of {length:,} tokens", "elastic_cache", within, case)


def step(found: Found, policy: str, within: Within) -> str:
    """Of an eager step."""
    return _launched(found, "an eager step", policy, within, {"pass": "step"})


def _launched(found: Found, what: str, policy: str, within: Within, case: dict[str, object]) -> str:
    """How long the device works under a policy and without one, and how long it waits."""
    of = {arm["arm"]: arm for arm in arms(found, "launches", "launches") if case.items() <= arm.items()}
    if not {policy, "DynamicCache"} <= set(of):
        return ""
    (under, works), (plain, worked) = ((of[name], of[name]["device_ms"]) for name in (policy, "DynamicCache"))
    return (
        f"Of {what} under `{policy}` the device is busy for {works / under['ms']['median']:.0%}. For the rest it waits "
        f"for the host, which launches {under['launches_a_layer']:.0f} kernels a layer "
        f"({plain['launches_a_layer']:.0f} for the plain cache). Its own work is {works:.2f} ms against {worked:.2f} "
        f"for the plain cache, {works - worked:+.2f} ms or {works / worked:.2f}x, with which the target would be "
        f"{'met' if within(works, worked) else 'missed, too'}. See [where the time goes](#where-the-time-goes)."
    )


def compaction(longest: list[Arm]) -> str:
    """Of the shapes at one length: the kernels of the slowest, and what larger tables gain."""
    if not longest or "most" not in min(longest, key=_of_copy):
        return ""
    slowest, fastest = min(longest, key=_of_copy), max(longest, key=_of_copy)
    time = slowest["ms"]["median"]
    kernels = ", ".join(f"`{name}` {1000 * ms:.0f}" for name, ms in by_kernel(slowest).items())
    longer = fastest["ms"]["median"] / time
    more = longer * fastest["gb_s"] / slowest["gb_s"]
    return (
        f"Merge and compaction: the slowest shape is {slowest['model']}, whose bytes a copy moves in "
        f"{1000 * time * slowest['of_copy']:.0f} µs. It takes {1000 * time:.0f}: {kernels}. The smaller a table, the "
        f"less of the device it fills: {fastest['model']} has {more:.1f}x the bytes and takes {longer:.1f}x the time, "
        f"{fastest['of_copy']:.0%} of the copy's bandwidth."
    )


def _of_copy(arm: Arm) -> float:
    return float(arm["of_copy"])


def ragged(shapes: list[dict[str, Arm]]) -> str:
    """Of the arms of each shape: what flat storage takes, and what the longest head."""
    shapes = [of for of in shapes if {EQUAL, FLAT, RAGGED} <= set(of)]
    if not shapes:
        return ""
    slowest, fastest = max(shapes, key=uneven), min(shapes, key=uneven)
    equal, stored, ragged = (1000 * slowest[arm]["ms"]["median"] for arm in (EQUAL, FLAT, RAGGED))
    return (
        f"Ragged heads: the slowest shape is {_to_read(slowest)} to read. Equal heads take {equal:.1f} µs, equal heads "
        f"in flat storage {stored:.1f}, ragged ones {ragged:.1f}. The call ends with its longest head, which has "
        f"{slowest[RAGGED]['longest_head']:,} rows where equal heads have {slowest[EQUAL]['longest_head']:,}: with few "
        f"heads nothing else runs meanwhile. {_to_read(fastest)}, takes {uneven(fastest):.2f}x. See "
        f"[decode attention](#decode-attention)."
    )


def uneven(of: dict[str, Arm]) -> float:
    """Time of ragged heads, of that of equal ones."""
    return float(of[RAGGED]["ms"]["median"] / of[EQUAL]["ms"]["median"])


def _to_read(of: dict[str, Arm]) -> str:
    arm = of[EQUAL]
    return f"{arm['model']}, with {format_bytes(arm['gb_s'] * arm['ms']['median'] * 1e6)}"


def capacity(full: Arm | None, kept: Arm | None) -> str:
    """Of the largest batches: that the prompt's peak is what a request needs most."""
    if full is None or kept is None:
        return ""
    whole, few = (arm["kv_bytes"] / arm["batch"] for arm in (full, kept))
    peaks = [format_bytes(kept[what] / kept["batch"]) for what in ("prefill_peak_bytes", "decode_peak_bytes")]
    return (
        f"Capacity: K/V of a request are {whole / few:.1f}x smaller, but what bounds the batch is the peak of the "
        f"prompt, {peaks[0]} a request ({peaks[1]} while decoding): the model's own activations are in it. See "
        f"[capacity](#capacity)."
    )
