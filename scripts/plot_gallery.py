"""The pictures of docs/plots.md: the demo's model under several policies, and what became of its tokens.

    python -m scripts.plot_gallery [--out docs/assets/plots]

Nothing is downloaded: the model comes with the package.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image
from scripts.page import DOCS

import kvpolicy
from kvpolicy import Policy
from kvpolicy_hf import PolicyCache, enable
from kvpolicy_hf._transformers import as_argument
from kvpolicy_hf.demo.cases import drawn_cases
from kvpolicy_hf.demo.prompts import encode
from kvpolicy_hf.loading import load_model
from kvpolicy_hf.plots import (
    History,
    Layout,
    Watch,
    budgets,
    mass_over_steps,
    patches,
    seen_by_model,
    tokens_by_layers,
    tokens_by_steps,
)
from kvpolicy_hf.simulate import record, replay

KEEP, NEW_TOKENS = 0.3, 16
MERGING = "elastic_cache(last=8)"  # with the question protected, as the demo shows it
SHARING = ("pyramid_kv(window=8)", "ada_kv(window=8)", "vl_cache")  # 8: the prompt has some 70 tokens
POLICIES = (MERGING, "h2o", "look_m", "streaming_llm", *SHARING)


@dataclass(frozen=True)
class Scene:
    """A question about a picture, and what became of its tokens under each policy."""

    inputs: Any
    layout: Layout
    image: Any
    words: dict[str, list[str]]
    histories: dict[str, History]


def ask(model: Any, processor: Any, policies: Mapping[str, Policy]) -> Scene:
    """The demo's question with the longest answer."""
    case = next(case for case in drawn_cases(0, pictures=1) if (case.kind, case.task) == ("grid", "row"))
    inputs = encode(processor, case.prompt, model.device)
    words: dict[str, list[str]] = {}
    histories: dict[str, History] = {}
    for name, policy in policies.items():
        watch = Watch()
        cache = PolicyCache(model, policy, inputs=inputs, listen=watch)
        output = model.generate(**inputs, **as_argument(cache), max_new_tokens=NEW_TOKENS, do_sample=False)
        histories[name] = watch.history(cache.report())
        words[name] = [processor.tokenizer.decode([token]) for token in output[0].tolist()]
    layout = Layout.of(inputs, model, processor.tokenizer)
    return Scene(inputs, layout, seen_by_model(inputs, processor, case.prompt.image), words, histories)


def gallery() -> dict[str, Figure]:
    """The pictures, by the name of their file."""
    policies = {name: kvpolicy.from_text(name, keep=KEEP) for name in POLICIES}
    model, processor = load_model("demo")
    enable(model)
    row = ask(model, processor, policies)
    made = {}
    for short, name in {"elastic_cache": MERGING, "h2o": "h2o", "look_m": "look_m"}.items():
        title = f"{name}, keep {KEEP:.0%}"
        made[f"patches_{short}"] = patches(
            row.histories[name], row.layout, row.image, after=row.layout.tokens, title=title
        )
        made[f"tokens_{short}"] = tokens_by_layers(row.histories[name], row.words[name], title=title)
    made["steps_h2o"] = tokens_by_steps(row.histories["h2o"], row.words["h2o"], layer=2, title=f"h2o, keep {KEEP:.0%}")
    made["budgets"] = budgets({name: row.histories[name] for name in SHARING}, after=row.layout.tokens)
    data = record(model, row.inputs, new_tokens=NEW_TOKENS)
    made["mass"] = mass_over_steps({name: replay(data, policies[name]) for name in POLICIES[:6]})
    return made


def save(figure: Figure, file: Path) -> None:
    """As PNG in few colours: the pictures lie in the repository."""
    raw = BytesIO()
    figure.savefig(raw, format="png", dpi=150)
    with Image.open(raw) as picture:
        picture.convert("RGB").quantize(256).save(file, format="PNG", optimize=True)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, default=DOCS / "assets" / "plots")
    out = options.parse_args().out
    torch.set_num_threads(1)  # the model is small: more threads only wait for each other
    out.mkdir(parents=True, exist_ok=True)
    for name, figure in gallery().items():
        file = out / f"{name}.png"
        save(figure, file)
        print(f"{file}: {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
