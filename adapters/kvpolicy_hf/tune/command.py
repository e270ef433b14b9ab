"""`kvpolicy tune`: search for the composition that keeps the most quality at a budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import polars as pl
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers.utils import logging

from .._progress import progress_bar
from ..evaluate.progress import shown_on
from ..evaluate.run import subject_of
from ..loading.threads import fit_threads
from ..simulate.named import check_keep
from .search import Tuned
from .search import tune as search

__all__ = ["tune"]

SHOWN = 10  # candidates of the last round


def tune(
    model: Annotated[str, typer.Argument(help="Folder, hub id, 'demo' or 'smollm2'.", show_default=True)] = "demo",
    task: Annotated[
        list[str] | None,
        typer.Option(help="A task, or module:Name; repeatable.", show_default="those made for the model"),
    ] = None,
    keep: Annotated[float, typer.Option(help="Share of the cache that may be kept, in (0, 1].")] = 0.2,
    trials: Annotated[int, typer.Option(help="Compositions that are replayed over records.", min=1)] = 200,
    candidates: Annotated[int, typer.Option(help="How many of them answer, beside every recipe.", min=1)] = 27,
    answered: Annotated[
        int, typer.Option(help="Compositions that a second search, by real answers, then tries.", min=0)
    ] = 54,
    samples: Annotated[
        int, typer.Option(help="Samples of each task in the first round; three times as many in each further one.")
    ] = 8,
    rounds: Annotated[int, typer.Option(help="Rounds of answers, each with a third of the candidates.", min=1)] = 3,
    records: Annotated[int, typer.Option(help="Samples of each task that are replayed.", min=1)] = 4,
    test: Annotated[int, typer.Option(help="Samples of each task that the winner is judged by.", min=1)] = 100,
    seed: Annotated[int, typer.Option(help="Draws samples and compositions.", min=0)] = 0,
    out: Annotated[Path, typer.Option(help="Folder of the results; a search goes on where it stopped.")] = Path(
        "kvpolicy-tune"
    ),
) -> None:
    """Search scorer, allocator, selector and merger for the best composition on your data.

    Compositions are first replayed over recorded requests. A second search
    begins with the best of them and goes by real answers. The best of both
    answer beside every recipe, and the best of these answer more. The winner
    is judged on samples that the search has not seen, and written to
    winner.json, which kvpolicy.from_json and `kvpolicy eval --policy` read.

    Examples:
        kvpolicy tune demo --keep 0.2

        kvpolicy tune demo --task photo-where --trials 50 --candidates 9
    """
    check_keep(keep)  # before the model is loaded: what the user gave may be wrong
    logging.disable_progress_bar()
    with progress_bar("loading the model") as bar:
        subject = subject_of(model)
        fit_threads(subject.model)
        found = search(
            subject,
            keep=keep,
            out=out,
            tasks=task,
            trials=trials,
            candidates=candidates,
            answered=answered,
            samples=samples,
            rounds=rounds,
            records=records,
            test=test,
            seed=seed,
            done=shown_on(Console(stderr=True, soft_wrap=True), bar),
        )
    console = Console()
    console.print(_last_round(found))
    console.print(Text.assemble("winner: ", (repr(found.winner), "cyan")), soft_wrap=True)
    console.print(Text(_judgement(found)))
    console.print(Text.assemble("written: ", (str(out / "winner.json"), "bold cyan")))


def _last_round(found: Tuned) -> Table:
    size, ranked = found.rounds[-1]
    table = Table(
        title=Text(f"mean quality, {size} samples a task", style="bold"), title_justify="left", box=box.SIMPLE_HEAD
    )
    table.add_column("candidate", style="cyan", no_wrap=True)
    table.add_column("quality", justify="right")
    for name, value in ranked[:SHOWN]:
        table.add_row(Text(name), f"{value:.3f}")
    return table


def _judgement(found: Tuned) -> str:
    told = found.comparison.filter(pl.col("task") == "all").to_dicts()[0]
    return (
        f"against {found.best_recipe}, the best recipe, on samples not seen before: {told['value']:.3f} and "
        f"{told['baseline']:.3f}, a difference of {told['difference']:+.3f} [{told['difference_low']:+.3f}, "
        f"{told['difference_high']:+.3f}]: {told['verdict']}"
    )
