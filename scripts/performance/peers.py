"""The section of `docs/performance.md` on kvpress: its presses beside what kvpolicy has for the same thing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeAlias

from scripts.page import escaped

from kvpolicy import format_bytes

from .parts import Arm, Found, arms, figures, section, span

__all__ = ["not_run", "peers"]

PLAIN = "DynamicCache"
PAIRS = {  # a press, and the recipes of kvpolicy that stand beside it
    PLAIN: (PLAIN,),
    "snapkv: SnapKVPress": ("snapkv",),
    "h2o: ObservedAttentionPress": ("h2o",),
    "MergingPress over SnapKVPress": ("elastic_cache",),
    "k_norm: DecodingPress over KnormPress": ("streaming_llm", "tova"),
}
ALIKE = 0.02  # relative: where both sides differ by less, neither is called cheaper

Prompts: TypeAlias = dict[tuple[str, int], Arm]  # of one library's processes, by arm and length


class Contest(NamedTuple):
    """What the same thing costs under a press and under a recipe."""

    press: str
    recipe: str
    where: str
    kvpress: float
    kvpolicy: float


def peers(found: Found) -> str:
    """Prompts, then decode steps."""
    parts = _prompts(found) + _steps(found)
    if not parts:
        return ""
    versions = found["peers"]["machine"]
    about = (
        f"kvpress {versions.get('kvpress', '')} on transformers {versions.get('transformers', '')}, in processes of "
        f"its own. The plain `{PLAIN}` was timed there, too: what a press or a policy adds is added to the plain "
        "cache's time in its own process. Each press stands above what kvpolicy has for the same thing, though they do "
        "not do quite the same. `h2o` and `elastic_cache` go on evicting while decoding, `snapkv` and the presses but "
        "`DecodingPress` do not. `MergingPress` folds values into the survivor of the most similar key, "
        "`elastic_cache` keys and values into the survivor that is nearest by position, which is less work. "
        "`ObservedAttentionPress` needs the attention weights that only eager attention gives. `DecodingPress` leaves "
        "prompts as they are.\n"
    )
    return section("Against kvpress", about, *parts)


def not_run(found: Found) -> list[str]:
    """Prompts that a press was not given, though the plain cache of its process was."""
    theirs = _by_length(found, "peers")
    presses = dict.fromkeys(press for press, _ in theirs)
    missing = [(press, length) for press in presses for length in _lengths(theirs) if (press, length) not in theirs]
    return [f"prefill, prompt {length}, {escaped(press)}" for press, length in missing]


def _by_length(found: Found, suite: str) -> Prompts:
    return {(arm["arm"], arm["prompt"]): arm for arm in arms(found, suite, "prefill")}


def _lengths(side: Prompts) -> list[int]:
    return sorted({length for _, length in side})


def _bare(name: str) -> str:
    """Without the recipe before a press, and without the launch that is common."""
    return name.rpartition(": ")[2].removesuffix(", eager")


def _who(library: str, arm: str) -> str:
    """The first cell of a row."""
    name = escaped(_bare(arm))
    return f"{name}, {library}'s process" if name == PLAIN else f"{library}: {name}"


def _prompts(found: Found) -> list[str]:
    """What is added to a prompt's time, its peak, and where which side is cheaper."""
    theirs, ours = _by_length(found, "peers"), _by_length(found, "prefill")
    presses, lengths = {press for press, _ in theirs}, _lengths(theirs)
    pairs = [(press, name) for press, names in PAIRS.items() if press in presses for name in names]
    if not pairs:
        return []

    def rows(cell: Callable[[Prompts, str, int], str]) -> Iterable[list[str]]:
        for press, name in pairs:
            for who, side, arm in (("kvpress", theirs, press), ("kvpolicy", ours, name)):
                yield [_who(who, arm), *(cell(side, arm, length) for length in lengths)]

    def contests(cost: Callable[[Prompts, str, int], float | None]) -> Iterable[Contest]:
        for press, name in pairs:
            for length in lengths if press != PLAIN else ():
                costs = cost(theirs, press, length), cost(ours, name, length)
                if None not in costs:
                    yield Contest(_bare(press), name, f"at {length:,} tokens ", *costs)

    head = [f"{length:,} tokens" for length in lengths]
    return [
        "### Prompts, beside kvpress\n",
        figures(["added to the prompt", *head], rows(_added)),
        figures(["peak; K/V left", *head], rows(_memory)),
        _verdict("A prompt takes less time", contests(_times_plain), "{:.2f}x".format),
        _verdict("The peak of a prompt is lower", contests(_peak), format_bytes),
        _again(ours, arms(found, "launches", "launches")),
    ]


def _times_plain(side: Prompts, name: str, length: int) -> float | None:
    """Its time, of the plain cache's."""
    arm, plain = side.get((name, length)), side.get((PLAIN, length))
    return None if arm is None or plain is None else arm["ms"]["median"] / plain["ms"]["median"]


def _added(side: Prompts, name: str, length: int) -> str:
    times = _times_plain(side, name, length)
    if times is None:
        return "not run"
    median = side[name, length]["ms"]["median"]
    return f"{median:.2f} ms" if name == PLAIN else f"{median - median / times:+.2f} ms, {times:.2f}x"


def _peak(side: Prompts, name: str, length: int) -> float | None:
    arm = side.get((name, length))
    return None if arm is None else arm["peak_bytes"]


def _memory(side: Prompts, name: str, length: int) -> str:
    arm = side.get((name, length))
    return "not run" if arm is None else f"{format_bytes(arm['peak_bytes'])}; {format_bytes(arm['kv_bytes'])}"


def _verdict(what: str, contests: Iterable[Contest], told: Callable[[float], str]) -> str:
    """Who is cheaper where: a line for each side that is anywhere."""
    sides = ("kvpress", "kvpolicy", f"neither, within {ALIKE:.0%}")
    lines: dict[str, dict[str, list[str]]] = {side: {} for side in sides}
    for press, recipe, where, theirs, ours in contests:
        low, high = sorted((theirs, ours))
        side, name = (sides[0], f"`{press}`") if theirs < ours else (sides[1], f"`{recipe}`")
        if high - low < ALIKE * high:
            side, name = sides[2], f"`{press}` and `{recipe}`"
        lines[side].setdefault(name, []).append(f"{where}({told(low)} against {told(high)})")
    said = {side: "; ".join(f"{name} {', '.join(where)}" for name, where in of.items()) for side, of in lines.items()}
    return "".join(f"- {what} under {side}: {words}.\n" for side, words in said.items() if words)


def _again(ours: Prompts, launches: list[Arm]) -> str:
    """How far two processes are apart on the same prompts: the shorter ones wait for the host."""
    twice = [
        (arm["arm"], arm["prompt"], *sorted((arm["ms"]["median"], ours[arm["arm"], arm["prompt"]]["ms"]["median"])))
        for arm in launches
        if arm["pass"] == "prompt" and (arm["arm"], arm["prompt"]) in ours
    ]
    if not twice:
        return ""
    name, length, low, high = max(twice, key=lambda each: each[3] / each[2])
    return (
        "Short prompts wait for the host, too. The same ones under kvpolicy were up to "
        f"{high / low:.1f}x apart in another process (`{name}` at {length:,} tokens: {low:.2f} and {high:.2f} ms); "
        "[where the time goes](#where-the-time-goes) has what the device alone takes.\n"
    )


def _steps(found: Found) -> list[str]:
    """Decode steps of the table's setting, with the memory of both passes, and where which side is cheaper."""
    theirs = {arm["arm"].removesuffix(", eager"): arm for arm in arms(found, "peers", "table")}
    table = arms(found, "decode", "table")
    beside = {press: _beside(table, names) for press, names in PAIRS.items() if press in theirs}
    if not beside:
        return []
    plain = next((arm for arm in table if arm["arm"] == f"{PLAIN}, eager"), None)
    rows = []
    for press, ours in beside.items():
        rows.append(_step("kvpress", theirs[press], theirs.get(PLAIN)))
        rows += [_step("kvpolicy", arm, plain) for arm in ours]

    def contests(what: str) -> Iterable[Contest]:
        for press, ours in beside.items():
            for arm in ours if press != PLAIN else ():
                yield Contest(_bare(press), _bare(arm["arm"]), "", theirs[press][what], arm[what])

    case = next(iter(theirs.values()))
    head = ["cache", "ms a step", "K/V", "peak of the prompt", "peak of decoding", "added to the prompt"]
    return [
        "### Decode steps, beside kvpress\n",
        f"{case['model']}, batch {case['batch']}, prompt {case['prompt']:,} tokens, as under [decoding](#decoding). "
        "The prompt is the whole batch's, timed once. What was not timed eagerly stands here compiled.\n",
        figures(head, rows),
        _host(theirs, beside),
        _verdict("K/V take fewer bytes", contests("kv_bytes"), format_bytes),
        _verdict("The peak of decoding is lower", contests("decode_peak_bytes"), format_bytes),
        "A `DynamicCache`, on which presses work, has no room to spare: it is copied at every step. kvpolicy's tables "
        "grow ahead of their rows.\n",
    ]


def _beside(table: list[Arm], names: Iterable[str]) -> list[Arm]:
    """Arms of these recipes, launched as presses are, or else compiled."""
    by = {arm["arm"]: arm for arm in table}
    either = (by.get(f"{name}, eager", by.get(f"{name}, compiled")) for name in names)
    return [arm for arm in either if arm is not None]


def _step(who: str, arm: Arm, plain: Arm | None) -> list[str]:
    added = ""
    if plain is not None and arm["launch"] == plain["launch"]:
        before, now = plain["prefill_ms"], arm["prefill_ms"]
        added = f"{now:.0f} ms" if arm is plain else f"{now - before:+.0f} ms, {now / before:.2f}x"
    sizes = (format_bytes(arm[what]) for what in ("kv_bytes", "prefill_peak_bytes", "decode_peak_bytes"))
    return [_who(who, arm["arm"]), span(arm["ms"]), *sizes, added]


def _host(theirs: dict[str, Arm], beside: dict[str, list[Arm]]) -> str:
    """How little the times of eager steps say: presses whose steps are the plain cache's took different ones."""
    rows = [theirs[press]["rows"] for press in beside]
    same = [press for press in beside if rows.count(theirs[press]["rows"]) > 1]
    if not same:
        return ""
    pairs = [(theirs[press], arm) for press in same for arm in beside[press] if arm["launch"] == "eager"]
    shorter = sum(press["ms"]["median"] < arm["ms"]["median"] for press, arm in pairs)
    low, *_, high = sorted(theirs[press]["ms"]["median"] for press in same)
    return (
        "Eager steps wait for the host, and how fast it was changed from arm to arm. "
        f"{', '.join(f'`{_bare(press)}`' for press in same)} leave {theirs[same[0]]['rows']:,} rows each and add "
        f"nothing to a step, and yet a step took from {low:.1f} to {high:.1f} ms, {high / low:.1f}x. So that a press's "
        f"step was the shorter in {shorter} of {len(pairs)} pairs says little about which library decodes faster. In a "
        "CUDA graph or compiled, where the host does not matter, only kvpolicy was timed. Memory does not depend on "
        "the host.\n"
    )
