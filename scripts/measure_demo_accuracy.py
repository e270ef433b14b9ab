"""Accuracy of the shipped demo model under every recipe, on layouts that it was not trained on.

    python scripts/measure_demo_accuracy.py [--images 240] [--table docs/results/demo_accuracy.md]

One question an image, half of them grids, half photographs; left-padded batches; greedy decoding. The interval after
each figure is the 95% Wilson score interval.
"""

from __future__ import annotations

import argparse
import math
import platform
from datetime import date
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from rich.console import Console
from rich.progress import track

import kvpolicy
from kvpolicy_hf import PolicyCache, enable
from kvpolicy_hf._transformers import as_argument
from kvpolicy_hf.demo.command import ARMS
from kvpolicy_hf.demo.scenes import ASSETS, TASKS, Kind, Question, Scene, draw
from kvpolicy_hf.loading import load_model

KINDS: tuple[Kind, ...] = ("grid", "photo")
SEED = 1_000_003  # far from the seed of the training run
NEW_TOKENS = 10  # the longest answer names four cells and their objects


def draw_questions(images: int) -> list[tuple[Scene, Question]]:
    """The test set: kinds and tasks in turn, so that each pair is asked equally often."""
    rng = np.random.default_rng(SEED)
    cases = []
    for number in range(images):
        scene = draw(rng, KINDS[number % 2])
        cases.append((scene, scene.ask(TASKS[number // 2 % len(TASKS)], rng)))
    return cases


@torch.inference_mode()
def answers(model, processor, cases: list[tuple[Scene, Question]], policy: kvpolicy.Policy) -> tuple[list[str], float]:
    """The model's answers, and the share of the full cache's bytes that the keys and values took."""
    inputs = processor(
        images=[Image.fromarray(scene.image) for scene, _ in cases],
        text=[scene.prompt(question) for scene, question in cases],
        padding=True,
        return_tensors="pt",
    )
    cache = PolicyCache(model, policy, inputs=inputs)
    out = model.generate(**inputs, **as_argument(cache), max_new_tokens=NEW_TOKENS, do_sample=False)
    new = processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    report = cache.report()
    return [text.strip() for text in new], report.kv_bytes / report.full_kv_bytes


def wilson(right: int, total: int) -> str:
    """``share [low, high]`` in percent."""
    z, share = 1.96, right / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return f"{share:.1%} [{max(0, middle - half):.0%}, {min(1, middle + half):.0%}]"


def main() -> None:
    """Print, and on request write, the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--images", type=int, default=240)
    options.add_argument("--batch", type=int, default=48)
    options.add_argument("--keep", type=float, nargs="+", default=[1.0, 0.5, 0.2, 0.1])
    options.add_argument("--model", default=str(ASSETS))
    options.add_argument("--table", type=Path, help="also write the table as Markdown")
    args = options.parse_args()

    console = Console(width=200)
    model, processor = load_model(args.model)
    enable(model)
    cases = draw_questions(args.images)
    arms = [("full", 1.0, kvpolicy.full())]
    named = {keep: kvpolicy.catalogue(keep=keep) for keep in args.keep}
    extra = [name for name in ARMS if name not in kvpolicy.RECIPES]  # the demo's own variants
    for name in next(iter(named.values())):
        arms += [(name, keep, named[keep][name]) for keep in args.keep if name != "full"]
    arms += [(name, keep, kvpolicy.from_text(name, keep=keep)) for name in extra for keep in args.keep]
    heads = [*(f"{kind}: {task}" for kind in KINDS for task in TASKS)]
    lines = [
        f"| policy | keep | right | grids | photos | {' | '.join(heads)} | bytes |",
        "|---" * (6 + len(heads)) + "|",
    ]
    for name, keep, policy in track(arms, description="policies", console=console):
        good: list[bool] = []
        shares = []
        for start in range(0, len(cases), args.batch):
            batch = cases[start : start + args.batch]
            said, share = answers(model, processor, batch, policy)
            good += [text == question.answer for text, (_, question) in zip(said, batch, strict=True)]
            shares.append(share)
        of = {
            (kind, task): [
                ok
                for ok, (scene, question) in zip(good, cases, strict=True)
                if (scene.kind, question.task) == (kind, task)
            ]
            for kind in KINDS
            for task in TASKS
        }
        kinds = [[ok for task in TASKS for ok in of[kind, task]] for kind in KINDS]
        cells = [f"{np.mean(of[kind, task]):.0%}" for kind in KINDS for task in TASKS]
        lines.append(
            f"| `{name}` | {keep:g} | {wilson(sum(good), len(good))} | "
            f"{' | '.join(f'{np.mean(kind):.1%}' for kind in kinds)} | {' | '.join(cells)} | {np.mean(shares):.0%} |"
        )
    about = (
        f"{args.images} new layouts, one question each, {NEW_TOKENS} new tokens at most, left-padded batches of "
        f"{args.batch}, float32; {platform.processor() or platform.machine()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}; {date.today()}. "
        f"Made by `python scripts/measure_demo_accuracy.py`."
    )
    console.print("\n".join(lines), about, sep="\n\n")
    if args.table:
        args.table.write_text("\n".join([*lines, "", about, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
