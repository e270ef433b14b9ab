"""`kvpolicy eval`: policies on tasks, at budgets, as tables, charts and one page that opens anywhere."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text
from transformers.utils import logging

from .._progress import progress_bar
from ..loading.threads import fit_threads
from .arms import FULL, arms_of
from .notes import notes_of
from .processes import Processes
from .progress import shown_on
from .retained import draw_retained
from .run import evaluate, subject_of
from .tables import failures_table, quality_table
from .tasks import tasks_of
from .write import write

__all__ = ["evaluate_command"]


def evaluate_command(
    model: Annotated[str, typer.Argument(help="Folder, hub id, 'demo' or 'smollm2'.", show_default=True)] = "demo",
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="A task (see the documentation), or module:Name; repeatable.", show_default="those made for the model"
        ),
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="A recipe, with arguments if you like, a file of a policy, or module:Name of a policy or a scorer of "
            "your own; repeatable.",
            show_default="every recipe that needs no more than a budget",
        ),
    ] = None,
    baselines: Annotated[bool, typer.Option("--baselines", help="Every recipe, beside what --policy names.")] = False,
    keep: Annotated[
        list[float] | None,
        typer.Option(help="Share of the cache that policies may keep, in (0, 1]; repeatable.", show_default="0.5, 0.2"),
    ] = None,
    samples: Annotated[int, typer.Option(help="Samples of each task.", min=1)] = 48,
    batch: Annotated[int, typer.Option(help="Samples that go through the model together.", min=1)] = 16,
    records: Annotated[
        int, typer.Option(help="Samples of each task that are also recorded, for attention mass and error.", min=0)
    ] = 4,
    seed: Annotated[int, typer.Option(help="Draws the samples.", min=0)] = 0,
    out: Annotated[Path, typer.Option(help="Folder of the results; a run goes on where it stopped.")] = Path(
        "kvpolicy-eval"
    ),
) -> None:
    """Measure what policies cost in quality, with intervals, and bytes beside every score.

    Writes rows.csv and rows.parquet (a row for each sample under each policy),
    summary.csv, charts, and report.html, which opens offline. They show the
    policies, tasks and samples of this call. What was measured stays in the
    folder: killed and called again, it goes on, and a call that names more
    measures what is missing and nothing twice.

    The exit code is 1 if no policy that --policy names could be measured
    (without --policy: no policy at all). Where only some could not, it is 0,
    and a table says which, and why.

    Examples:
        kvpolicy eval demo --policy h2o --policy "elastic_cache(last=8)"

        kvpolicy eval demo --baselines --policy my_module:MyScorer --keep 0.2

        kvpolicy eval smollm2 --task pydoc --task needle-1k --samples 16

        torchrun --nproc-per-node 4 -m kvpolicy eval demo
    """
    keeps = keep or [0.5, 0.2]
    arms = arms_of(policy, keeps)  # before the model is loaded: what the user gave may be wrong
    own = list(dict.fromkeys(arm.label for arm in arms[1:])) if policy else []
    if baselines and policy:
        arms = (*arms, *(arm for arm in arms_of(None, keeps) if arm not in arms))
    logging.disable_progress_bar()
    with progress_bar("loading the model") as bar:
        subject = subject_of(model)
        fit_threads(subject.model)
        tasks = tasks_of(task, subject)
        bar.begin("measuring")
        console, errors = Console(), Console(stderr=True, soft_wrap=True)
        result = evaluate(
            subject,
            tasks=tasks,
            policies=arms,
            samples=samples,
            batch=batch,
            records=records,
            seed=seed,
            out=out,
            done=partial(shown_on(errors, bar), "measuring"),
        )
        if not Processes().first:
            return
        measured = {label for label in result.rows["policy"] if label != FULL.label}
        asked = own or [arm.label for arm in arms if arm != FULL]
        if asked and not measured:
            console.print(failures_table(result.failures))
            errors.print(Text("error: no policy could be measured, so that no report was written.", style="bold red"))
            raise typer.Exit(1)
        bar.begin("summing up")
        name, first = next(iter(tasks.items()))
        sample = first.samples(subject, samples, seed)[0]
        retained = draw_retained(subject, f"sample 0 of {name}", sample, arms)
        summary = write(result, out, highlight=own, retained=retained)
    console.print(quality_table(summary))
    for note in notes_of(result.rows, summary, arms):
        console.print(Text(note))
    if result.failures:
        console.print(failures_table(result.failures))
    if result.others:
        console.print(
            Text(
                f"Not shown, though measured here before: {', '.join(result.others)}. "
                f"A call that names them, too, has them side by side and measures nothing twice."
            )
        )
    console.print(Text.assemble("report: ", (str(out / "report.html"), "bold cyan")))
    if asked and not measured.intersection(asked):
        errors.print(Text(f"error: {', '.join(asked)} could not be measured, see above.", style="bold red"))
        raise typer.Exit(1)
