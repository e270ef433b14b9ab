"""The plots of `docs/performance.md`: SVG without a background, in colours that show on white and on dark grey."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from scripts.page import DOCS

from .parts import Found, arms

__all__ = ["PICTURES", "PLOTS", "Curve", "Plot", "digest", "draw", "picture"]

PICTURES = DOCS / "assets" / "performance"
INK = "#808080"
COLOURS = ("#3f7fd9", "#d9622b", "#2f9e6e", "#a65bc9", "#c9a227", "#3aa6b9", "#d14b7e", "#8a8a8a")


@dataclass(frozen=True)
class Curve:
    """Points that belong together; ``ends`` are values of x at which memory ran out."""

    label: str
    points: list[tuple[float, float]]
    floor: bool = False
    ends: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Plot:
    """What is drawn."""

    x: str
    y: str
    curves: list[Curve]
    logarithmic: bool = False


def decode_rows(found: Found) -> Plot | None:
    """Time of a step against the rows held, with the floor."""
    every = arms(found, "series", "rows")
    if not every:
        return None
    curves = [
        Curve(name, [(arm["rows_held"], arm["ms"]["median"]) for arm in every if arm["arm"] == name])
        for name in dict.fromkeys(arm["arm"] for arm in every)
    ]
    floor = sorted({(arm["rows_held"], arm["floor_ms"]) for arm in every})
    x = f"rows held by each head (batch {every[0]['batch']}, {every[0]['launch']})"
    return Plot(x, "ms a step", [*curves, Curve("floor", floor, floor=True)])


def prefill(found: Found) -> Plot | None:
    """What each policy adds to a prompt."""
    every = arms(found, "prefill", "prefill")
    plain = {arm["prompt"]: arm["ms"]["median"] for arm in every if arm["arm"] == "DynamicCache"}
    curves = [
        Curve(
            name,
            [
                (arm["prompt"], 100 * (arm["ms"]["median"] / plain[arm["prompt"]] - 1))
                for arm in every
                if arm["arm"] == name and arm["prompt"] in plain
            ],
        )
        for name in dict.fromkeys(arm["arm"] for arm in every)
        if name != "DynamicCache"
    ]
    return Plot("tokens of the prompt", "added to the plain prompt, %", curves, logarithmic=True) if curves else None


def throughput(found: Found) -> Plot | None:
    """Tokens a second against the batch."""
    every = [arm for arm in found.get("series", {}).get("arms", []) if arm["case"] == "batch"]
    curves = []
    for name in dict.fromkeys(arm["arm"] for arm in every):
        of = [arm for arm in every if arm["arm"] == name]
        points = [(arm["batch"], arm["tokens_per_s"]) for arm in of if "ms" in arm]
        ends = [arm["batch"] for arm in of if "out_of_memory" in arm][:1]
        if points:
            curves.append(Curve(name, points, ends=ends))
    return Plot("batch", "tokens a second while decoding", curves, logarithmic=True) if curves else None


def kernels(found: Found) -> Plot | None:
    """Bandwidth of what is bound by memory, with a copy's."""
    memory = ("compaction", "compaction with merge", "attention mass, last query", "attention mass, last 32 queries")
    every = [arm for case in memory for arm in arms(found, "kernels", case) if arm["model"] == "LLaVA-1.5-7B"]
    curves = [
        Curve(
            f"{case}, {name}",
            [(arm["rows"], arm["gb_s"]) for arm in every if (arm["case"], arm["arm"]) == (case, name)],
        )
        for case, name in dict.fromkeys((arm["case"], arm["arm"]) for arm in every)
    ]
    if not curves:
        return None
    copy = {arm["rows"]: arm["gb_s"] / arm["of_copy"] for arm in every}  # each arm goes by its own process's
    copied = Curve("copy", sorted(copy.items()), floor=True)
    return Plot("rows (LLaVA-1.5-7B)", "GB a second", [*curves, copied], logarithmic=True)


PLOTS: dict[str, Callable[[Found], Plot | None]] = {
    "decode_rows": decode_rows,
    "prefill": prefill,
    "throughput": throughput,
    "kernels": kernels,
}


def picture(name: str, found: Found) -> str:
    """The plot in the page, if there is anything to draw. What it shows, its function says in a sentence."""
    alt = str(PLOTS[name].__doc__).rstrip(".")
    return f"![{alt}](assets/performance/{name}.svg)\n" if PLOTS[name](found) else ""


def digest(plot: Plot) -> str:
    """Of what is drawn; the file carries it, so that an old one is noticed."""
    drawn = [plot.x, plot.y, [[curve.label, curve.points, curve.ends] for curve in plot.curves]]
    return hashlib.sha256(json.dumps(drawn).encode()).hexdigest()[:16]


def draw(name: str, found: Found, file: Path) -> None:
    """Write one plot, or remove it where there is nothing to draw."""
    plot = PLOTS[name](found)
    if plot is None:
        file.unlink(missing_ok=True)
        return
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    plain = {"svg.hashsalt": name, "svg.fonttype": "none", "font.size": 11}
    coloured = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK)
    with mpl.rc_context({**plain, **coloured}):
        figure, axes = plt.subplots(figsize=(8, 4.5))
        for number, curve in enumerate(plot.curves):
            colour = INK if curve.floor else COLOURS[number % len(COLOURS)]
            x, y = zip(*sorted(curve.points), strict=True)
            style = "--" if curve.floor else "-o"
            axes.plot(x, y, style, color=colour, label=curve.label, linewidth=2, markersize=5)
            for end in curve.ends:
                axes.plot([end], [y[-1]], "x", color=colour, markersize=11, markeredgewidth=3)
                axes.annotate("out of memory", (end, y[-1]), (0, 9), textcoords="offset points", ha="center")
        if plot.logarithmic:
            axes.set_xscale("log", base=2)
            ticks = sorted(
                {x for curve in plot.curves for x, _ in curve.points} | {e for c in plot.curves for e in c.ends}
            )
            axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        axes.set(xlabel=plot.x, ylabel=plot.y)
        axes.grid(color=INK, alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        # Under the axes: many curves leave no room between them.
        axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)
        figure.savefig(
            file, transparent=True, bbox_inches="tight", metadata={"Date": None, "Description": digest(plot)}
        )
        plt.close(figure)
