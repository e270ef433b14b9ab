"""What was to be reached, what was, and why some of it was not."""

from __future__ import annotations

from typing import NamedTuple

from . import reasons
from .parts import Arm, Found, arms, ratio

__all__ = ["targets"]

PREFILL = {4096: 1.06, 16384: 1.20, 32768: 1.30}  # of the plain prompt, under Elastic Cache
POLICY_MS = 2.0  # of a prompt of 1,024 tokens
OF_COPY = 0.7  # compaction with merge
COMPILED = {"elastic_cache": 1.05, "streaming_llm": 1.05, "h2o": 1.15, "tova": 1.15}  # of the compiled ideal
RAGGED = 1.15  # of equal heads
CAPACITY = 4.0  # times the full cache's batch


class Target(NamedTuple):
    """One line of the table; ``value`` is None where nothing was measured, ``why`` is told where it was missed."""

    what: str
    bound: float
    value: float | None
    more: bool = False  # is better
    why: str = ""

    @property
    def missed(self) -> bool:
        return self.value is not None and (self.value < self.bound if self.more else self.value > self.bound)

    def line(self) -> str:
        told = "not measured" if self.value is None else f"{self.value:.2f}"
        met = "" if self.value is None else "**missed**" if self.missed else "met"
        return f"| {self.what} | {'≥' if self.more else '≤'} {self.bound:g} | {told} | {met} |"


def targets(found: Found) -> str:
    """A table: what, how much was allowed, what was measured, and whether it was met; then why some were not."""
    asked = [target for ask in (_prefill, _compaction, _decode, _ragged, _capacity) for target in ask(found)]
    lines = ["## Targets\n", "| what | target | measured | |", "|---|---:|---:|---|", *(each.line() for each in asked)]
    why = dict.fromkeys(f"- {target.why}" for target in asked if target.missed and target.why)
    return "\n".join([*lines, *(["\nWhy those were missed:\n", *why] if why else [])]) + "\n"


def _ms(arms: list[Arm], name: str) -> float | None:
    return next((arm["ms"]["median"] for arm in arms if arm["arm"] == name), None)


def _prefill(found: Found) -> list[Target]:
    every = arms(found, "prefill", "prefill")
    lines = []
    for length, bound in PREFILL.items():
        of = [arm for arm in every if arm["prompt"] == length]
        value = ratio(_ms(of, "elastic_cache"), _ms(of, "DynamicCache"))
        what = f"prompt of {length:,} tokens under Elastic Cache, x plain sdpa"
        lines.append(Target(what, bound, value, why=reasons.prompt(found, length, _times(bound))))
    short = [arm for arm in every if arm["prompt"] == 1024]
    policy, plain = _ms(short, "elastic_cache"), _ms(short, "DynamicCache")
    adds = None if policy is None or plain is None else policy - plain
    why = reasons.prompt(found, 1024, lambda policy, plain: policy - plain <= POLICY_MS)
    return [*lines, Target("policy time at 1,024 tokens, ms", POLICY_MS, adds, why=why)]


def _times(bound: float) -> reasons.Within:
    return lambda policy, plain: policy <= bound * plain


def _compaction(found: Found) -> list[Target]:
    every = [arm for arm in arms(found, "kernels", "compaction with merge") if arm["arm"] == "triton"]
    longest = max((arm["rows"] for arm in every), default=0)
    of = [arm for arm in every if arm["rows"] == longest]
    least = min((arm["of_copy"] for arm in of), default=None)
    what = f"merge and compaction of {longest:,} rows" if every else "merge and compaction"
    what += ", the slowest shape, of the copy's bandwidth"
    return [Target(what, OF_COPY, least, more=True, why=reasons.compaction(of))]


def _decode(found: Found) -> list[Target]:
    of = arms(found, "decode", "table")
    ideal = _ms(of, "ideal, compiled")
    lines = [
        Target(f"compiled step under `{name}`, x ideal", bound, ratio(_ms(of, f"{name}, compiled"), ideal))
        for name, bound in COMPILED.items()
    ]
    eager = {arm["ms"]["median"]: arm["arm"] for arm in of if arm["launch"] == "eager" and "Cache" not in arm["arm"]}
    slowest = max(eager, default=None)
    value = ratio(slowest, _ms(of, "DynamicCache, eager"))
    why = "" if slowest is None else reasons.step(found, eager[slowest].partition(", ")[0], _times(1.0))
    return [*lines, Target("eager step, the slowest policy, x `DynamicCache`", 1.0, value, why=why)]


def _ragged(found: Found) -> list[Target]:
    every = arms(found, "kernels", "decode attention")
    models = dict.fromkeys(arm["model"] for arm in every)
    shapes = [{arm["arm"]: arm for arm in every if arm["model"] == model} for model in models]
    slowest = max((reasons.uneven(of) for of in shapes if {reasons.EQUAL, reasons.RAGGED} <= set(of)), default=None)
    what = "decode attention over ragged heads, the slowest shape, x equal heads"
    return [Target(what, RAGGED, slowest, why=reasons.ragged(shapes))]


def _capacity(found: Found) -> list[Target]:
    of = {arm["arm"]: arm for arm in found.get("capacity", {}).get("arms", []) if "batch" in arm}
    full = max((of[name] for name in ("DynamicCache", "StaticCache") if name in of), key=_batch, default=None)
    kept = max((arm for name, arm in of.items() if name.startswith("elastic_cache")), key=_batch, default=None)
    value = None if full is None or kept is None else _batch(kept) / _batch(full)
    why = reasons.capacity(full, kept)
    return [Target("largest batch under Elastic Cache, x full", CAPACITY, value, more=True, why=why)]


def _batch(arm: Arm) -> int:
    return int(arm["batch"])
