"""A page and plots for each recipe, and the table of their index, from docstrings, runs and committed measurements.

    python -m scripts.policy_pages    (in the root of the repository)

Nothing is measured here. What a page says of a recipe stands in the recipe's docstring; what its released code does
otherwise, in `scripts.fidelity.methods`; what it does and needs is found by running it (`scripts.policy_facts`).
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import polars as pl
from scripts.fidelity.methods import METHODS
from scripts.page import DOCS, table, with_table
from scripts.policy_facts import facts
from scripts.policy_plots import plot
from scripts.quality import runs, signed, valued

import kvpolicy
from kvpolicy import RECIPES
from kvpolicy._repr import pretty
from kvpolicy.cli._recipes import Recipe, find, recipes
from kvpolicy_hf.evaluate import summarise

__all__ = ["GROUPS", "INDEX", "PAGES", "PICTURES", "indexed", "measured", "page", "pictures"]

PAGES = DOCS / "policies"
INDEX = PAGES / "index.md"
PICTURES = DOCS / "assets" / "policies"
WIDTH = 88  # of code, as `pretty` has it
MEASURED = {
    "demo": "The demo's model: questions about pictures",
    "smollm2-pydoc": "SmolLM2-135M: text of 512 tokens",
}
GROUPS = {
    "Baselines": ("full", "random"),
    "Evict by attention": ("h2o", "snapkv", "tova", "expected_attention"),
    "Evict by position": ("streaming_llm",),
    "Evict by the geometry of keys": ("k_norm", "key_diff"),
    "Merge": ("elastic_cache", "d2o", "kv_merger", "keep_kv", "cam"),
    "Share the budget": ("pyramid_kv", "ada_kv", "head_kv"),
    "Vision and language": ("look_m", "vl_cache", "air_cache"),
    "Recall": ("adore",),
}

PAGE = """\
# {name}

<!-- All of this page is written by: python -m scripts.policy_pages -->

**{title}** {summary}

{source}

## At a glance

{facts}

## When to use it

**Good for** {good_for}

**Not for** {not_for}

## Formula

{formula}

## What it is made of

`kvpolicy explain {name}` prints this composition, and `{call}` makes it.

```python
{code}
```

{parts}

{arguments}## Paper and released code

**What the released code does otherwise.** {released}

**What we do.** {chosen}

[Fidelity](../fidelity.md#{name}) measures these differences.

## Measured

{measured}"""

QUALITY = """\
`quality` is the share of right answers, or the likelihood of a token as a share of what the full cache gives it. Bars
and brackets are 95% intervals, *bytes* the share of the full cache that was held at the end. One small model each: take
them as examples, and [measure your own](../evaluate.md). [Quality](../quality.md) says how they were measured.
"""
NOT_MEASURED = """\
It takes a table that was measured on the model, and none is published for the models of [Quality](../quality.md).
"""


def measured() -> dict[str, pl.DataFrame]:
    """Quality over all tasks, of every recipe at every budget, by run."""
    found = runs()
    return {
        name: summarise(found[name].rows.filter(pl.col("policy").is_in(list(RECIPES)))).filter(
            pl.col("task") == "all", pl.col("metric") == "quality"
        )
        for name in MEASURED
    }


def pictures(recipe: str, found: Mapping[str, pl.DataFrame]) -> Iterator[tuple[Path, str]]:
    """Its plots: the file and what is in it."""
    for run, quality in found.items():
        drawn = plot(quality, recipe, MEASURED[run])
        if drawn is not None:
            yield PICTURES / f"{recipe}-{run}.svg", drawn


def page(recipe: Recipe, found: Mapping[str, pl.DataFrame]) -> str:
    """The page of a recipe."""
    arguments = ", ".join(f"{name}={value!r}" for name, value in recipe.example_arguments.items())
    method = METHODS[recipe.name]
    module = inspect.getmodule(recipe.function)
    return PAGE.format(
        name=recipe.name,
        title=inspect.getdoc(module).partition("\n")[0],
        summary=recipe.summary,
        source=_source(recipe),
        facts=table(("", f"`{recipe.name}`"), facts(recipe).items()),
        good_for=recipe.good_for,
        not_for=recipe.not_for,
        formula=recipe.formula[0].upper() + recipe.formula[1:] if recipe.formula[0].isalpha() else recipe.formula,
        call=f"kvpolicy.{recipe.name}({arguments})",
        code=_code(recipe, arguments),
        parts=_parts(recipe),
        arguments=_arguments(recipe),
        released=_line(method.RELEASED),
        chosen=_line(method.CHOSEN),
        measured=_measured(recipe.name, found),
    )


def indexed(text: str) -> str:
    """The index with its table of recipes."""
    parts = []
    for group, names in GROUPS.items():
        rows = ((f"[`{name}`]({name}.md)", find(name).summary, _linked(find(name).short_source)) for name in names)
        parts.append(f"### {group}\n\n" + table(("recipe", "what it does", "source"), rows))
    return with_table(text, "recipes", "\n\n".join(parts) + "\n", script="policy_pages")


def _source(recipe: Recipe) -> str:
    return "No paper." if recipe.source == "none." else f"*{_linked(recipe.source)}*"


def _linked(source: str) -> str:
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", source)


def _code(recipe: Recipe, arguments: str) -> str:
    """The composition, and that it is what the recipe makes."""
    composed = pretty(recipe.example()).replace("'", '"')
    names = sorted({*_stages(composed), "Policy", recipe.name}, key=lambda name: (name.islower(), name))
    line = f"from kvpolicy import {', '.join(names)}"
    if len(line) > 120:
        line = "from kvpolicy import (\n" + "".join(f"    {name},\n" for name in names) + ")"
    call = f"{recipe.name}({arguments})"
    return f"{line}\n\npolicy = {composed}\nassert policy == {call}"


def _stages(expression: str) -> list[str]:
    """Its classes in the order in which they stand there, each once."""
    found = [node.id for node in ast.walk(ast.parse(expression, mode="eval")) if isinstance(node, ast.Name)]
    return sorted(dict.fromkeys(found), key=expression.index)


def _parts(recipe: Recipe) -> str:
    """The stages, with what their docstrings say first."""
    names = [name for name in _stages(repr(recipe.example())) if name not in ("Policy", "Pipeline")]
    rows = ((f"[`{name}`](../reference/stages.md#kvpolicy.{name})", _first(getattr(kvpolicy, name))) for name in names)
    return table(("part", "what it does"), rows) if names else "It has no parts."


def _first(stage: type) -> str:
    """The first paragraph of a docstring, on one line."""
    return _line((inspect.getdoc(stage) or "").partition("\n\n")[0])


def _arguments(recipe: Recipe) -> str:
    parameters = inspect.signature(recipe.function).parameters
    if not parameters:
        return ""
    rows = ((f"`{name}`", _default(parameters[name].default), text) for name, text in recipe.arguments)
    arguments = table(("argument", "default", "meaning"), rows)
    return f"## Arguments\n\n{arguments}\n\nExactly one of `keep`, `rows` and `memory` is given.\n\n"


def _default(value: object) -> str:
    if value is inspect.Parameter.empty:
        return "required"
    return "" if value is None else "`" + repr(value).replace("'", '"') + "`"


def _measured(name: str, found: Mapping[str, pl.DataFrame]) -> str:
    if not any(name in quality["policy"] for quality in found.values()):
        return NOT_MEASURED
    parts = [QUALITY]
    for run, quality in found.items():
        rows = quality.filter(pl.col("policy") == name).sort("kept", descending=True).iter_rows(named=True)
        parts.append(f"![{MEASURED[run]}: quality of {name} against bytes](../assets/policies/{name}-{run}.svg)\n")
        parts.append(table(("keep", "bytes", "quality", "against full"), map(_numbers, rows), words=0) + "\n")
    return "\n".join(parts)


def _numbers(row: Mapping[str, float]) -> tuple[str, ...]:
    against = "" if row["difference"] is None else signed(row)
    return f"{row['keep']:g}", f"{row['kept']:.0%}", valued(row), against


def _line(text: str) -> str:
    return " ".join(text.split()).replace("](decisions/", "](../decisions/")


def main() -> None:
    """Write the pages, the plots and the table of the index; remove plots that nobody shows."""
    found = measured()
    PICTURES.mkdir(parents=True, exist_ok=True)
    drawn = {file: text for name in RECIPES for file, text in pictures(name, found)}
    for file in set(PICTURES.glob("*.svg")) - set(drawn):
        file.unlink()
    for file, text in drawn.items():
        file.write_text(text, encoding="utf-8")
    for recipe in recipes():
        (PAGES / f"{recipe.name}.md").write_text(page(recipe, found), encoding="utf-8")
    INDEX.write_text(indexed(INDEX.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
