"""The demo's tables: answers picture by picture, and how many were right in all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from kvpolicy import format_bytes

from .answers import Answer
from .results import Result

__all__ = ["answers_table", "costs_table", "scores_table"]


def answers_table(results: Sequence[Result]) -> Table:
    """One picture: a row per policy, a column per question."""
    table = _table(results[0].case.title)
    for result in results:
        table.add_column(Text(result.case.prompt.question), min_width=8)
    for name in results[0].answers:
        table.add_row(Text(name), *(_marked(result, name) for result in results))
    return table


def scores_table(results: Sequence[Result]) -> Table:
    """How many answers are right: in all, by kind of picture and by kind of question."""
    table = _table(f"right answers to {len(results)} questions")
    groups: dict[str, list[Result]] = {"all": list(results)}
    for result in results:
        groups.setdefault(result.case.kind, []).append(result)
    for result in results:
        groups.setdefault(result.case.task, []).append(result)
    for name in groups:
        table.add_column(name, justify="right", no_wrap=True)
    for name in results[0].answers:
        table.add_row(Text(name), *(_share(group, name) for group in groups.values()))
    return table


def costs_table(results: Sequence[Result]) -> Table:
    """What the cache held after each answer, averaged over the questions, and the speed."""
    table = _table("the cache after an answer")
    for name in ("rows", "bytes of keys and values", "tokens/s"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in results[0].answers:
        table.add_row(Text(name), *_costs([result.answers[name] for result in results]))
    return table


def _table(title: str) -> Table:
    """A table that begins with the policy's name. Titles and names are the user's: in a `Text` nothing is markup."""
    heading = Text(title, style="bold")
    table = Table(title=heading, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0))
    table.add_column("policy", style="cyan", no_wrap=True)
    return table


def _costs(answers: Sequence[Answer]) -> tuple[str, str, str]:
    """Rows of tokens seen (mean over layers), bytes and their share of what all tokens take, tokens a second."""
    rows = [_mean(answer.rows) for answer in answers]
    held, whole = _mean(answer.kv_bytes for answer in answers), _mean(answer.full_kv_bytes for answer in answers)
    speed = sum(answer.new_tokens for answer in answers) / sum(answer.seconds for answer in answers)
    return (
        f"{_mean(rows):.0f} of {_mean(answer.tokens for answer in answers):.0f}",
        f"{format_bytes(held)}  {held / whole:4.0%}",
        f"{speed:.0f}",
    )


def _marked(result: Result, name: str) -> Text:
    """The answer, green or red; in a wrong one the words that differ stand out."""
    words, right = result.answers[name].text.split(), result.right.split()
    if result.is_right(name):
        return Text("✓ " + " ".join(words), style="green")
    if result.case.prompt.answer is not None and len(words) > len(right) + 1:  # it rambles; enough is seen
        words = [*words[: len(right) + 1], "…"]
    text = Text("✗ " + ("" if words else "(nothing)"), style="red")
    for number, word in enumerate(words):
        same = number < len(right) and word == right[number]
        text.append(word + " ", style="dim" if same else "bold")
    text.rstrip()
    return text


def _share(results: Sequence[Result], name: str) -> Text:
    right = sum(result.is_right(name) for result in results)
    share = right / len(results)
    return Text(f"{right}/{len(results)}", style="green" if share >= 0.9 else "yellow" if share >= 0.5 else "red")


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)
