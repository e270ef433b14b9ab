"""The pipeline for questions about pictures, with the model that comes with the package."""

from __future__ import annotations

import numpy as np
import pytest
from expected import Mode, modes_of
from PIL import Image
from transformers import pipeline

import kvpolicy
from kvpolicy_hf import PolicyCache, enable
from kvpolicy_hf._transformers import as_argument
from kvpolicy_hf.demo.scenes import draw
from kvpolicy_hf.loading import load_model


@pytest.mark.parametrize("policy", [kvpolicy.full(), kvpolicy.elastic_cache(keep=0.5, last=8)], ids=["full", "elastic"])
@pytest.mark.parametrize("mode", modes_of("test_pictures.py::test_the_pipeline"), ids=repr)
def test_the_pipeline(mode: Mode, policy: kvpolicy.Policy) -> None:
    model, processor = load_model("demo")
    enable(model)
    rng = np.random.default_rng(0)
    scene = draw(rng, "photo")
    prompt = scene.prompt(scene.ask("where", rng))
    inputs = processor(images=scene.image, text=prompt, return_tensors="pt")
    settings = {"max_new_tokens": 10, "do_sample": False}
    due = model.generate(**inputs, **settings, past_key_values=PolicyCache(model, policy, inputs=inputs))
    run = pipeline("image-text-to-text", model=model, processor=processor, device="cpu")
    settings.update(as_argument(PolicyCache(model, policy, inputs=inputs)))
    (out,) = run(Image.fromarray(scene.image), text=prompt, generate_kwargs=settings, return_full_text=False)
    assert (
        out["generated_text"].strip()
        == processor.decode(due[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    )
    assert out["generated_text"].strip()
