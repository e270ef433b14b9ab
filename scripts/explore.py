"""What docs/explore.md shows: the demo's model on four pictures, under every recipe at ten budgets.

    python -m scripts.explore

Writes docs/assets/explore/runs and the table in the page; two minutes on one core. Nothing is downloaded: the model
comes with the package. The page also opens from a file, where scripts may be loaded and data may not: each file of data
is a script, a call with JSON between its first and its last line.
"""

from __future__ import annotations

import base64
import inspect
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from scripts.page import DOCS, table, with_table

import kvpolicy
from kvpolicy_hf import enable
from kvpolicy_hf.demo.answers import Answer, ask
from kvpolicy_hf.demo.cases import Case, drawn_cases
from kvpolicy_hf.demo.command import SHORT
from kvpolicy_hf.demo.prompts import encode
from kvpolicy_hf.loading import load_model
from kvpolicy_hf.plots import Layout, seen_by_model

PAGE, OUT = DOCS / "explore.md", DOCS / "assets" / "explore" / "runs"
SEED, PICTURES = 0, 2  # the first two pictures of each kind that `kvpolicy demo` draws, all four questions
KEEPS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
PROTECTED = "elastic_cache(last=8)"  # with the question protected, as the demo shows it
POLICIES = tuple(
    name
    for recipe in kvpolicy.catalogue(keep=0.5)
    if recipe != "full"
    for name in ((recipe, PROTECTED) if recipe == "elastic_cache" else (recipe,))
)


@dataclass(frozen=True)
class Asked:
    """A question, ready to be asked."""

    picture: str
    case: Case
    inputs: Any
    layout: Layout
    image: Any


class Explorer:
    """The demo's model, and the questions."""

    def __init__(self) -> None:
        torch.set_num_threads(1)  # the model is small: more threads only wait for each other
        self.model, self.processor = load_model("demo")
        enable(self.model)
        self.heads: int = self.model.config.text_config.num_key_value_heads
        self.questions = [self._asked(case) for case in drawn_cases(SEED, pictures=PICTURES)]

    def _asked(self, case: Case) -> Asked:
        inputs = encode(self.processor, case.prompt, self.model.device)
        picture = case.title.partition(":")[0].replace(" ", "-")
        layout = Layout.of(inputs, self.model, self.processor.tokenizer)
        return Asked(picture, case, inputs, layout, seen_by_model(inputs, self.processor, case.prompt.image))

    def answer(self, asked: Asked, name: str, keep: float) -> Answer:
        """What the model says under the policy of this name."""
        policy = kvpolicy.full() if name == "full" else kvpolicy.from_text(name, keep=keep)
        return ask(self.model, self.processor, asked.inputs, policy, max_new_tokens=SHORT)

    def cell(self, asked: Asked, name: str, keep: float) -> list[Any]:
        """The answer, bytes held at its end, bytes of a full cache, and what became of the prompt's tokens."""
        answer = self.answer(asked, name, keep)
        holders = [np.broadcast_to(fate.holder, (self.heads, asked.layout.tokens)) for fate in answer.fates]
        return [answer.text, answer.kv_bytes, answer.full_kv_bytes, *coded(np.stack(holders))]

    def about(self) -> dict[str, Any]:
        """All but the cells."""
        pictures: dict[str, Any] = {}
        for asked in self.questions:
            prompt = asked.case.prompt
            made = pictures.setdefault(asked.picture, {"title": asked.case.title, "questions": []})
            full = self.answer(asked, "full", 1.0)
            told = {"text": prompt.question, "right": prompt.answer, "full": full.text, "words": asked.layout.words}
            made["questions"].append(told | {"tokens": asked.layout.tokens})
        one = self.questions[0].layout
        return {
            "made": made_by(),
            "keeps": KEEPS,
            "policies": {name: summary(name) for name in POLICIES},
            "layers": self.model.config.text_config.num_hidden_layers,
            "heads": self.heads,
            "grid": {"rows": one.rows, "columns": one.columns, "first": one.first},
            "pictures": pictures,
        }


def coded(holders: Any) -> tuple[str, str]:
    """Where each token is, int [layers, heads, tokens] as in `Fate`, in base64.

    First a bit for every token, set where its own row is in the table. Then, unless all others were dropped, a byte for
    each of the others: 0 where it was dropped, 1 more than the token whose row holds it where it was merged. Where all
    heads do alike, these are one head's.
    """
    if (holders == holders[:, :1]).all():
        holders = holders[:, :1]
    own = holders == np.arange(holders.shape[-1])
    left = holders[~own]
    merged = (left + 1).astype(np.uint8).tobytes() if (left >= 0).any() else b""
    return base64.b64encode(np.packbits(own).tobytes()).decode(), base64.b64encode(merged).decode()


def summary(name: str) -> str:
    """The first sentence of the recipe's docstring, without markup."""
    doc = inspect.getdoc(kvpolicy.RECIPES[name.partition("(")[0]]) or ""
    said = " ".join(doc.partition("\n\n")[0].split()).replace("`", "")
    return f"{said} Here the last 8 rows are protected, the question among them." if name == PROTECTED else said


def made_by() -> dict[str, str]:
    return {
        "command": "python -m scripts.explore",
        "date": str(date.today()),
        "kvpolicy": kvpolicy.__version__,
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def right_answers(about: Mapping[str, Any], cells: Mapping[str, Mapping[str, Any]]) -> str:
    """Right answers to all the questions, by policy and budget."""
    asked = [
        (question["right"], picture, number)
        for picture, told in about["pictures"].items()
        for number, question in enumerate(told["questions"])
    ]
    heads = [f"{keep:.0%}" for keep in about["keeps"]]
    rows = []
    for name in about["policies"]:
        right = [
            sum(cells[picture][name][number][stop][0] == answer for answer, picture, number in asked)
            for stop in range(len(heads))
        ]
        rows.append([f"`{name}`", *map(str, right)])
    made = about["made"]
    versions = ", ".join(f"{key} {made[key]}" for key in ("kvpolicy", "torch", "transformers"))
    lines = table(["policy", *heads], rows, words=1)
    return "\n".join([lines, "", f"Of {len(asked)} questions. `{made['command']}`, {versions}, {made['date']}."])


def write(name: str, data: Mapping[str, Any]) -> None:
    """A script that hands the data over: the call, the JSON with a key a line, the end of the call."""
    lines = (f"{json.dumps(key)}:{json.dumps(value, separators=(',', ':'))}" for key, value in data.items())
    body = ",\n".join(lines)
    (OUT / f"{name}.js").write_text(f'explored("{name}",\n{{{body}}}\n);\n', encoding="utf-8")


def read(name: str) -> Any:
    """The data of such a script."""
    return json.loads((OUT / f"{name}.js").read_text(encoding="utf-8").partition("\n")[2].rpartition("\n);")[0])


def cells_of(explorer: Explorer, questions: Sequence[Asked]) -> dict[str, list[list[list[Any]]]]:
    """By policy, question and budget."""
    return {name: [[explorer.cell(one, name, keep) for keep in KEEPS] for one in questions] for name in POLICIES}


def main() -> None:
    explorer = Explorer()
    about = explorer.about()
    write("about", about)
    cells = {}
    for picture in about["pictures"]:
        questions = [asked for asked in explorer.questions if asked.picture == picture]
        cells[picture] = cells_of(explorer, questions)
        write(picture, cells[picture])
        Image.fromarray(questions[0].image).save(OUT / f"{picture}.webp", lossless=True)
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(with_table(page, "table", right_answers(about, cells), script="explore"), encoding="utf-8")
    for file in sorted(OUT.iterdir()):
        print(f"{file}: {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
