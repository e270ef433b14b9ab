"""When `Every` acts: on prompts, decoded tokens and further turns; and budgets that no request reaches."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
from custom_stages import sizes
from driving import drive, feed, make_request, same_tables

from kvpolicy import (
    AdaptiveHeads,
    ByStrengthAndSkew,
    ByVariance,
    Every,
    FixedRows,
    HeadTable,
    KeepRatio,
    LikePrompt,
    MemoryBudget,
    Pipeline,
    Policy,
    PolicyError,
    Pyramid,
    Recency,
    Scheduler,
    Session,
    Uniform,
    backend_by_name,
)

BOTH = pytest.mark.parametrize("backend", ["numpy", "torch"])


def request(tokens: int) -> Any:
    """Two batch rows, the second with two tokens of padding."""
    return make_request(batch=2, heads=1, prompt=tokens, steps=0, padding=(0, 2))


def session(schedule: Scheduler, backend: str) -> Session:
    stage = Pipeline(schedule=schedule, score=Recency())
    return Session(Policy(prefill=stage, decode=stage), backend_by_name(backend), 1)


def rows_after(schedule: Scheduler, passes: tuple[int, ...], backend: str) -> list[int]:
    """Rows that the first batch row holds after each of these passes."""
    made, start, rows = session(schedule, backend), 0, []
    for length in passes:
        rows.append(sizes(feed(made, request(sum(passes)), start, length))[0][0][0])
        start += length
    return rows


@BOTH
class TestEvery:
    def test_rows_gather_above_the_budget_until_the_nth_token(self, backend: str) -> None:
        rows = rows_after(Every(3, FixedRows(4)), (9, *(1,) * 7), backend)
        assert rows == [4, 5, 6, 4, 5, 6, 4, 5]

    def test_what_is_due_is_what_the_inner_schedule_says_then(self, backend: str) -> None:
        rows = rows_after(Every(2, KeepRatio(0.5)), (10, 1, 1, 1, 1), backend)
        assert rows == [5, 6, 6, 7, 7]  # of 12 tokens, and of 14

    def test_a_further_turn_acts_when_it_comes_and_does_not_start_the_count_anew(self, backend: str) -> None:
        rows = rows_after(Every(3, FixedRows(4)), (9, 1, 1, 5, 1, 1, 1, 1), backend)
        assert rows == [4, 5, 6, 4, 4, 5, 6, 4]  # the first token of the second turn is the third that was decoded

    def test_every_token_is_the_inner_schedule(self, backend: str) -> None:
        one, other = session(Every(1, FixedRows(4)), backend), session(FixedRows(4), backend)
        for start, length in ((0, 9), (9, 1), (10, 1), (11, 3), (14, 1)):
            same_tables(feed(one, request(15), start, length), feed(other, request(15), start, length))

    def test_a_prompt_in_chunks_is_one_prompt(self, backend: str) -> None:
        stage = Pipeline(schedule=Every(3, FixedRows(4)), score=Recency())
        made = Session(Policy(prefill=stage), backend_by_name(backend), 1, prompt_length=9)
        rows = [sizes(feed(made, request(9), start, length))[0][0][0] for start, length in ((0, 4), (4, 1), (5, 4))]
        assert rows == [4, 5, 4]


@pytest.mark.parametrize("rows", [2**31, 2**53 + 1, 2**62, sys.maxsize, 2**63, 10**400])
@pytest.mark.parametrize("schedule", [FixedRows, MemoryBudget])
@pytest.mark.parametrize(
    "allocate",
    [Uniform(), Pyramid(), AdaptiveHeads(), ByVariance(), ByStrengthAndSkew(), HeadTable(((3, 1), (1, 0)))],
    ids=repr,
)
def test_a_budget_beyond_any_memory_keeps_everything(schedule: Any, rows: int, allocate: Any) -> None:
    prefill = Pipeline(schedule=schedule(rows), score=Recency(), allocate=allocate)
    policy = Policy(prefill=prefill, decode=replace(prefill, allocate=LikePrompt()))
    data = make_request(layers=2, batch=2, heads=2, prompt=9, steps=2, padding=(0, 2))
    for done, due in zip(*(drive(p, data, backend="torch").passes for p in (policy, Policy())), strict=True):
        if isinstance(allocate, HeadTable):  # a head with no share of the budget has none of this one either
            done.tables[1][0].pop(), done.tables[1][1].pop(), due.tables[1][0].pop(), due.tables[1][1].pop()
        same_tables(done, due)


@pytest.mark.parametrize(
    ("steps", "schedule", "says"),
    [
        (0, FixedRows(4), "steps=0"),
        (-1, FixedRows(4), "steps=-1"),
        (1.0, FixedRows(4), r"steps=1\.0"),
        (True, FixedRows(4), "steps=True"),
        (2, FixedRows, "schedule=FixedRows.*instance"),
        (2, Recency(), r"schedule=Recency\(\).*Scheduler.*budget"),
        (2, 4, "schedule=4"),
    ],
)
def test_every_refuses(steps: Any, schedule: Any, says: str) -> None:
    with pytest.raises(PolicyError, match=rf"(?s)^Every\(.*{says}"):
        Every(steps, schedule)
