"""`kvpolicy check TARGET`: hold a component to every law, and print which hold."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from hypothesis.configuration import set_hypothesis_home_dir
from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from .._target import from_target
from ._check import Check, checks_of
from ._law import ConformanceError
from ._options import pairs, size_of, wanted_laws
from ._order import OrderedCheck, in_order
from ._places import known_backends
from ._subject import subject_of
from ._vacuous import VacuousPassWarning
from .checks import LAWS

__all__ = ["check"]

_SILENT = "n/a"
_STYLE = {
    "pass": "green",
    "fail": "bold red",
    "expected": "yellow",
    "passes after all": "bold red",
    "not tried": "dim",
    _SILENT: "dim",
}
_VACUOUS = (
    "no example made it drop a row, so laws about dropping say nothing of it. "
    "Hint: smaller arguments, or larger examples, such as --size {}=20."
)


def check(
    target: Annotated[
        str,
        typer.Argument(
            help="A recipe, such as 'h2o(keep=0.5)', or module:Name of a policy, a stage or a class of one.",
            show_default=False,
        ),
    ],
    backend: Annotated[
        list[str] | None, typer.Option(help="numpy, torch or torch:cuda; repeatable. Default: all that are installed.")
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            help="Examples for each law, at most: quick (15), dev (25), ci (50) or nightly (1,000).", show_default=False
        ),
    ] = None,
    law: Annotated[list[str] | None, typer.Option(help="Only this law, and the structural ones; repeatable.")] = None,
    expect: Annotated[
        list[str] | None, typer.Option(metavar="LAW=REASON", help="A law that is broken on purpose; repeatable.")
    ] = None,
    size: Annotated[
        list[str] | None, typer.Option(metavar="NAME=N", help="What examples must have, such as heads=4; repeatable.")
    ] = None,
) -> None:
    """Try every law of the conformance kit on a policy or a stage; exit code 1 if one fails.

    The examples are made up. A failure is shown on the smallest of them, with
    a script that repeats it.

    Examples:
        kvpolicy check "h2o(keep=0.5)"

        kvpolicy check my_module:MyMerger --backend numpy --size tokens=20

        kvpolicy check my_module:AddValues --expect "merge_convex=adds values"
    """
    component = from_target(target, keep=0.5)
    backends = tuple(backend or known_backends())
    expected = pairs("--expect", "LAW=REASON, such as 'merge_convex=adds values'", expect)
    sizes = {name: size_of(name, n) for name, n in pairs("--size", "NAME=N, such as heads=4", size).items()}
    wanted = wanted_laws(law)
    about = {  # before anything is printed: what the user gave may be wrong
        name: in_order(checks_of(component, backend=name, profile=profile, sizes=sizes, expected=expected))
        for name in backends
    }
    kind = subject_of(component, backends[0]).kind.name
    console = Console()
    console.print(Text.assemble("\n", (repr(component), "bold cyan"), f"  {kind}"))
    started = time.perf_counter()
    rows: dict[str, list[str]] = {name: [] for name in wanted}
    failures: dict[str, ConformanceError] = {}
    tried: list[Check] = []
    with console.status("starting") as status, _leaving_nothing_behind():
        for where, name in product(backends, wanted):
            status.update(f"{where}: {name}")
            ordered = about[where][name]
            said, error = _tried(ordered, component)
            rows[name].append(said)
            if error is not None:
                failures.setdefault(name, error)
            if isinstance(ordered, OrderedCheck) and said != "not tried":
                tried.append(ordered.check)
    console.print(_table(rows, backends, expected))
    for reason, names in _left_out(wanted, list(about.values())).items():
        console.print(Text(f"left out ({reason}): {', '.join(names)}", style="dim"))
    if failures:
        console.print()
    for failure in failures.values():
        console.print(Text(str(failure)), soft_wrap=True)
    if any(one.vacuous for one in tried):
        console.print(Text(_VACUOUS.format("prompt" if kind == "Policy" else "tokens"), style="yellow"))
    console.print(f"{_effort(tried)} in {time.perf_counter() - started:.1f} s", style="dim")
    failed = [name for name, said in rows.items() if {"fail", "passes after all"} & set(said)]
    if failed:
        console.print(Text(f"broken: {', '.join(failed)}", style="bold red"))
        raise typer.Exit(1)
    console.print(Text(f"no law is broken, {_how_hard(tried)}", style="bold green"))


@contextmanager
def _leaving_nothing_behind() -> Iterator[None]:
    """Hypothesis keeps its notes in a folder that goes again; what the last lines say is not warned of too."""
    with TemporaryDirectory(prefix="kvpolicy-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", VacuousPassWarning)
        set_hypothesis_home_dir(folder)
        try:
            yield
        finally:
            set_hypothesis_home_dir(None)


def _effort(tried: Sequence[Check]) -> str:
    """``21 checks of up to 25 examples each (500 where a failure is expected)``: laws that are slow to try get less."""
    most = {expected: [c.examples for c in tried if (c.expected is not None) is expected] for expected in (False, True)}
    longer = f" ({max(most[True])} where a failure is expected)" if most[True] else ""
    return f"{len(tried)} checks of up to {max(most[False], default=0)} examples each{longer}"


def _how_hard(tried: Sequence[Check]) -> str:
    """``with up to 25 examples each; --profile ci tries 50``: that nothing was found says no more than that."""
    usual = [one for one in tried if one.expected is None]
    longer = [replace(one, profile="ci") for one in usual]
    now, then = (max((one.examples for one in checks), default=0) for checks in (usual, longer))
    return f"with up to {now} examples each" + (f"; --profile ci tries {then}" if now < then else "")


def _tried(check: OrderedCheck | str, component: Any) -> tuple[str, ConformanceError | None]:
    """What the table says, and the failure to print."""
    if isinstance(check, str):
        return _SILENT, None
    error, earlier = check.settle(component)
    if check.check.expected is not None:
        return ("passes after all" if error is None else "expected"), None
    if earlier is not None:
        return "not tried", None
    return ("pass" if error is None else "fail"), error


def _table(rows: Mapping[str, Sequence[str]], backends: Sequence[str], expected: Mapping[str, str]) -> RichTable:
    """One line for each law that was tried; where the screen is narrow, sentences are cut off."""
    table = RichTable(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("law", style="cyan", no_wrap=True)
    for name in backends:
        table.add_column(name, no_wrap=True)
    table.add_column("what it says", ratio=1)
    for name, said in rows.items():
        if set(said) == {_SILENT}:
            continue
        what = Text(LAWS[name].formula, no_wrap=True, overflow="ellipsis")
        if name in expected:
            what = Text(f"expected to fail: {expected[name]}", style="yellow")
        table.add_row(name, *map(_cell, said), what)
    return table


def _left_out(wanted: Sequence[str], about: Sequence[Mapping[str, OrderedCheck | str]]) -> Mapping[str, Sequence[str]]:
    """Laws that say nothing about the component on any backend, by the reason that the first gives."""
    out: dict[str, list[str]] = {}
    for name in wanted:
        reasons = [why for checks in about if isinstance(why := checks[name], str)]
        if len(reasons) == len(about):
            out.setdefault(reasons[0], []).append(name)
    return out


def _cell(text: str) -> Text:
    return Text(text, style=_STYLE[text])
