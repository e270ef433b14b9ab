"""The page: texts of the methods, numbers of a measurement, and what the recipes themselves say."""

from __future__ import annotations

import ast
import json
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvpolicy._repr import pretty
from kvpolicy.cli._recipes import Recipe, find

from .methods import METHODS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "fidelity.md"
NUMBERS = ROOT / "docs" / "results" / "fidelity.json"
PARITY = ROOT / "tests" / "parity"
WIDTH = 88  # of code, as `pretty` has it

INTRODUCTION = """---
hide: [navigation]
---

# Fidelity

The recipes are written from the papers. This page says, method by method, what the paper computes, how it is composed
here, where the code that its authors released does something else, what that difference does on real prompts, and what
we chose where the paper leaves a choice.

{tested} tested against a brute-force reference: loops over the formula in float64 that share no code with the package.
Each section names its test in `tests/parity`.

## How it was measured

A difference is measured by itself: a few lines of our own do what the released code does there, and are compared with
the recipe. The prompts are {texts:.0f} texts for SmolLM2-135M-Instruct ({text_tokens:.0f} tokens, then {text_steps:.0f}
decode steps; {text_layers:.0f} layers, {text_heads:.0f} key/value heads with {text_groups:.0f} query heads each) and,
where images matter, {pictures:.0f} pictures with a question for the demo's model ({picture_tokens:.0f} tokens;
{picture_layers:.0f} layers). Both models are small: the numbers say how large an effect is there, not everywhere.

- *Output error*: `||o - o_full|| / ||o_full||` of the attention outputs of all heads, mean over layers and decode
  steps. It is open loop: queries, keys and values are those of the full cache, and only the prompt is compressed,
  except where a line says that decoding evicts too.
- *Rows with the most attention*: of a head, as many as the budget allows, by what the decode steps pay to them.
- *By chance*: what the number would be for rows drawn at random.

{about}

## Methods

The compositions are those of `keep=0.2`; a policy prints as the call that makes it. They need these names:

```python
{imports}
```
"""

SECTION = """
### {name}

{summary}{source}

**Formula:** {formula}

**Composition.**

```python
{composition}
```

**Released code.** {released}

**What we chose.** {chosen}

**Measured.** {measured}
{parity}"""


def render(stored: Mapping[str, Any]) -> str:
    """The page from what `NUMBERS` holds."""
    recipes = {name: find(name) for name in METHODS}
    names = sorted({name for recipe in recipes.values() for name in _names(repr(example(recipe)))})
    imports = textwrap.fill(", ".join(names), WIDTH, initial_indent="    ", subsequent_indent="    ")
    imports = f"from kvpolicy import (\n{imports},\n)"
    page = (
        _paragraphs(INTRODUCTION.format(**stored["samples"], about=stored["about"], imports=imports, tested=_tested()))
        + "\n"
    )
    page += "".join(_section(recipe, stored["numbers"].get(name, {})) for name, recipe in recipes.items())
    return "\n".join(line.rstrip() for line in page.splitlines()) + "\n"


def stored() -> dict[str, Any]:
    """What was measured last."""
    numbers: dict[str, Any] = json.loads(NUMBERS.read_text(encoding="utf-8"))
    return numbers


def example(recipe: Recipe) -> object:
    """The policy that a section shows."""
    return recipe.example()


def parity_test(recipe: str) -> Path | None:
    """The test against the reference, if there is one."""
    path = PARITY / f"test_{recipe}.py"
    return path if path.is_file() else None


def _tested() -> str:
    """Which recipes have a parity test, as the beginning of a sentence."""
    without = [f"`{name}`" for name in METHODS if parity_test(name) is None]
    return f"All recipes but {' and '.join(without)} are" if without else "Every recipe is"


def _section(recipe: Recipe, numbers: Mapping[str, float]) -> str:
    method, test = METHODS[recipe.name], parity_test(recipe.name)
    parity = f"\n**Reference.** `{test.relative_to(ROOT).as_posix()}`\n" if test is not None else ""
    measured = method.MEASURED.strip().format(**numbers)
    return SECTION.format(
        name=recipe.name,
        summary=recipe.summary,
        source=_source(recipe),
        formula=recipe.formula,
        composition=pretty(example(recipe)).replace("'", '"'),
        released=_line(method.RELEASED),
        chosen=_line(method.CHOSEN),
        measured=("\n\n" if measured.startswith("|") else "") + _paragraphs(measured),
        parity=parity,
    )


def _source(recipe: Recipe) -> str:
    """The paper, with a link."""
    if recipe.source == "none.":
        return ""
    link = re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", recipe.source)
    return f"\n\n*{link}*"


def _line(text: str) -> str:
    return " ".join(text.split())


def _paragraphs(text: str) -> str:
    """Each paragraph, and each entry of a list, on one line; tables and code as they are."""
    parts = []
    for part in re.split(r"\n\n+", text.strip()):
        if part.startswith("- "):
            parts.append("\n".join(_line(entry) for entry in re.split(r"\n(?=- )", part)))
        else:
            parts.append(part if part.startswith(("|", "---", "```")) else _line(part))
    return "\n\n".join(parts)


def _names(expression: str) -> set[str]:
    return {node.id for node in ast.walk(ast.parse(expression, mode="eval")) if isinstance(node, ast.Name)}
