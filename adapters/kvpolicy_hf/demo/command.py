"""`kvpolicy demo`: the same questions under every policy at the same budget, as tables and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text
from transformers.utils import logging

from kvpolicy import Policy

from .. import enable
from .._progress import progress_bar
from ..loading import load_model
from ..loading.threads import fit_threads
from ..simulate.named import check_keep, policy_of
from .cases import Case, drawn_cases, own_case
from .picture import Row, Subject, draw_picture
from .results import Result, run_case
from .tables import answers_table, costs_table, scores_table

__all__ = ["demo"]

# The question stands at the end of a prompt, where few queries have attended to anything: Elastic Cache is shown as
# published, which protects one row there, and with the whole question protected.
ARMS = ("full", "elastic_cache", "elastic_cache(last=8)", "h2o", "streaming_llm")
PICTURES = 3  # of each kind, four questions each: 24 questions
PICTURED = ("photo", "where")  # which case the picture shows
SHORT, LONG = 10, 64  # most new tokens, for drawn pictures and for the user's own

NOTE = (
    "The shipped model knows only its own little world: forty emoji on a 4 x 4 grid, and questions such as "
    "'what is at b3' and 'where is the dog'. For real pictures give --model a real one."
)

WHY = (
    "elastic_cache protects one token at the end of the prompt, as published. Few tokens have looked back at the words "
    "of the question, so it folds them into the image; last=8 protects them."
)


def demo(
    image: Annotated[
        Path | None,
        typer.Option(help="Ask about this picture instead of drawn ones.", exists=True, dir_okay=False, metavar="PATH"),
    ] = None,
    question: Annotated[str | None, typer.Option(help="Ask this instead of the built-in questions.")] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="A recipe (see `kvpolicy policies`), with arguments if you like, a policy.json or .toml, or "
            "module:Name of a policy or scorer of your own; repeat it to compare several.",
            show_default=", ".join(ARMS),
            metavar="NAME | NAME(ARG=VALUE, ...)",
        ),
    ] = None,
    keep: Annotated[float, typer.Option(help="Share of the cache that each policy may keep, in (0, 1].")] = 0.5,
    model: Annotated[
        str,
        typer.Option(
            help="Folder or hub id of a vision-language model, such as llava-hf/llava-1.5-7b-hf.",
            show_default="the shipped one",
        ),
    ] = "demo",
    seed: Annotated[int, typer.Option(help="Draws the pictures and the questions.", min=0)] = 0,
    out: Annotated[Path, typer.Option(help="Where to write the picture.", dir_okay=False)] = Path("kvpolicy-demo.png"),
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Longest answer.", min=1, show_default=f"{SHORT}, or {LONG} with --image")
    ] = None,
) -> None:
    r"""Ask a vision-language model the same questions under every policy.

    Prints the answers, the cache's rows and bytes and the speed, and draws
    which image patches each policy keeps, merges and drops in every layer.

    Without --image it makes up pictures whose right answers it knows, for a
    small model that comes with the package: nothing is downloaded.

    Examples:
        kvpolicy demo

        kvpolicy demo --policy "elastic_cache(last=8)" --policy h2o --keep 0.1

        kvpolicy demo --model llava-hf/llava-1.5-7b-hf \
            --image cat.jpg --question "What is on the sofa?"
    """
    console = Console()
    policies = choose(policy or ARMS, keep)
    if image is not None and question is None:
        raise typer.BadParameter("--image needs --question as well.")
    if not out.resolve().parent.is_dir():
        raise typer.BadParameter(f"there is no folder {str(out.parent)!r} to write the picture to.")
    if image is not None and question is not None:
        cases = [own_case(image, question)]
    else:
        cases = drawn_cases(seed, pictures=1 if question else PICTURES, question=question)
    if (image or question) and model == "demo":
        console.print(Text(NOTE, style="yellow"))
    results = answer_all(cases, policies, model, max_new_tokens or (LONG if image else SHORT))
    show(console, results)
    if paint(results, keep, out):
        console.print(Text.assemble("picture: ", (str(out), "bold cyan")))
    else:
        console.print("no picture: this model's image tokens do not form one grid.")


def choose(names: Sequence[str], keep: float) -> dict[str, Policy]:
    """The policies of these names at this budget.

    Raises:
        PolicyError: for a name of no policy, or a budget out of range.
    """
    check_keep(keep)
    return {name: policy_of(name, name, keep) for name in names}


def answer_all(cases: Sequence[Case], policies: Mapping[str, Policy], where: str, max_new_tokens: int) -> list[Result]:
    """Load the model and ask everything, with a progress bar."""
    logging.disable_progress_bar()
    with progress_bar("loading the model") as bar:
        model, processor = load_model(where, pictures=True)
        enable(model)
        fit_threads(model)
        run_case(cases[0], model, processor, dict(list(policies.items())[:1]), max_new_tokens=2)  # warm up
        bar.begin("asking", len(cases) * len(policies))
        return [
            run_case(
                case,
                model,
                processor,
                policies,
                max_new_tokens=max_new_tokens,
                done=bar.advance,
            )
            for case in cases
        ]


def show(console: Console, results: Sequence[Result]) -> None:
    """Print the answers for the first picture of each kind, the score over all pictures, and the costs."""
    shown = [list(group) for _, group in groupby(results, key=lambda result: result.case.title)]
    kinds: dict[str, list[Result]] = {}
    for group in shown:
        kinds.setdefault(group[0].case.kind, group)
    for group in kinds.values():
        console.print(answers_table(group))
    if results[0].case.prompt.answer is None:
        console.print(Text("✓ the same answer as the full cache gives, ✗ another one", style="dim"))
    if len(shown) > len(kinds):
        console.print(scores_table(results))
        if {"elastic_cache", "elastic_cache(last=8)"} <= set(results[0].answers):
            console.print(Text(WHY, style="dim"))
    console.print(costs_table(results))


def paint(results: Sequence[Result], keep: float, out: Path) -> bool:
    """Draw one question; False if its image tokens cannot be laid out on a grid."""
    wanted = [result for result in results if (result.case.kind, result.case.task) == PICTURED]
    result = (wanted or list(results))[0]
    if result.layout is None:
        return False
    prompt = result.case.prompt
    subject = Subject(result.image, result.layout, prompt.question, prompt.answer, f"{keep:.0%}", len(results))
    rows = [
        Row(name, answer, result.is_right(name), sum(other.is_right(name) for other in results))
        for name, answer in result.answers.items()
    ]
    draw_picture(subject, rows, out)
    return True
