"""Guess several tokens and check them in one pass, under policies: fewer passes, the same tokens.

    python examples/07_assisted.py [--guesses 4] [--keep 0.5]

Nothing is downloaded: the model comes with the package. The guesses come from the prompt itself (prompt lookup); an
`assistant_model=` is used in the same way.
"""

import argparse

import torch

from kvpolicy import elastic_cache, full, h2o, snapkv
from kvpolicy_hf import PolicyCache, enable
from kvpolicy_hf.demo.cases import drawn_cases
from kvpolicy_hf.demo.prompts import encode
from kvpolicy_hf.loading import load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guesses", type=int, default=4, help="tokens to guess at once")
    parser.add_argument("--keep", type=float, default=0.5, help="share of the tokens whose rows stay")
    args = parser.parse_args()

    model, processor = load_model("demo")
    enable(model)
    passes: list[int] = []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    case = next(case for case in drawn_cases(1, pictures=1) if case.task == "row")
    inputs = encode(processor, case.prompt, model.device)

    keep = args.keep
    policies = {
        "full": full(),
        "snapkv": snapkv(keep=keep),
        "h2o": h2o(keep=keep),
        "elastic_cache": elastic_cache(keep=keep),
    }
    for name, policy in policies.items():
        outputs, counts = [], []
        for options in ({}, {"prompt_lookup_num_tokens": args.guesses}):
            passes.clear()
            # inputs= says where the prompt ends: the first guesses come in the same pass.
            cache = PolicyCache(model, policy, inputs=inputs)
            settings = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None, **options}
            outputs.append(model.generate(**inputs, **settings, cache=cache))
            counts.append(len(passes))
        same = "the same tokens" if torch.equal(*outputs) else "OTHER TOKENS"
        print(f"{name:<14} {counts[0]} passes one by one, {counts[1]} with guesses: {same}")


if __name__ == "__main__":
    main()
