"""Layers on several devices: `device_map`, and the rows of each layer where the layer is.

    python examples/09_device_map.py [--keep 0.5]

With one device, as in a test, all layers are there; with several GPUs, accelerate spreads them. Nothing is downloaded:
the model comes with the package.
"""

import argparse
from collections import Counter

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import kvpolicy
from kvpolicy_hf import PolicyCache, enable
from kvpolicy_hf.demo.scenes import ASSETS, draw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=float, default=0.5, help="share of the tokens whose rows stay")
    args = parser.parse_args()

    model = AutoModelForImageTextToText.from_pretrained(ASSETS, dtype=torch.float32, device_map="balanced").eval()
    processor = AutoProcessor.from_pretrained(ASSETS)
    rng = np.random.default_rng(0)
    scene = draw(rng, "photo")
    question = scene.ask("where", rng)
    inputs = processor(images=scene.image, text=scene.prompt(question), return_tensors="pt").to(model.device)

    held: Counter[str] = Counter()  # rows by device, after the prompt
    enable(model)
    cache = PolicyCache(
        model,
        kvpolicy.elastic_cache(keep=args.keep, last=8),
        inputs=inputs,
        listen=lambda layer, view, plan, step: held.update({str(view.keys.device): int(plan.keep.sum())}),
    )
    output = model.generate(**inputs, cache=cache, max_new_tokens=10, do_sample=False)
    answer = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    print(f"question: {question.text}")
    print(f"answer:   {answer}  (right: {question.answer})")
    for device, rows in held.items():
        print(f"{device}: {rows} rows kept by its plans")


if __name__ == "__main__":
    main()
