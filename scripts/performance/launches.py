"""The section on where the time goes: the device, or the host that launches."""

from __future__ import annotations

from scripts.page import escaped

from .parts import Arm, Found, arms, figures, section, span

__all__ = ["launches"]


def launches(found: Found) -> str:
    """Whether the device or the host is what takes the time."""
    timed = arms(found, "launches", "launches")
    rows = [
        [
            f"{arm['pass']} of {arm['prompt']:,}, batch {arm['batch']}: {escaped(arm['arm'])}",
            f"{arm['launches_a_layer']:.0f}",
            f"{arm['device_ms']:.2f}",
            span(arm["ms"]),
            f"{arm['device_ms'] / arm['ms']['median']:.0%}",
        ]
        for arm in timed
    ]
    about = (
        "What is launched call by call, for each layer, and how long the device works for it, under torch's profiler; "
        "beside it the time of the same pass without the profiler. Where the device is busy for a small part of that "
        "time, the pass waits for the host.\n"
    )
    head = ["pass", "launches a layer", "device, ms", "time, ms", "device busy"]
    return section("Where the time goes", about, figures(head, rows), *_device_alone(timed)) if rows else ""


def _device_alone(timed: list[Arm]) -> list[str]:
    """What a policy costs where the host is fast enough."""
    plain = {(arm["pass"], arm["prompt"]): arm["device_ms"] for arm in timed if arm["arm"] == "DynamicCache"}
    lines = [
        f"- `{arm['arm']}`, {arm['pass']} of {arm['prompt']:,}: {arm['device_ms'] / whole:.2f}x"
        for arm in timed
        if arm["arm"] != "DynamicCache" and (whole := plain.get((arm["pass"], arm["prompt"])))
    ]
    about = (
        "The device's time alone, against the plain cache's: what a policy costs where the host is fast enough, or "
        "where steps are compiled.\n"
    )
    return [about, "\n".join(lines) + "\n"] if lines else []
