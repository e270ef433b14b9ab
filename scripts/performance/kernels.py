"""The section of `docs/performance.md` on kernels: verb by verb, and what takes each verb's time."""

from __future__ import annotations

import re
from collections import Counter

from scripts.page import escaped

from .parts import Arm, Found, figures, section, span
from .plots import picture

__all__ = ["by_kernel", "kernels"]

COMPACTIONS = ("compaction", "compaction with merge")


def by_kernel(arm: Arm) -> dict[str, float]:
    """Milliseconds of the kernels that take most of a verb's time, by short names."""
    taken: Counter[str] = Counter()
    for name, ms in arm.get("most", ()):
        taken[_short(name)] += ms
    return dict(taken.most_common())


def _short(name: str) -> str:
    """Without return type, namespaces, template, maker and types: torch's names are long, and cut off."""
    bare = name.partition("<")[0].rpartition("::")[2].rpartition(" ")[2]
    return re.split("_f32|_kernel", re.sub(r"^_|^sm\d+_xmma_", "", bare))[0]


def kernels(found: Found) -> str:
    """All verbs."""
    every = [arm for arm in found.get("kernels", {}).get("arms", []) if "ms" in arm]
    by_case = {case: [arm for arm in every if arm["case"] == case] for case in dict.fromkeys(a["case"] for a in every)}
    if not every:
        return ""
    batch = next((arm["batch"] for arm in every if "batch" in arm), 1)
    about = (
        f"One layer, batch 1 (decode attention: {batch}). Times are the device's alone, launches hidden behind a wait, "
        "over rotating buffers larger than its cache; *as launched* they include the host's. Bytes are the fewest that "
        "the verb has to move. Attention mass and nearest keys are bound by arithmetic, so their bytes say little. "
        "*Where the time goes* is one more call under torch's profiler: the kernels that take most of it. What they "
        "leave of a verb's time is smaller kernels, and the gaps between launches.\n"
    )
    return section("Kernels", about, picture("kernels", found), *map(_verb, by_case.values()), _compactions(every))


def _verb(of: list[Arm]) -> str:
    """One verb, with its kernels where they were looked at."""
    looked_at = any("most" in arm for arm in of)
    rows = [
        [
            arm["model"],
            f"{arm['rows']:,}",
            escaped(arm["arm"]),
            span(arm["ms"], 3),
            f"{arm['launched_ms']['median']:.2f}" if "launched_ms" in arm else "",
            f"{arm['gb_s']:,.0f} ({arm['of_copy']:.0%})" if "gb_s" in arm else "",
            f"{arm['tflop_s']:,.0f}" if arm.get("tflop_s") else "",
            *([_microseconds(by_kernel(arm))] if looked_at else []),
        ]
        for arm in of
    ]
    head = ["model", "rows", "by", "ms", "as launched, ms", "GB/s (of a copy)", "TFLOP/s"]
    case: str = of[0]["case"]
    title = f"### {case[0].upper()}{case[1:]}\n"
    return "\n".join([title, figures(head + ["where the time goes, µs"] * looked_at, rows)])


def _microseconds(taken: dict[str, float]) -> str:
    return ", ".join(f"{escaped(name)} {1000 * ms:,.0f}" for name, ms in taken.items())


def _compactions(every: list[Arm]) -> str:
    """Shares of the kernels of compaction, where the table is longest."""
    of = [arm for arm in every if arm["case"] in COMPACTIONS and arm["arm"] == "triton" and "most" in arm]
    longest = max((arm["rows"] for arm in of), default=0)
    of = [arm for arm in of if arm["rows"] == longest]
    rows = [[f"{arm['case']}, {arm['model']}", f"{1000 * arm['ms']['median']:,.0f}", _shares(arm)] for arm in of]
    about = (
        f"### Merge and compaction, by kernel\n\nShares of the time of {longest:,} rows, on triton. `survey` and "
        "`rank` find who stays and who folds where, `fold` moves keys and values, `fold_columns` what is kept beside "
        "them.\n"
    )
    return "\n".join([about, figures(["verb", "µs", "by kernel"], rows)]) if rows else ""


def _shares(arm: Arm) -> str:
    return ", ".join(f"{escaped(name)} {ms / arm['ms']['median']:.0%}" for name, ms in by_kernel(arm).items())
