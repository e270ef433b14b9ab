"""Many requests on several processes: each has the whole model, takes its share of the questions, and reports back.

    python examples/10_data_parallel.py [--questions 12] [--keep 0.3]
    torchrun --nproc-per-node 2 examples/10_data_parallel.py

A `PolicyCache` serves one request and knows nothing of other processes, so nothing has to be told to it. The table is
the same whatever the number of processes. Nothing is downloaded: the model comes with the package.
"""

import argparse

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from kvpolicy import elastic_cache, full, h2o, streaming_llm
from kvpolicy_hf import PolicyCache, enable
from kvpolicy_hf.demo.scenes import TASKS, draw
from kvpolicy_hf.loading import load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=12, help="how many, over all processes")
    parser.add_argument("--keep", type=float, default=0.3, help="share of the tokens whose rows stay")
    args = parser.parse_args()
    policies = {
        "full": full(),
        "elastic_cache": elastic_cache(keep=args.keep, last=8),
        "h2o": h2o(keep=args.keep),
        "streaming_llm": streaming_llm(keep=args.keep),
    }

    state = PartialState(cpu=not torch.cuda.is_available())  # without the flag, processes on CPUs do not meet
    model, processor = load_model("demo")
    model.to(state.device)
    enable(model)

    found = []  # (question, policy, whether its answer is right)
    with state.split_between_processes(list(range(args.questions))) as mine:
        for number in mine:
            rng = np.random.default_rng(number)
            scene = draw(rng, "photo")
            question = scene.ask(TASKS[number % len(TASKS)], rng)
            inputs = processor(images=scene.image, text=scene.prompt(question), return_tensors="pt").to(state.device)
            for name, policy in policies.items():
                cache = PolicyCache(model, policy, inputs=inputs)
                output = model.generate(**inputs, cache=cache, max_new_tokens=10, do_sample=False)
                answer = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
                found.append((number, name, answer.strip() == question.answer))

    everything = gather_object(found)
    if state.is_main_process:
        for name in policies:
            right = [number for number, policy, is_right in everything if policy == name and is_right]
            print(f"{name:<14} {len(right)} of {args.questions} right: {sorted(right)}")
    state.destroy_process_group()


if __name__ == "__main__":
    main()
