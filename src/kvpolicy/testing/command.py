"""`kvpolicy check TARGET`: hold a component to every law, and print which hold."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from .._check import closest
from .._errors import PolicyError
from ._check import PROFILES, checks_of, default_profile
from ._law import ConformanceError
from ._order import OrderedCheck, in_order
from ._places import known_backends
from ._subject import kind_of
from ._target import component_of
from .checks import LAWS

__all__ = ["check"]

_STYLE = {"pass": "green", "fail": "bold red", "expected": "yellow", "passes after all": "bold red", "not tried": "dim"}


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
        typer.Option(help="Examples for each law: dev (25), ci (50) or nightly (1,000).", show_default=False),
    ] = None,
    law: Annotated[list[str] | None, typer.Option(help="Only this law, and those before it; repeatable.")] = None,
    expect: Annotated[
        list[str] | None, typer.Option(metavar="LAW=REASON", help="A law that is broken on purpose; repeatable.")
    ] = None,
    size: Annotated[
        list[str] | None, typer.Option(metavar="NAME=N", help="What examples must have, such as heads=4; repeatable.")
    ] = None,
) -> None:
    """Try every law of the conformance kit on a policy or a stage; exit code 1 if one fails."""
    component = component_of(target)
    backends = tuple(backend or known_backends())
    expected, sizes = _pairs("--expect", expect), {name: _number(name, n) for name, n in _pairs("--size", size).items()}
    wanted = _wanted(law)
    profile = profile or default_profile()
    console = Console()
    console.print(Text.assemble("\n", (repr(component), "bold cyan"), f"  {kind_of(component).name}"))
    started = time.perf_counter()
    rows: dict[str, list[str]] = {name: [] for name in wanted}
    failures: dict[str, ConformanceError] = {}
    for name_of_backend in backends:
        about = checks_of(component, backend=name_of_backend, profile=profile, sizes=sizes, expected=expected)
        with console.status(name_of_backend) as status:
            for name, ordered in in_order(about).items():
                if name in rows:
                    status.update(f"{name_of_backend}: {name}")
                    said, error = _tried(ordered, component)
                    rows[name].append(said)
                    if error is not None:
                        failures.setdefault(name, error)
    console.print(_table(rows, backends, expected))
    for error in failures.values():
        console.print(Text(str(error)), soft_wrap=True)
    failed = [name for name, said in rows.items() if {"fail", "passes after all"} & set(said)]
    tried = sum(said in ("pass", "fail", "expected", "passes after all") for line in rows.values() for said in line)
    seconds = time.perf_counter() - started
    console.print(f"{tried} checks of {PROFILES[profile]} examples each in {seconds:.1f} s", style="dim")
    if failed:
        console.print(Text(f"broken: {', '.join(failed)}", style="bold red"))
        raise typer.Exit(1)
    console.print(Text("no law is broken", style="bold green"))


def _tried(check: OrderedCheck | str, component: Any) -> tuple[str, ConformanceError | None]:
    """What the table says, and the failure to print."""
    if isinstance(check, str):
        return f"n/a: {check}", None
    error, earlier = check.settle(component)
    if check.check.expected is not None:
        return ("passes after all" if error is None else "expected"), None
    if earlier is not None:
        return "not tried", None
    return ("pass" if error is None else "fail"), error


def _table(rows: Mapping[str, Sequence[str]], backends: Sequence[str], expected: Mapping[str, str]) -> RichTable:
    table = RichTable(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("law", style="cyan", no_wrap=True)
    for name in backends:
        table.add_column(name, no_wrap=True)
    table.add_column("what it says", ratio=1)
    for name, said in rows.items():
        silent = said[0].startswith("n/a: ") and len({*said}) == 1
        what = Text(LAWS[name].formula)
        if silent:
            what = Text(said[0].removeprefix("n/a: "), style="dim")
        elif name in expected:
            what = Text(f"expected to fail: {expected[name]}", style="yellow")
        cells = [Text("not applicable", style="dim") if text.startswith("n/a: ") else _cell(text) for text in said]
        table.add_row(name, *cells, what)
    return table


def _cell(text: str) -> Text:
    return Text(text, style=_STYLE[text])


def _wanted(laws: Sequence[str] | None) -> list[str]:
    for name in laws or ():
        if name not in LAWS:
            raise PolicyError(f"--law {name}: there is no such law.{closest(name, LAWS)}")
    if not laws:
        return list(LAWS)
    return [name for name, each in LAWS.items() if name in laws or each.structural]


def _pairs(option: str, given: Sequence[str] | None) -> dict[str, str]:
    pairs = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not (equals and name and value):
            raise PolicyError(f"{option} {text}: it takes name=value.")
        pairs[name.strip()] = value.strip()
    return pairs


def _number(name: str, text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise PolicyError(f"--size {name}={text}: a size is an integer >= 1.")
    return int(text)
