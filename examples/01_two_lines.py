"""The two lines that put a model's cache under a policy, and the report of what the policy did.

    python examples/01_two_lines.py

Nothing is downloaded: the model comes with the package.
"""

import numpy as np

import kvpolicy
from kvpolicy_hf import PolicyCache, enable
from kvpolicy_hf.demo.scenes import draw
from kvpolicy_hf.loading import load_model


def main() -> None:
    model, processor = load_model("demo")  # the small vision-language model that comes with the package
    rng = np.random.default_rng(0)
    scene = draw(rng, "photo")
    question = scene.ask("where", rng)
    inputs = processor(images=scene.image, text=scene.prompt(question), return_tensors="pt").to(model.device)

    # The two lines. From here on it is transformers as ever, with the cache handed to `generate`. The prompt ends in
    # its question, which few tokens have looked back at: last=8 protects it from being merged away.
    enable(model)
    cache = PolicyCache(model, kvpolicy.elastic_cache(keep=0.5, last=8), inputs=inputs)

    output = model.generate(**inputs, cache=cache, max_new_tokens=10, do_sample=False)
    answer = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    print(f"question: {question.text}")
    print(f"answer:   {answer}  (right: {question.answer})\n")
    print(cache.report())


if __name__ == "__main__":
    main()
