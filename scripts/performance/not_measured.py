"""The section on what there are no numbers of, and why."""

from __future__ import annotations

from typing import Any

from scripts.page import escaped

from .parts import Arm, Found, section
from .peers import not_run
from .results import SUITES

__all__ = ["not_measured"]


def not_measured(found: Found) -> str:
    """Suites without a file, arms without a time, and processes that did not come to their end."""
    lines = [f"Suite `{suite}`: not run." for suite in SUITES if suite not in found]
    for suite, ran in found.items():
        lines += _cut_off(suite, ran.get("processes", [ran]))
        cases: dict[tuple[str, str], list[Arm]] = {}
        for arm in ran["arms"]:
            cases.setdefault((arm["case"], arm.get("model", "")), []).append(arm)
        lines += [line for of in cases.values() for line in _untimed(suite, of)]
    lines += [f"`peers`, {missing}: not run." for missing in not_run(found)]
    return section("Not measured", "".join(f"- {line}\n" for line in lines)) if lines else ""


def _cut_off(suite: str, processes: list[dict[str, Any]]) -> list[str]:
    """Processes that ended early, unless one ran all arms to their end."""
    if any(ran.get("complete") and _of_all(ran.get("options", {})) for ran in processes):
        return []
    cut = [ran["seconds"] for ran in processes if not ran.get("complete")]
    rest = "what came later is missing where no other process ran it"
    return [f"Suite `{suite}`: cut off after {seconds:.0f} s; {rest}." for seconds in cut]


def _of_all(options: dict[str, Any]) -> bool:
    return options.get("only") == [""] and not options.get("without")


def _untimed(suite: str, of: list[Arm]) -> list[str]:
    """Arms of a case and a model; they share a line where none of them was timed."""
    why = [_why(arm) for arm in of]
    if len(of) > 1 and all(why):
        model = f", {escaped(of[0]['model'])}" if "model" in of[0] else ""
        return [f"`{suite}`, {of[0]['case']}{model} (all {len(of)} arms): {'; '.join(dict.fromkeys(why))}."]
    return [f"`{suite}`, {escaped(_label(arm))}: {reason}." for arm, reason in zip(of, why, strict=True) if reason]


def _why(arm: Arm) -> str:
    """Why an arm has no time; empty if it has."""
    reasons = {"failed": "its gate failed", "error": "it broke", "skipped": "skipped", "left_out": "left out"}
    told = [f"{why}: {escaped(str(arm[key]))}" for key, why in reasons.items() if key in arm]
    return "; ".join(["out of memory"] * ("out_of_memory" in arm) + told)


def _label(arm: Arm) -> str:
    wanted = ("case", "model", "batch", "prompt", "rows", "rows_held", "arm")
    return ", ".join(
        f"{key} {arm[key]}" if key not in ("case", "model", "arm") else arm[key] for key in wanted if key in arm
    )
