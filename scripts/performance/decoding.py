"""The section on decoding: the table of one setting, and steps against the rows held."""

from __future__ import annotations

from scripts.page import escaped

from kvpolicy import format_bytes

from .parts import Arm, Found, arms, figures, section, span
from .plots import picture

__all__ = ["decoding"]

NOISE = 0.1  # of a step: where fewer rows save no more than that, the host's launches are what takes the time


def decoding(found: Found) -> str:
    """The table of one setting, and steps against the rows held."""
    table = sorted(arms(found, "decode", "table"), key=_launched)
    return section("Decoding", _steps(table), *_against_rows(found)) if table else ""


def _steps(table: list[Arm]) -> str:
    case = table[0]
    full = {arm["arm"]: arm["ms"]["median"] for arm in table}

    def row(arm: Arm) -> list[str]:
        median = arm["ms"]["median"]
        return [
            escaped(arm["arm"]),
            span(arm["ms"]),
            f"{arm['floor_ms']:.1f}",
            f"{median / arm['floor_ms']:.2f}x",
            f"{arm['tokens_per_s']:,.0f}",
            format_bytes(arm["kv_bytes"]),
            _efficiency(median, arm["launch"], full),
            _break_even(arm, table),
        ]

    head = ["arm", "ms a step", "floor, ms", "of floor", "tokens/s", "K/V", "efficiency", "break-even"]
    about = (
        f"{case['model']}, batch {case['batch']}, prompt {case['prompt']:,} tokens, room for {case['most']:,}. "
        "*Ideal* is a plain cache with as few slots as the policy leaves rows. Efficiency is "
        "`(full - policy) / (full - ideal)`, each launched in the same way, where there is something to save. "
        "Break-even is the number of new tokens after which the time that the policy adds to the prompt is won back, "
        "against the full static cache launched in the same way.\n"
    )
    return f"{about}\n{figures(head, map(row, table))}"


def _against_rows(found: Found) -> list[str]:
    """The plot, and what a policy costs where a plain cache holds as many rows."""
    by: dict[int, dict[str, Arm]] = {}
    for arm in arms(found, "series", "rows"):
        by.setdefault(arm["rows_held"], {})[arm["arm"]] = arm
    more = {
        rows: of["streaming_llm"]["ms"]["median"] - of["StaticCache"]["ms"]["median"]
        for rows, of in by.items()
        if {"streaming_llm", "StaticCache"} <= set(of)
    }
    if not more:
        return [picture("decode_rows", found)]
    few, many = min(more), max(more)
    launch = by[few]["StaticCache"]["launch"]
    return [
        picture("decode_rows", found),
        f"Against the static cache with as many rows, a step under `streaming_llm` in a {launch} takes "
        f"{more[few]:+.2f} ms at {few:,} rows and {more[many]:+.2f} ms at {many:,}. That has to be won back by holding "
        f"fewer. {_compiled(found)}\n",
    ]


def _compiled(found: Found) -> str:
    """The same difference in compiled steps, from the table."""
    by = {arm["arm"]: arm["ms"]["median"] for arm in arms(found, "decode", "table")}
    under, ideal = by.get("streaming_llm, compiled"), by.get("ideal, compiled")
    return "" if under is None or ideal is None else f"Compiled, it is {under - ideal:+.2f} ms against *ideal*."


def _launched(arm: Arm) -> int:
    """Arms that are launched in the same way stand together."""
    return ("eager", "CUDA graph", "compiled").index(arm["launch"])


def _efficiency(median: float, launch: str, full: dict[str, float]) -> str:
    whole, ideal = full.get(f"StaticCache, {launch}"), full.get(f"ideal, {launch}")
    if whole is None or ideal is None or median in (whole, ideal) or whole - ideal < NOISE * whole:
        return ""
    return f"{(whole - median) / (whole - ideal):.0%}"


def _break_even(arm: Arm, own: list[Arm]) -> str:
    whole = next((other for other in own if other["arm"] == f"StaticCache, {arm['launch']}"), None)
    if whole is None or arm is whole or "Cache," in arm["arm"] or arm["arm"].startswith("ideal"):
        return ""
    saved = whole["ms"]["median"] - arm["ms"]["median"]
    if saved <= 0:
        return "never"
    return f"{max(0.0, (arm['prefill_ms'] - whole['prefill_ms']) / saved):.0f}"
