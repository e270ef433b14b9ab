"""Notes under the table, and lines of progress."""

from __future__ import annotations

import polars as pl
from made_rows import simple

import kvpolicy
from kvpolicy_hf.evaluate import Arm, summarise
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
