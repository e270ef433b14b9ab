"""What there is to say about a recipe, read from its docstring: the summary, and the paragraphs with a label."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass

from .._policy import Policy
from ..policies import RECIPES

# What `Recipe.example` passes, where a recipe takes it.
KEEP = 0.2
EXAMPLE = {"keep": KEEP, "table": ((2, 1), (1, 1))}


@dataclass(frozen=True, slots=True)
class Recipe:
    """One recipe and its description.

    Attributes:
        name: what the function is called.
        function: makes the policy.
        summary: one sentence.
        formula: what is scored, kept and merged.
        source: paper and section.
        good_for: when to take it.
        not_for: when to take another one.
        arguments: (name, description) of each argument.
    """

    name: str
    function: Callable[..., Policy]
    summary: str
    formula: str
    source: str
    good_for: str
    not_for: str
    arguments: tuple[tuple[str, str], ...]

    @property
    def short_source(self) -> str:
        """The source without title and section."""
        untitled = re.sub(r'\s*"[^"]*",?', "", self.source)
        return "" if untitled == "none." else re.split(r"(?<=\d{4}\.\d{5})", untitled)[0]

    @property
    def example_arguments(self) -> dict[str, object]:
        """A fifth of the cache where the recipe has a budget, and whatever else it cannot do without."""
        return {name: value for name, value in EXAMPLE.items() if name in inspect.signature(self.function).parameters}

    def example(self) -> Policy:
        """The policy that these arguments make."""
        return self.function(**self.example_arguments)


def recipes() -> tuple[Recipe, ...]:
    """Every recipe, in the order of `RECIPES`."""
    return tuple(describe(name, function) for name, function in RECIPES.items())


def find(name: str) -> Recipe:
    """The recipe of this name, of which there is one."""
    return describe(name, RECIPES[name])


def describe(name: str, function: Callable[..., Policy]) -> Recipe:
    """Read a recipe's docstring."""
    doc = inspect.getdoc(function) or ""
    body, _, arguments = doc.partition("\nArgs:\n")
    summary, *paragraphs = [" ".join(part.split()) for part in body.split("\n\n")]
    labelled = {label: text for label, _, text in (part.partition(": ") for part in paragraphs)}
    return Recipe(
        name=name,
        function=function,
        summary=summary,
        formula=labelled.get("Formula", ""),
        source=labelled.get("Source", ""),
        good_for=labelled.get("Good for", ""),
        not_for=labelled.get("Not for", ""),
        arguments=tuple(_entries(arguments.partition("\n\n")[0])),
    )


def _entries(section: str) -> list[tuple[str, str]]:
    """The ``name: text`` entries of a docstring section; a deeper indent continues the entry above."""
    joined = re.sub(r"\n {5,}", " ", section)
    return [(name, text) for name, _, text in (line.strip().partition(": ") for line in joined.splitlines()) if text]
