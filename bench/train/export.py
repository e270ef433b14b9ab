"""Write what `from_pretrained` reads: half precision, small files, a record of how it was made; and go on from it."""

from __future__ import annotations

import copy
import json
import platform
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy
import torch
import transformers
from kvpolicy_bench.processor import make_processor
from kvpolicy_bench.words import BOS, EOS, PAD
from transformers import GenerationConfig, LlavaForConditionalGeneration

from .run import Options, Run

__all__ = ["export", "reopen"]

SHARD = "15MB"
LICENCES = {
    "model": "Apache-2.0",
    "emoji, Noto": "Apache-2.0",
    "photographs": "CC0, public domain; china.jpg and flower.jpg: CC BY 2.0",
    "Easy-VQA": "MIT",
}


def export(run: Run, folder: Path, *, commit: str, held_out: dict[str, float]) -> None:
    """Write the model as it is now, its processor, and ``provenance.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.safetensors"):  # of an earlier export, in other shards
        stale.unlink()
    model = copy.deepcopy(run.model).eval().to("cpu", torch.float16)
    model.generation_config = GenerationConfig(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD, do_sample=False)
    model.save_pretrained(folder, max_shard_size=SHARD)
    make_processor(run.options.world).save_pretrained(folder)
    made: dict[str, Any] = {
        "made_by": "bench/train",
        "commit": commit,
        "options": asdict(run.options),
        "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
        "steps": {"done": run.step, "of": run.options.steps},
        "seconds": round(run.seconds, 1),
        "held_out_exact_match": held_out,
        "machine": torch.cuda.get_device_name() if run.device.type == "cuda" else platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": numpy.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": "synthetic scenes drawn by kvpolicy_bench, and the training split of Easy-VQA 1.0",
        "licences": LICENCES,
    }
    (folder / "provenance.json").write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")


def reopen(folder: Path, device: torch.device, steps: int | None = None) -> Run:
    """Go on from an exported model with a new optimizer: the same run, where its checkpoint was lost, or a longer one.

    Args:
        folder: what `export` wrote.
        device: where to train.
        steps: of the whole run; None: as many as it had.
    """
    made = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    options = Options(**made["options"])
    run = Run(replace(options, steps=steps or options.steps), device)
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    run.model.load_state_dict(model.state_dict())
    run.step = run.restarted = made["steps"]["done"]
    run.seconds = made["seconds"]
    return run
