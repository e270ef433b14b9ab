"""One model on several processes, each with its share of the heads of every layer, and a policy that combines them.

    torchrun --nproc-per-node 2 examples/08_tensor_parallel.py [--keep 0.5]

On a machine with GPUs each process takes one; without, they are processes of the CPU. Nothing is downloaded: the model
comes with the package, and has two key/value heads. `python examples/08_tensor_parallel.py` runs it on one process, and
gives the same answer.
"""

import argparse
import os

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.distributed import DistributedConfig

import kvpolicy
from kvpolicy_hf import PolicyCache, enable
from kvpolicy_hf.demo.scenes import ASSETS, draw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=float, default=0.5, help="share of the tokens whose rows stay")
    args = parser.parse_args()

    ranks, rank = (int(os.environ.get(name, default)) for name, default in (("WORLD_SIZE", "1"), ("RANK", "0")))
    shared = {"distributed_config": DistributedConfig(tp_size=ranks)} if ranks > 1 else {}
    model = AutoModelForImageTextToText.from_pretrained(ASSETS, dtype=torch.float32, **shared).eval()
    processor = AutoProcessor.from_pretrained(ASSETS)
    rng = np.random.default_rng(0)
    scene = draw(rng, "photo")
    question = scene.ask("where", rng)
    inputs = processor(images=scene.image, text=scene.prompt(question), return_tensors="pt").to(model.device)

    # As on one device: the cache finds the group of processes from the model. `elastic_cache` goes by the mean over all
    # heads of a layer, so each process asks the others for theirs, and all keep the same rows.
    enable(model)
    cache = PolicyCache(model, kvpolicy.elastic_cache(keep=args.keep, last=8), inputs=inputs)
    output = model.generate(**inputs, cache=cache, max_new_tokens=10, do_sample=False)
    answer = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    report = cache.report()  # of the heads of this process
    if rank == 0:
        print(f"question: {question.text}")
        print(f"answer:   {answer}  (right: {question.answer})")
        print(f"{ranks} process(es) hold {kvpolicy.format_bytes(report.kv_bytes)} of keys and values each")
    if ranks > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
