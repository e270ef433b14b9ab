"""The section on what the suites ran on."""

from __future__ import annotations

from .parts import Found, figures, section

__all__ = ["machines"]


def machines(found: Found) -> str:
    """What each suite ran on."""
    rows = []
    for suite, ran in [(suite, ran) for suite, whole in found.items() for ran in whole.get("processes", [whole])]:
        where = dict(ran["machine"])
        device, date = where.pop("device"), where.pop("date")
        versions = ", ".join(f"{name} {version}" for name, version in where.items())
        ceilings = ran["ceilings"]
        rows.append(
            [
                f"`{suite}`" + (" (in turns)" if ran.get("turns") else ""),
                device,
                versions,
                f"{ceilings['copy_gb_s']:,.0f}",
                f"{ceilings['matrix_tflop_s']:,.2f}",
                date[:10],
                f"{ran['seconds']:.0f}",
            ]
        )
    head = ["suite", "machine", "versions", "copy, GB/s", "matrix product, TFLOP/s", "date", "seconds"]
    return section(
        "Machines",
        figures(head, rows),
        "Each file of `docs/results/performance` is one process: `python -m benchmarks.SUITE FILE`. Where it says *in "
        "turns*, several took turns on the device: nothing ran there beside what was timed, but the host compiled for "
        "the others, so that what it launches call by call took longer. The copy counts bytes read and written; the "
        "matrix product is 8,192 cubed in bfloat16 on random data (on a CPU, smaller, in float32).\n",
    )
