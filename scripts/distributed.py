"""Two GPUs: tokens and rows under tensor parallelism and device_map against one GPU's, and what our all-gathers cost.

    python -m scripts.distributed result.json [--small]    (in the root of the repository; prints the result too)

Random Llama-like models, so nothing is downloaded. ``--small`` shrinks them until two processes of a CPU can do it.
NVLink multicast is left off (``NCCL_NVLS_ENABLE=0``) unless the environment says otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.distributed import DistributedConfig

import kvpolicy
from kvpolicy import AdaptiveHeads, AttentionMass, KeepRatio, Pipeline, Policy, WindowMass
from kvpolicy_hf import PolicyCache, disable, enable
from kvpolicy_hf._transformers import as_argument

ROOT = Path(__file__).parents[1]
RANKS = 2
KEEP = 0.2


@dataclass(frozen=True)
class Sizes:
    """Of the two models and what they are asked; lengths in tokens."""

    exact: dict[str, int]
    exact_prompt: int
    exact_new: int
    timed: dict[str, int]
    timed_prompt: int
    timed_steps: int


SIZES = {
    False: Sizes(
        exact={"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 16}
        | {"num_key_value_heads": 8, "vocab_size": 2048, "max_position_embeddings": 16384},
        exact_prompt=512,
        exact_new=64,
        timed={"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}
        | {"num_key_value_heads": 8, "vocab_size": 32768, "max_position_embeddings": 16384},
        timed_prompt=8192,
        timed_steps=64,
    ),
    True: Sizes(
        exact={"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8}
        | {"num_key_value_heads": 4, "vocab_size": 152},
        exact_prompt=40,
        exact_new=8,
        timed={"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8}
        | {"num_key_value_heads": 4, "vocab_size": 152},
        timed_prompt=64,
        timed_steps=4,
    ),
}

COMPETE = Pipeline(schedule=KeepRatio(KEEP), score=WindowMass(), allocate=AdaptiveHeads())
MEAN = Pipeline(schedule=KeepRatio(KEEP), score=AttentionMass(heads="mean"))
POLICIES: dict[str, Policy] = {
    "full": kvpolicy.full(),
    "h2o": kvpolicy.h2o(keep=KEEP),  # head by head: nothing to gather
    "elastic_cache": kvpolicy.elastic_cache(keep=KEEP),  # a mean over heads in the prompt
    "ada_kv": kvpolicy.ada_kv(keep=KEEP),  # heads compete in the prompt
    "tova": kvpolicy.tova(keep=KEEP),  # a mean over heads at every token
    "heads compete": Policy(prefill=COMPETE, decode=COMPETE),  # at every token
    "mean": Policy(prefill=MEAN, decode=MEAN),  # of all the attention so far, at every token
}
EXACT_ONLY: dict[str, Policy] = {
    "d2o": kvpolicy.d2o(keep=KEEP),
    "air_cache": kvpolicy.air_cache(keep=KEEP),
    "keep_kv": kvpolicy.keep_kv(keep=KEEP),
}


@dataclass
class Gathers:
    """What our all-gathers, the only ones that go through `torch.distributed.all_gather`, take."""

    calls: int = 0
    sent: int = 0  # bytes of one rank
    spans: list[tuple[Any, Any]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def milliseconds(self) -> float:
        """On the device's stream, the wait for the other rank included; on a CPU, of the calls."""
        return 1000 * self.seconds + sum(first.elapsed_time(last) for first, last in self.spans)


@contextlib.contextmanager
def watched(device: torch.device) -> Iterator[Gathers]:
    """Count and time the all-gathers of a block."""
    found, gather = Gathers(), dist.all_gather

    def all_gather(brought: list[Tensor], sent: Tensor, **kwargs: Any) -> Any:
        found.calls, found.sent = found.calls + 1, found.sent + sent.nbytes
        if device.type == "cpu":
            begin = time.perf_counter()
            done = gather(brought, sent, **kwargs)
            found.seconds += time.perf_counter() - begin
            return done
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        done = gather(brought, sent, **kwargs)
        last.record()
        found.spans.append((first, last))
        return done

    dist.all_gather = all_gather
    try:
        yield found
    finally:
        dist.all_gather = gather


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def save(folder: Path, sizes: dict[str, int], dtype: torch.dtype, spread: float, device: torch.device) -> None:
    """A model with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(**sizes, initializer_range=spread, pad_token_id=0, bos_token_id=None, eos_token_id=None)
    with device:
        LlamaForCausalLM(config).to(dtype).save_pretrained(folder)


def prompt(model: Any, tokens: int, device: torch.device) -> dict[str, Tensor]:
    """Random words."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, model.config.vocab_size, (1, tokens), generator=generator).to(device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def exact(model: Any, sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """Tokens under each policy, and the rows that each layer and head of this process holds in the end."""
    enable(model)
    inputs = prompt(model, sizes.exact_prompt, device)
    found = {}
    for name, policy in {**POLICIES, **EXACT_ONLY}.items():
        cache = PolicyCache(model, policy, inputs=inputs)
        out = model.generate(**inputs, **as_argument(cache), max_new_tokens=sizes.exact_new, do_sample=False)
        views = [layer.store.view() for layer in cache.session._layers]
        rows = [
            [sorted(places[valid].tolist()) for places, valid in zip(view.positions[0], view.valid[0], strict=True)]
            for view in views
        ]
        found[name] = {"tokens": out[0, sizes.exact_prompt :].tolist(), "rows": rows}
    return found


def timed(model: Any, sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """Prefill and decode steps without a policy and under each, in milliseconds, and our all-gathers in them."""
    inputs = prompt(model, sizes.timed_prompt, device)
    found = {}
    for name in ("no policy", *POLICIES):
        made: Callable[[], Any]
        if name == "no policy":
            disable(model)

            def made() -> Any:
                return DynamicCache(config=model.config)

        else:
            enable(model)

            def made(policy: Policy = POLICIES[name]) -> Any:
                return PolicyCache(model, policy, inputs=inputs, check=False)

        for steps in (4, sizes.timed_steps):  # the first run warms up
            found[name] = one_request(model, made(), inputs["input_ids"], steps, device)
    return found


@torch.no_grad()
def one_request(model: Any, cache: Any, ids: Tensor, steps: int, device: torch.device) -> dict[str, Any]:
    """A prompt and so many tokens after it, greedily."""
    found: dict[str, Any] = {}
    phases = {"prefill": [ids], "decode": [None] * steps}
    token = ids[:, -1:]
    for phase, passes in phases.items():
        with watched(device) as gathers:
            synchronize(device)
            begin = time.perf_counter()
            for given in passes:
                fed = token if given is None else given
                logits = model(input_ids=fed, **as_argument(cache), use_cache=True, logits_to_keep=1).logits
                token = logits[:, -1].argmax(-1, keepdim=True)
            synchronize(device)
            spent = 1000 * (time.perf_counter() - begin)
        found[phase] = {
            "ms": spent / len(passes),
            "gathers": gathers.calls / len(passes),
            "gathers_ms": gathers.milliseconds / len(passes),
            "gathers_share": gathers.milliseconds / spent,
            "gathers_bytes": gathers.sent / len(passes),
        }
    if isinstance(cache, PolicyCache):
        found["kv_bytes"] = cache.report().kv_bytes
    return found


def rank(number: int, folder: Path, small: bool) -> None:
    """One of the processes that share the heads."""
    on_gpu = torch.cuda.is_available() and not small
    device = torch.device("cuda", number) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=f"file://{folder}/meeting",
        rank=number,
        world_size=RANKS,
        timeout=timedelta(minutes=3),
        device_id=device if on_gpu else None,
    )
    found = {}
    for name, work in (("exact", exact), ("timed", timed)):
        config = DistributedConfig(tp_size=RANKS)
        model = LlamaForCausalLM.from_pretrained(folder / name, distributed_config=config).eval()
        found[name] = work(model, SIZES[small], device)
        del model
        gc.collect()
    (folder / f"{number}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def tensor_parallel(folder: Path, small: bool) -> list[dict[str, Any]]:
    """What the ranks found."""
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "scripts.distributed", "-", "--folder", str(folder), "--rank", str(number)]
            + ["--small"] * small,
            cwd=ROOT,
            env={"NCCL_NVLS_ENABLE": "0", **os.environ, "RANK": str(number), "LOCAL_RANK": str(number)}
            | {"WORLD_SIZE": str(RANKS)},
        )
        for number in range(RANKS)
    ]
    try:
        for process in started:
            if process.wait(timeout=240):
                raise SystemExit(f"a rank ended with {process.returncode}; its error is above.")
    finally:
        for process in started:
            process.kill()
    return [json.loads((folder / f"{number}.json").read_text()) for number in range(RANKS)]


def compared(alone: dict[str, Any], others: list[dict[str, Any]]) -> dict[str, Any]:
    """Whether each policy's tokens are those of one device, and the rows too; heads lie one process after another."""
    found = {}
    for name, one in alone.items():
        tokens = [other[name]["tokens"] for other in others]
        layers = zip(*(other[name]["rows"] for other in others), strict=True)
        rows = [[head for part in layer for head in part] for layer in layers]
        found[name] = {
            "tokens_equal": all(each == one["tokens"] for each in tokens),
            "equal_for": min(agreeing(each, one["tokens"]) for each in tokens),
            "rows_equal": rows == one["rows"],
            "heads_alike": all(head == layer[0] for layer in rows for head in layer),
        }
    return found


def agreeing(one: list[int], other: list[int]) -> int:
    """How many tokens are equal from the first on."""
    return next((n for n, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1]), len(one))


def device_map(folder: Path, sizes: Sizes) -> dict[str, Any] | str:
    """The tokens with the first half of the layers on one GPU and the others on the next."""
    if torch.cuda.device_count() < 2:
        return "not tried: fewer than two GPUs"
    if importlib.util.find_spec("accelerate") is None:
        return "not tried: accelerate is not installed"
    layers = sizes.exact["num_hidden_layers"]
    places = {f"model.layers.{n}": int(n >= layers // 2) for n in range(layers)}
    places |= {"model.embed_tokens": 0, "model.rotary_emb": 0, "model.norm": 1, "lm_head": 1}
    model = LlamaForCausalLM.from_pretrained(folder / "exact", device_map=places).eval()
    return exact(model, sizes, torch.device("cuda", 0))


def machine() -> dict[str, Any]:
    """Versions and devices."""
    gpus = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "kvpolicy": kvpolicy.__version__,
        "devices": gpus or [f"CPU ({platform.machine()})"],
        "nvls": os.environ.get("NCCL_NVLS_ENABLE", "0"),
    }


def measured(small: bool) -> dict[str, Any]:
    """Everything, with how long it took."""
    begin, sizes = time.perf_counter(), SIZES[small]
    device = torch.device("cuda", 0) if torch.cuda.is_available() and not small else torch.device("cpu")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save(folder / "exact", sizes.exact, torch.float32, 0.1, device)
        save(folder / "timed", sizes.timed, torch.bfloat16, 0.02, device)
        model = LlamaForCausalLM.from_pretrained(folder / "exact").to(device).eval()
        alone = exact(model, sizes, device)
        model = LlamaForCausalLM.from_pretrained(folder / "timed").to(device).eval()
        times = timed(model, sizes, device)
        del model
        gc.collect()
        ranks = tensor_parallel(folder, small)
        spread = device_map(folder, sizes)
    return {
        "machine": machine(),
        "sizes": asdict(sizes),
        "policies": {name: repr(policy) for name, policy in {**POLICIES, **EXACT_ONLY}.items()},
        "tensor_parallel": compared(alone, [found["exact"] for found in ranks]),
        "device_map": spread if isinstance(spread, str) else compared(alone, [spread]),
        "times": {"one": times, **{f"rank {n} of {RANKS}": found["timed"] for n, found in enumerate(ranks)}},
        "seconds": time.perf_counter() - begin,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, help="where the result goes, as JSON")
    parser.add_argument("--small", action="store_true", help="tiny models, on the CPU")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.rank is not None:
        rank(told.rank, told.folder, told.small)
        return
    text = json.dumps(measured(told.small), indent=2)
    told.result.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
