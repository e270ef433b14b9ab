"""One picture, several questions: the cache of what they share is filled and compressed once, then copied.

    python examples/06_shared_prompt.py [--keep 0.5]

Nothing is downloaded: the model comes with the package. A system prompt for many requests works the same way.
"""

import argparse
import copy

import numpy as np

from kvpolicy import Policy, key_diff
from kvpolicy_hf import PolicyCache, enable
from kvpolicy_hf.demo.scenes import draw
from kvpolicy_hf.loading import load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=float, default=0.5, help="share of the tokens whose rows stay")
    args = parser.parse_args()

    model, processor = load_model("demo")
    enable(model)
    rng = np.random.default_rng(0)
    scene = draw(rng, "photo")
    questions = [scene.ask(task, rng) for task in ("where", "at", "password")]

    # What all questions begin with. One forward pass fills the cache, and the policy compresses it: by keys that are
    # unlike the others, since no question is known yet.
    policy = Policy(prefill=key_diff(keep=args.keep).prefill)
    prefix = processor(images=scene.image, text=f"password {scene.password} . <image>", return_tensors="pt")
    shared = PolicyCache(model, policy, inputs=prefix)
    model(**prefix, cache=shared)
    print(f"{shared.get_seq_length()} tokens are shared, {shared.report().layers[0].rows:.0f} rows of each head")

    for question in questions:
        inputs = processor(images=scene.image, text=scene.prompt(question), return_tensors="pt")
        del inputs["pixel_values"]  # the picture is in the cache; generate goes on behind it
        cache = copy.deepcopy(shared)
        output = model.generate(**inputs, cache=cache, max_new_tokens=10, do_sample=False)
        answer = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        print(f"{question.text:<24} {answer:<24} (right: {question.answer})")
    print(f"the shared cache still holds {shared.get_seq_length()} tokens")


if __name__ == "__main__":
    main()
