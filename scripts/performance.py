"""`docs/performance.md` and its plots, from the JSON files that the suites of `benchmarks` wrote.

    python -m scripts.performance    (in the root of the repository)

Nothing is measured here, and nothing is typed in: a suite whose file is missing, and an arm that was not timed, are
listed as such.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scripts.page import DOCS, escaped
from scripts.performance_kernels import kernels
from scripts.performance_parts import Arm, Found, arms, figures, section, span
from scripts.performance_peers import not_run, peers
from scripts.performance_plots import PLOTS, draw, picture
from scripts.performance_targets import targets

from kvpolicy import format_bytes

PAGE = DOCS / "performance.md"
RESULTS = DOCS / "results" / "performance"
PICTURES = DOCS / "assets" / "performance"
NOISE = 0.1  # of a step: where fewer rows save no more than that, the host's launches are what takes the time
WORTH = 1.2  # times as fast, from which on it is called time that eviction buys
SUITES = ("kernels", "launches", "prefill", "decode", "series", "capacity", "peers", "cpu")

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
    a further process ran again is the further one's; one that it only skipped is not.

    Raises:
        ValueError: if one is of a trial at tiny sizes.
    """
    found: Found = {}
    for suite in SUITES:
        by: dict[str, Arm] = {}
        for file in [*folder.glob(f"{suite}.json"), *sorted(folder.glob(f"{suite}-*.json"))]:
            ran = json.loads(file.read_text(encoding="utf-8"))
            if ran["small"]:
                raise ValueError(f"{file} is no result: it was made with --small.")
            again = {_identity(arm): arm for arm in ran["arms"]}
            again = {key: arm for key, arm in again.items() if "skipped" not in arm or key not in by}
            by = {key: arm for key, arm in by.items() if key not in again} | again
            whole = found.setdefault(suite, {**ran, "processes": []})
            whole["arms"] = list(by.values())
            whole["processes"].append(ran)
    return found


def _identity(arm: Arm) -> str:
    """Its case and its name: what stands before its results."""
    keys = list(arm)
    return json.dumps({key: arm[key] for key in keys[: keys.index("arm") + 1]}, sort_keys=True)


def rendered(found: Found) -> str:
    """The page."""
    parts = [HEAD, targets(found)]
    sections = (decoding, prompts, launches, throughput, shapes, capacity, peers, kernels, cpu)
    parts += [section(found) for section in sections]
    parts += [machines(found), not_measured(found)]
    return "\n".join(part for part in parts if part)


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


def main() -> None:
    """Write the page and its plots."""
    found = load()
    PAGE.write_text(rendered(found), encoding="utf-8")
    PICTURES.mkdir(parents=True, exist_ok=True)
    for name in PLOTS:
        draw(name, found, PICTURES / f"{name}.svg")


if __name__ == "__main__":
    main()
