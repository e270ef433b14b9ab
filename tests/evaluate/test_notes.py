"""Notes under the table, and lines of progress."""

from __future__ import annotations

import polars as pl
from made_rows import simple

import kvpolicy
from kvpolicy_hf.evaluate import Arm, pareto, summarise
from kvpolicy_hf.evaluate.chance import no_better_than_chance
from kvpolicy_hf.evaluate.notes import notes_of
from kvpolicy_hf.evaluate.progress import Lines


def notes(shares: dict[tuple[str, float | None], float], *arms: Arm) -> list[str]:
    """Of policies that hold these shares of prompts of 100 rows."""
    held = [
        simple({arm: [1.0]}).with_columns(kv_bytes=pl.lit(round(1000 * share), pl.Int64))
        for arm, share in shares.items()
    ]
    rows = pl.concat(held)
    return notes_of(rows, summarise(rows, resamples=100), arms)


def test_nothing_to_say() -> None:
    assert notes({("full", 1.0): 1.0, ("a", 0.2): 0.24, ("own", None): 0.9}) == []


def test_storage_that_grows_ahead_is_told_and_excuses_the_others() -> None:
    (told,) = notes({("full", 1.0): 1.09, ("a", 0.2): 0.27})
    assert "full cache itself takes 109%" in told


def test_who_holds_far_more_than_asked() -> None:
    (told,) = notes({("full", 1.0): 1.0, ("a", 0.2): 0.3, ("b", 0.2): 0.21, ("a", 0.5): 0.51, ("c", 0.1): 0.2})
    assert told.startswith("More bytes than asked for: a 30% at a budget of 20%, c 20% at a budget of 10%. ")


def test_a_window_that_is_more_than_the_budget() -> None:
    makers = {"snapkv": kvpolicy.snapkv, "ada_kv": kvpolicy.ada_kv, "tova": kvpolicy.tova, "h2o": kvpolicy.h2o}
    arms = [Arm(name, keep, make(keep=keep)) for name, make in makers.items() for keep in (0.5, 0.2)]
    arms += [Arm("small", 0.2, kvpolicy.snapkv(keep=0.2, window=8)), Arm("failed", 0.2, kvpolicy.snapkv(keep=0.2))]
    measured: dict[tuple[str, float | None], float] = {("full", 1.0): 1.0}
    measured |= {(arm.label, arm.keep): arm.keep or 1.0 for arm in arms if arm.label != "failed"}
    (told,) = notes(measured, *arms)
    assert told.startswith(
        "At a budget of 20%, 20 of 100 rows, the window of 32 rows takes all that snapkv and ada_kv may keep: "
    )


RIGHT = [1.0] * 19 + [0.0]
CHANCE = [0.0, 1.0] * 10


def on_the_front(**policies: list[float]) -> pl.DataFrame:
    """Policies at a fifth of the cache: of equal bytes, but each holds a little less than the one before."""
    values = {("full", 1.0): [1.0] * 20, **{(name, 0.2): quality for name, quality in policies.items()}}
    rows = simple(values)
    place = {name: number for number, name in enumerate(["full", *policies])}
    less = pl.col("policy").replace_strict(place, return_dtype=pl.Int64)
    return rows.with_columns(kv_bytes=pl.col("kv_bytes") - less)


def test_few_bytes_alone_are_no_merit() -> None:
    rows = on_the_front(good=RIGHT, random=CHANCE, lucky=CHANCE[::-1], poor=[0.0] * 19 + [1.0])
    summary = summarise(rows)
    assert pareto(summary)["policy"].to_list() == ["poor", "lucky", "good", "full"]
    assert no_better_than_chance(rows, pareto(summary)) == [("poor", 0.2), ("lucky", 0.2)]
    (told,) = notes_of(rows, summary, [])
    assert "not marked in the report: poor at a budget of 20%, lucky at a budget of 20%. " in told


def test_chance_itself_is_no_merit_and_no_news() -> None:
    rows = on_the_front(good=RIGHT, random=CHANCE)
    assert no_better_than_chance(rows, pareto(summarise(rows))) == [("random", 0.2)]
    assert notes_of(rows, summarise(rows), []) == []


def test_without_chance_at_the_budget_or_groups_nothing_is_known() -> None:
    rows = on_the_front(lucky=CHANCE)
    elsewhere = rows.filter(policy="lucky").with_columns(
        policy=pl.lit("random"), keep=pl.lit(0.5), kv_bytes=pl.lit(500, pl.Int64)
    )
    failed = elsewhere.with_columns(keep=pl.lit(0.2), quality=pl.lit(None, pl.Float64))
    for known in (rows, pl.concat([rows, elsewhere]), pl.concat([rows, failed])):
        assert no_better_than_chance(known, pareto(summarise(known))) == []
    rows = on_the_front(random=CHANCE, lucky=CHANCE).with_columns(group=pl.lit("one picture"))
    front = pareto(summarise(rows))
    assert "lucky" in front["policy"]
    assert no_better_than_chance(rows, front) == []


def test_a_line_at_each_tenth_and_each_minute_with_the_time_to_go() -> None:
    now, lines = [0.0], list[str]()
    shown = Lines(lines.append, clock=lambda: now[0])
    for done in range(1, 41):
        now[0] += 0.0 if done <= 10 else 20.0 if done <= 22 else 1.0  # ten were there, some are slow
        shown.show("measuring", done, 40)
    assert lines[:4] == [
        "measuring: 4 of 40",
        "measuring: 8 of 40",
        "measuring: 12 of 40, about 9 min to go",
        "measuring: 15 of 40, about 8 min to go",
    ]
    assert lines[-2:] == ["measuring: 36 of 40, about 39 s to go", "measuring: 40 of 40"]


def test_what_follows_has_tenths_and_a_pace_of_its_own() -> None:
    now, lines = [0.0], list[str]()
    shown = Lines(lines.append, clock=lambda: now[0])
    for what, seconds in (("replaying", 1.0), ("answering", 4.0)):
        for done in range(1, 6):
            now[0] += seconds
            shown.show(what, done, 5)
    assert lines[:2] == ["replaying: 1 of 5, about 4 s to go", "replaying: 2 of 5, about 3 s to go"]
    assert lines[4:7] == [
        "replaying: 5 of 5",
        "answering: 1 of 5, about 16 s to go",
        "answering: 2 of 5, about 12 s to go",
    ]
