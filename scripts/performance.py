"""`docs/performance.md` and its plots, from the JSON files that the suites of `benchmarks` wrote.

    python -m scripts.performance    (in the root of the repository)

Nothing is measured here, and nothing is typed in: a suite whose file is missing, and an arm that was not timed, are
listed as such.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from scripts.page import DOCS, escaped, table
from scripts.performance_plots import PLOTS, alt, draw
from scripts.performance_targets import targets

from kvpolicy import format_bytes

PAGE = DOCS / "performance.md"
RESULTS = DOCS / "results" / "performance"
PICTURES = DOCS / "assets" / "performance"
NOISE = 0.1  # of a step: where fewer rows save no more than that, the host's launches are what takes the time
SUITES = ("kernels", "launches", "prefill", "decode", "series", "capacity", "peers", "cpu")

Arm: TypeAlias = dict[str, Any]
Found: TypeAlias = dict[str, dict[str, Any]]  # what each suite's file holds, by suite

HEAD = """\
---
hide: [navigation]
---

# Performance

<!-- All of this page is written by: python -m scripts.performance -->

What a policy costs and what it saves. The model of the tables is a Llama with the sizes named and random weights in
bfloat16: what it says means nothing, what it costs is real. Budgets keep 0.2 of the tokens seen. Every arm was first
held, in the process that timed it, against a reference (its *gate*); an arm that failed would not be timed. Times are
medians of CUDA events after at least three calls that do not count, with the fastest and the slowest in brackets. The
floor of a decode step is the time of reading the weights and the rows at the speed of a copy, measured in the same
process.
"""


def load(folder: Path = RESULTS) -> Found:
    """What is in the files that are there: SUITE.json, and SUITE-more.json of further processes.

    Every arm was written when it was through, so what a run that was cut off had come to is as good as any. An arm that
    a further process ran again is the further one's.

    Raises:
        ValueError: if one is of a trial at tiny sizes.
    """
    found: Found = {}
    for suite in SUITES:
        for file in [*folder.glob(f"{suite}.json"), *sorted(folder.glob(f"{suite}-*.json"))]:
            ran = json.loads(file.read_text(encoding="utf-8"))
            if ran["small"]:
                raise ValueError(f"{file} is no result: it was made with --small.")
            whole = found.setdefault(suite, {**ran, "arms": [], "processes": []})
            again = {_identity(arm) for arm in ran["arms"]}
            whole["arms"] = [arm for arm in whole["arms"] if _identity(arm) not in again] + ran["arms"]
            whole["processes"].append(ran)
    return found


def _identity(arm: Arm) -> str:
    """Its case and its name: what stands before its results."""
    keys = list(arm)
    return json.dumps({key: arm[key] for key in keys[: keys.index("arm") + 1]}, sort_keys=True)


def rendered(found: Found) -> str:
    """The page."""
    parts = [HEAD, targets(found)]
    sections = (decoding, prompts, launches, throughput, shapes, capacity, kernels, peers, cpu)
    parts += [section(found) for section in sections]
    parts += [machines(found), not_measured(found)]
    return "\n".join(part for part in parts if part)


def figures(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column names what the others measure, if anything was."""
    rows = list(rows)
    return table(head, rows, words=1) + "\n" if rows else ""


def section(title: str, *parts: str) -> str:
    """With its heading, if there is anything in it."""
    return "\n".join([f"## {title}\n", *(part for part in parts if part)]) if any(parts) else ""


def picture(name: str, found: Found) -> str:
    """A plot, if there is anything to draw."""
    return f"![{alt(name)}](assets/performance/{name}.svg)\n" if PLOTS[name](found) else ""


def arms(found: Found, suite: str, case: str) -> list[Arm]:
    """Those of one kind of case that were timed."""
    return [arm for arm in found.get(suite, {}).get("arms", []) if arm["case"] == case and "ms" in arm]


def span(times: dict[str, float]) -> str:
    """Milliseconds, with the fastest and the slowest."""
    return f"{times['median']:.2f} ({times['least']:.2f} to {times['most']:.2f})"


def decoding(found: Found) -> str:
    """The table of one setting, with the peer in it."""
    own, other = (sorted(arms(found, suite, "table"), key=_launched) for suite in ("decode", "peers"))
    if not own + other:
        return ""
    case = (own + other)[0]
    full = {arm["arm"]: arm["ms"]["median"] for arm in own}

    def row(arm: Arm, where: str) -> list[str]:
        median = arm["ms"]["median"]
        return [
            escaped(arm["arm"]) + where,
            span(arm["ms"]),
            f"{arm['floor_ms']:.1f}",
            f"{median / arm['floor_ms']:.2f}x",
            f"{arm['tokens_per_s']:,.0f}",
            format_bytes(arm["kv_bytes"]),
            _efficiency(median, arm["launch"], full),
            _break_even(arm, own),
        ]

    head = ["arm", "ms a step", "floor, ms", "of floor", "tokens/s", "K/V", "efficiency", "break-even"]
    return section(
        "Decoding",
        f"{case['model']}, batch {case['batch']}, prompt {case['prompt']:,} tokens, room for {case['most']:,}. "
        "*Ideal* is a plain cache with as few slots as the policy leaves rows. Efficiency is "
        "`(full - policy) / (full - ideal)`, each launched in the same way, where there is something to save. "
        "Break-even is the number of new tokens after which the time that the policy adds to the prompt is won back, "
        "against the full static cache launched in the same way.\n",
        figures(head, [*(row(arm, "") for arm in own), *(row(arm, " (kvpress process)") for arm in other)]),
        "kvpress ran in a process of its own, with the transformers that it needs; its process repeats the baselines.\n"
        if other
        else "",
        picture("decode_rows", found),
    )


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
    if whole is None or arm is whole or arm not in own or "Cache," in arm["arm"] or arm["arm"].startswith("ideal"):
        return ""
    saved = whole["ms"]["median"] - arm["ms"]["median"]
    if saved <= 0:
        return "never"
    return f"{max(0.0, (arm['prefill_ms'] - whole['prefill_ms']) / saved):.0f}"


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


def throughput(found: Found) -> str:
    """Tokens a second against the batch."""
    every = [arm for arm in found.get("series", {}).get("arms", []) if arm["case"] == "batch"]
    rows = []
    for batch in sorted({arm["batch"] for arm in every}):
        of = {arm["arm"]: arm for arm in every if arm["batch"] == batch}
        rows.append([f"{batch}", *(_throughput(of.get(name)) for name in ("full", "elastic_cache"))])
    return section(
        "Throughput",
        figures(["batch", "full: tokens/s (ms a step)", "elastic\\_cache: tokens/s (ms a step)"], rows),
        picture("throughput", found),
    )


def _throughput(arm: Arm | None) -> str:
    if arm is None:
        return ""
    if "ms" not in arm:
        return "out of memory" if "out_of_memory" in arm else "not timed"
    return f"{arm['tokens_per_s']:,.0f} ({arm['ms']['median']:.2f})"


def shapes(found: Found) -> str:
    """Models with grouped heads, and whether it is time or capacity that eviction buys."""
    timed = arms(found, "series", "shape")
    rows, words = [], []
    for key in dict.fromkeys((arm["model"], arm["prompt"], arm["batch"]) for arm in timed):
        of = {arm["arm"]: arm for arm in timed if (arm["model"], arm["prompt"], arm["batch"]) == key}
        if not {"full", "elastic_cache"} <= set(of):
            continue
        full, kept = of["full"], of["elastic_cache"]
        faster, smaller = full["ms"]["median"] / kept["ms"]["median"], full["kv_bytes"] / kept["kv_bytes"]
        model, prompt, batch = key
        rows.append(
            [
                model,
                f"{prompt:,}",
                f"{batch}",
                span(full["ms"]),
                span(kept["ms"]),
                f"{faster:.2f}x",
                format_bytes(full["kv_bytes"]),
                format_bytes(kept["kv_bytes"]),
                f"{smaller:.1f}x",
            ]
        )
        if faster < 1.2:
            words.append(
                f"{model} at {prompt:,} tokens and batch {batch} ({faster:.2f}x as fast, {smaller:.1f}x smaller)"
            )
    said = (
        "Eviction buys capacity rather than time where the weights, not the rows, are what a step reads: "
        + "; ".join(words)
        + ".\n"
        if words
        else ""
    )
    head = ["model", "prompt", "batch", "full, ms a step", "elastic\\_cache, ms a step", "faster"]
    return section("Grouped heads, long prompts", figures([*head, "full, K/V", "kept, K/V", "smaller"], rows), said)


def capacity(found: Found) -> str:
    """The largest batches."""
    ran = [arm for arm in found.get("capacity", {}).get("arms", []) if "batch" in arm]
    rows = [
        [
            escaped(arm["arm"]),
            f"{arm['batch']}",
            format_bytes(arm["kv_bytes"]),
            *(
                format_bytes(arm[what] / arm["batch"])
                for what in ("kv_bytes", "prefill_peak_bytes", "decode_peak_bytes")
            ),
        ]
        for arm in ran
    ]
    if not rows:
        return ""
    case = ran[0]
    memory = found["capacity"].get("options", {}).get("gib")
    return section(
        "Capacity",
        f"The largest batch that fits at {case['prompt']:,} + {case['most'] - case['prompt']:,} tokens, the peak of "
        f"the prompt included, in {'all of the memory' if memory is None else f'{memory:g} GiB'}; weights take "
        f"{format_bytes(case['weight_bytes'])} of it. Peaks are beyond the weights. What the model "
        f"itself needs for the activations of a prompt is the same for each request, whatever its cache.\n",
        figures(
            ["arm", "batch", "K/V", "K/V a request", "peak of the prompt, a request", "peak of decoding, a request"],
            rows,
        ),
    )


def kernels(found: Found) -> str:
    """Verb by verb."""
    every = [arm for arm in found.get("kernels", {}).get("arms", []) if "ms" in arm]
    parts = []
    for case in dict.fromkeys(arm["case"] for arm in every):
        of = [arm for arm in every if arm["case"] == case]
        rows = [
            [
                arm["model"],
                f"{arm['rows']:,}",
                escaped(arm["arm"]),
                span(arm["ms"]),
                f"{arm['launched_ms']['median']:.2f}" if "launched_ms" in arm else "",
                f"{arm['gb_s']:,.0f} ({arm['of_copy']:.0%})" if "gb_s" in arm else "",
                f"{arm['tflop_s']:,.0f}" if arm.get("tflop_s") else "",
            ]
            for arm in of
        ]
        head = ["model", "rows", "by", "ms", "as launched, ms", "GB/s (of a copy)", "TFLOP/s"]
        parts += [f"### {case[0].upper()}{case[1:]}\n", figures(head, rows)]
    if not parts:
        return ""
    about = (
        "One layer, batch 1 (decode attention: as said). Times are the device's alone, launches hidden behind a wait, "
        "over rotating buffers larger than its cache; *as launched* they include the host's. Bytes are the fewest that "
        "the verb has to move. Attention mass and nearest keys are bound by arithmetic, so their bytes say little.\n"
    )
    return section("Kernels", about, picture("kernels", found), *parts)


def peers(found: Found) -> str:
    """Prompts under kvpress."""
    timed = arms(found, "peers", "prefill")
    return (
        section(
            "Prompts under kvpress",
            "In the process of kvpress, batch 1, beside the plain cache there.\n",
            _prompts(timed),
        )
        if timed
        else ""
    )


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


def not_measured(found: Found) -> str:
    """Suites without a file, and arms without a time."""
    lines = [f"- Suite `{suite}`: not run." for suite in SUITES if suite not in found]
    reasons = {"failed": "its gate failed", "error": "it broke", "skipped": "skipped", "left_out": "left out"}
    for suite, ran in found.items():
        cut = [each["seconds"] for each in ran.get("processes", [ran]) if not each.get("complete")]
        lines += [f"- Suite `{suite}`: cut off after {seconds:.0f} s; what came later is missing." for seconds in cut]
        for arm in ran["arms"]:
            label = f"`{suite}`, {escaped(_label(arm))}"
            lines += [f"- {label}: out of memory."] if "out_of_memory" in arm else []
            lines += [f"- {label}: {why}: {escaped(str(arm[key]))}." for key, why in reasons.items() if key in arm]
    return section("Not measured", "\n".join(lines) + "\n") if lines else ""


def _label(arm: Arm) -> str:
    wanted = ("case", "model", "batch", "prompt", "rows", "rows_held", "arm")
    return ", ".join(
        f"{key} {arm[key]}" if key not in ("case", "model", "arm") else arm[key] for key in wanted if key in arm
    )


def main() -> None:
    """Write the page and its plots."""
    found = load()
    PAGE.write_text(rendered(found), encoding="utf-8")
    PICTURES.mkdir(parents=True, exist_ok=True)
    for name in PLOTS:
        draw(name, found, PICTURES / f"{name}.svg")


if __name__ == "__main__":
    main()
