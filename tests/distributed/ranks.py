"""One rank of two: every policy on its share of the model's heads. What came of it goes to a file."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from transformers import LlamaForCausalLM
from transformers.distributed import DistributedConfig
from workloads import POLICIES, run

import kvpolicy
from kvpolicy import FixedRows, KVPolicyError, Pipeline, Policy
from kvpolicy_hf import PolicyCache, enable, from_press


def load(folder: Path) -> Any:
    size = dist.get_world_size()
    return LlamaForCausalLM.from_pretrained(folder, distributed_config=DistributedConfig(tp_size=size)).eval()


def refused(model: Any, policy: Policy) -> str:
    enable(model)
    try:
        PolicyCache(model, policy)
    except KVPolicyError as error:
        return f"{type(error).__name__}: {error}"
    return "not refused"


def score(module: Any, hidden_states: Any, keys: Any, values: Any, attentions: Any, kwargs: Any) -> Any:
    return keys.norm(dim=-1)


def main(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    model = load(folder / "model")
    found: dict[str, Any] = {name: run(model, policy) for name, policy in POLICIES.items()}
    found["local heads"] = model.model.layers[0].self_attn.k_proj.weight.to_local().shape[0] // 8
    press = from_press(SimpleNamespace(score=score))
    found["a press"] = refused(model, Policy(prefill=Pipeline(schedule=FixedRows(8), score=press)))
    found["three heads"] = refused(load(folder / "odd"), kvpolicy.full())
    cache = PolicyCache(model, kvpolicy.tova(rows=8))
    found["copied"] = copy.deepcopy(cache).session.heads is cache.session.heads
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
