"""What was to be reached, and what was."""

from __future__ import annotations

from typing import Any, TypeAlias

Arm: TypeAlias = dict[str, Any]
Found: TypeAlias = dict[str, dict[str, Any]]

PREFILL = {4096: 1.06, 16384: 1.20, 32768: 1.30}  # of the plain prompt, under Elastic Cache
POLICY_MS = 2.0  # of a prompt of 1,024 tokens
OF_COPY = 0.7  # compaction with merge
COMPILED = {"elastic_cache": 1.05, "streaming_llm": 1.05, "h2o": 1.15, "tova": 1.15}  # of the compiled ideal
RAGGED = 1.15  # of equal heads
CAPACITY = 4.0  # times the full cache's batch


def targets(found: Found) -> str:
    """A table: what, how much was allowed, what was measured, and whether it was met."""
    lines = []
    asked = (_prefill, _compaction, _decode, _ragged, _capacity)
    for what, bound, value, more in [line for ask in asked for line in ask(found)]:
        if value is None:
            told, met = "not measured", ""
        else:
            told, met = f"{value:.2f}", "met" if (value >= bound if more else value <= bound) else "**missed**"
        sign = "≥" if more else "≤"
        lines.append(f"| {what} | {sign} {bound:g} | {told} | {met} |")
    return "\n".join(["## Targets\n", "| what | target | measured | |", "|---|---:|---:|---|", *lines]) + "\n"


Line: TypeAlias = tuple[str, float, float | None, bool]  # what, bound, value, whether more is better


def _arms(found: Found, suite: str, case: str) -> list[Arm]:
    return [arm for arm in found.get(suite, {}).get("arms", []) if arm["case"] == case and "ms" in arm]


def _ms(arms: list[Arm], name: str) -> float | None:
    return next((arm["ms"]["median"] for arm in arms if arm["arm"] == name), None)


def _ratio(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one / other


def _prefill(found: Found) -> list[Line]:
    every = _arms(found, "prefill", "prefill")
    lines: list[Line] = []
    for length, bound in PREFILL.items():
        of = [arm for arm in every if arm["prompt"] == length]
        value = _ratio(_ms(of, "elastic_cache"), _ms(of, "DynamicCache"))
        lines.append((f"prompt of {length:,} tokens under Elastic Cache, x plain sdpa", bound, value, False))
    short = [arm for arm in every if arm["prompt"] == 1024]
    policy, plain = _ms(short, "elastic_cache"), _ms(short, "DynamicCache")
    adds = None if policy is None or plain is None else policy - plain
    return [*lines, ("policy time at 1,024 tokens, ms", POLICY_MS, adds, False)]


def _compaction(found: Found) -> list[Line]:
    every = [arm for arm in _arms(found, "kernels", "compaction with merge") if arm["arm"] == "triton"]
    longest = max((arm["rows"] for arm in every), default=0)
    least = min((arm["of_copy"] for arm in every if arm["rows"] == longest), default=None)
    what = f"merge and compaction of {longest:,} rows" if every else "merge and compaction"
    return [(f"{what}, the slowest shape, of the copy's bandwidth", OF_COPY, least, True)]


def _decode(found: Found) -> list[Line]:
    of = _arms(found, "decode", "table")
    ideal = _ms(of, "ideal, compiled")
    lines: list[Line] = [
        (f"compiled step under `{name}`, x ideal", bound, _ratio(_ms(of, f"{name}, compiled"), ideal), False)
        for name, bound in COMPILED.items()
    ]
    eager = [arm["ms"]["median"] for arm in of if arm["launch"] == "eager" and "Cache" not in arm["arm"]]
    slowest = _ratio(max(eager, default=None), _ms(of, "DynamicCache, eager"))
    return [*lines, ("eager step, the slowest policy, x `DynamicCache`", 1.0, slowest, False)]


def _ragged(found: Found) -> list[Line]:
    every = _arms(found, "kernels", "decode attention")
    ratios = []
    for model in dict.fromkeys(arm["model"] for arm in every):
        of = [arm for arm in every if arm["model"] == model]
        ratios.append(_ratio(_ms(of, "kernel, ragged heads"), _ms(of, "kernel, equal heads")))
    slowest = max((ratio for ratio in ratios if ratio is not None), default=None)
    return [("decode attention over ragged heads, the slowest shape, x equal heads", RAGGED, slowest, False)]


def _capacity(found: Found) -> list[Line]:
    batches = {arm["arm"]: arm["batch"] for arm in found.get("capacity", {}).get("arms", []) if "batch" in arm}
    full = max((batches[name] for name in ("DynamicCache", "StaticCache") if name in batches), default=None)
    kept = max((batch for name, batch in batches.items() if name.startswith("elastic_cache")), default=None)
    return [("largest batch under Elastic Cache, x full", CAPACITY, _ratio(kept, full), True)]
