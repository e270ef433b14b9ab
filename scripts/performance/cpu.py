"""The section on a CPU."""

from __future__ import annotations

from scripts.page import escaped

from .parts import Found, arms, figures, section

__all__ = ["cpu"]


def cpu(found: Found) -> str:
    """Shares of a prompt and of a step."""
    timed = arms(found, "cpu", "cpu")
    parts = []
    for model in dict.fromkeys(arm["model"] for arm in timed):
        of = [arm for arm in timed if arm["model"] == model]
        rows = []
        for arm in of:
            plain, step = arm["plain_ms"]["median"], arm["plain_step_ms"]["median"]
            more, more_step = arm["ms"]["median"] - plain, arm["step_ms"]["median"] - step
            rows.append(
                [
                    escaped(arm["arm"]),
                    f"{plain:.1f}",
                    f"{more:+.1f}",
                    f"{more / plain:+.0%}",
                    f"{step:.2f}",
                    f"{more_step:+.2f}",
                    f"{more_step / step:+.0%}",
                ]
            )
        head = ["policy", "prompt, ms", "policy adds", "share", "step, ms", "policy adds", "share"]
        parts += [f"### {model}, a prompt of {of[0]['prompt']:,} tokens\n", figures(head, rows)]
    about = (
        "float32, batch 1, one thread. Each policy takes turns with the plain cache, and stands beside the plain "
        "cache's times of its own turns. Shares of a few per cent are within the noise of a shared machine.\n"
    )
    return section("On a CPU", about, *parts) if parts else ""
