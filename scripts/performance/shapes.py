"""The section on models with grouped heads: whether it is time or capacity that eviction buys."""

from __future__ import annotations

from scripts.page import escaped

from kvpolicy import format_bytes

from .parts import Arm, Found, arms, figures, section, span

__all__ = ["shapes"]

WORTH = 1.2  # times as fast, from which on it is called time that eviction buys


def shapes(found: Found) -> str:
    """Models with grouped heads, and whether it is time or capacity that eviction buys."""
    timed = arms(found, "series", "shape")
    cases: dict[tuple[str, int, int], dict[str, Arm]] = {}
    for arm in timed:
        cases.setdefault((arm["model"], arm["prompt"], arm["batch"]), {})[arm["arm"]] = arm
    rows = [
        [
            arm["model"],
            f"{arm['prompt']:,}",
            f"{arm['batch']}",
            escaped(arm["arm"]),
            span(arm["ms"]),
            f"{arm['floor_ms']:.1f}",
            f"{arm['tokens_per_s']:,.0f}",
            format_bytes(arm["kv_bytes"]),
        ]
        for arm in timed
    ]
    head = ["model", "prompt", "batch", "cache", "ms a step", "floor, ms", "tokens/s", "K/V"]
    pairs = [(of["full"], of["elastic_cache"]) for of in cases.values() if {"full", "elastic_cache"} <= set(of)]
    return section("Grouped heads, long prompts", figures(head, rows), _bought(pairs))


def _bought(pairs: list[tuple[Arm, Arm]]) -> str:
    """Time or capacity, case by case, and how much of it fewer bytes alone can give."""
    words: dict[bool, list[str]] = {True: [], False: []}
    beyond = []
    for full, kept in pairs:
        faster, fewer = full["ms"]["median"] / kept["ms"]["median"], full["floor_ms"] / kept["floor_ms"]
        case = f"{full['model']} at {full['prompt']:,} tokens and batch {full['batch']}"
        smaller = full["kv_bytes"] / kept["kv_bytes"]
        words[faster >= WORTH].append(f"{case} ({faster:.2f}x as fast, {smaller:.1f}x smaller)")
        if faster > fewer:
            beyond.append(f"{fewer:.2f}x of the {faster:.2f}x at {full['prompt']:,} tokens and batch {full['batch']}")
    time, room = ("; ".join(words[worth]) for worth in (True, False))
    said = [f"Eviction buys time where attending to the rows is much of a step: {time}."] if time else []
    said += [f"It buys capacity rather than time where it is not: {room}."] if room else []
    if beyond:
        said.append(
            f"Not all of that time is eviction's. Fewer bytes alone, by the floors, give {'; '.join(beyond)}. What "
            "goes beyond was not profiled. A part of it is known: under the mask of a static cache, transformers' sdpa "
            "copies grouped heads for each of their query heads at every step; a policy's kernel reads them where they "
            "are."
        )
    return "\n\n".join(said) + "\n" if said else ""
