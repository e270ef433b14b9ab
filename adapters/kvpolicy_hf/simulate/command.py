"""`kvpolicy simulate`: what policies would keep and lose of a recorded request, offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text
from transformers.utils import logging

from .. import enable
from .._progress import progress_bar
from ..demo.cases import drawn_cases
from ..demo.prompts import encode
from ..loading import load_model
from ..loading.threads import fit_threads
from .compare import choose, compare
from .plot import draw_plot
from .record import Record
from .record import record as record_request
from .storage import load_record
from .tables import errors_table, summary_table

__all__ = ["simulate"]

ASKED = ("grid", "row")  # the demo's question with the longest answer

NOTE = (
    "Open loop: each layer and step by itself, on what the full cache computed; in a real run losses add up. A token "
    "that was merged into another counts as gone in mass and recall; what is left of it shows in the output error. The "
    "clairvoyant keeps the rows that the rest of the record attends to most: it bounds the mass, not the error."
)


def simulate(
    path: Annotated[
        Path | None,
        typer.Argument(help="A record, made by --record or by kvpolicy_hf.simulate.record().", metavar="RECORD"),
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(help="First make a record in this file: the demo's model answers one question about a picture."),
    ] = None,
    policies: Annotated[
        str | None,
        typer.Option(
            help="Recipes, with arguments if you like, files of policies, or module:Name of policies or scorers of "
            "your own, between commas.",
            show_default="every recipe that needs no more than a budget",
            metavar="NAME, NAME(ARG=VALUE) ...",
        ),
    ] = None,
    keep: Annotated[float, typer.Option(help="Share of the cache that each policy may keep, in (0, 1].")] = 0.2,
    seed: Annotated[int, typer.Option(help="With --record: draws the picture and the question.", min=0)] = 0,
    out: Annotated[Path, typer.Option(help="Where to write the plot.", dir_okay=False)] = Path("kvpolicy-simulate.png"),
) -> None:
    r"""Replay a recorded request under any policy: attention kept, rows found, output error.

    A record holds the queries, keys and values of every layer while a model
    answered one prompt with its full cache. Replaying it needs no model.

    Examples:
        kvpolicy simulate --record demo.safetensors

        kvpolicy simulate demo.safetensors --keep 0.5 \
            --policies "h2o, elastic_cache(last=8), my_module:MyScorer"
    """
    if (path is None) == (record is None):
        raise typer.BadParameter("give either a RECORD to replay, or --record FILE to make one.")
    if not _is_folder(out.parent):
        raise typer.BadParameter(f"there is no folder {str(out.parent)!r} to write the plot to.", param_hint="--out")
    chosen = choose(policies, keep)
    console = Console()
    file = path or record
    assert file is not None
    with progress_bar("reading the record" if record is None else "recording") as bar:
        data = load_record(file) if record is None else record_demo(file, seed)
        bar.begin("replaying", len(chosen))
        results = compare(data, chosen, keep, done=bar.advance)
    about = (
        f"{data.model}: {data.prompt} prompt tokens, {data.steps} decode steps, {data.layers} layers; "
        f"each policy may keep {keep:.0%}"
    )
    console.print(Text.assemble((_printable(file), "bold cyan"), f"  {about}\n"))
    console.print(summary_table(results))
    console.print(errors_table(results))
    console.print(Text(NOTE, style="dim"))
    try:
        draw_plot("What a KV-cache policy keeps and loses", about, results, out)
    except OSError as error:
        raise typer.BadParameter(f"the plot cannot be written: {error}.", param_hint="--out") from error
    console.print(Text.assemble("plot: ", (_printable(out), "bold cyan")))


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name that no folder can have
        return False


def _printable(path: Path) -> str:
    """A file may have a name that is no UTF-8, which a terminal cannot show."""
    return str(path).encode(errors="backslashreplace").decode()


def record_demo(path: Path, seed: int) -> Record:
    """Record the demo's model while it reads out a row of a drawn picture."""
    logging.disable_progress_bar()
    case = next(case for case in drawn_cases(seed, pictures=1) if (case.kind, case.task) == ASKED)
    model, processor = load_model("demo")
    enable(model)
    fit_threads(model)
    return record_request(
        model, encode(processor, case.prompt, model.device), path, new_tokens=16, name="the demo's model"
    )
