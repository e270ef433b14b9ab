"""What is checked of every family."""

from __future__ import annotations

from typing import Any

import torch
from family import FIRST_WORD, Family, Inputs, words
from silent import Silent
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.cache_utils import Cache

import kvpolicy
from kvpolicy import CacheView, Policy, UnsupportedModelError
from kvpolicy_hf import PolicyCache, disable, enable

WATCH = kvpolicy.h2o(keep=1.0)  # accumulates, never evicts
EVICT = kvpolicy.h2o(keep=0.4)


def full_is_exact(family: Family) -> None:
    """(a) With everything kept, the tokens are those of the plain model: its usual attention and eager, padded too."""
    for inputs in (family.batch(), *family.rows()[:1]):
        model, eager = family.new(), family.new()
        usual, plain = attention_names(model), tokens_of(model, inputs)
        eager.set_attn_implementation("eager")
        assert torch.equal(tokens_of(eager, inputs), plain)
        enable(model)
        assert torch.equal(tokens_of(model, inputs), plain), "enabled, without a policy"
        cache = PolicyCache(model, kvpolicy.full(), inputs=inputs)
        assert torch.equal(tokens_of(model, inputs, cache), plain)
        assert cache.report().evicted == cache.report().merged == 0
        close_logits(model, inputs)
        disable(model)
        assert attention_names(model) == usual


def close_logits(model: PreTrainedModel, inputs: Inputs) -> None:
    """Of a prompt's tokens, padding aside: equal tokens could hide a small drift."""
    plain = forward(model, inputs).logits
    logits = forward(model, inputs, PolicyCache(model, kvpolicy.full(), inputs=inputs)).logits
    real = torch.ones(plain.shape[:2]) if model.config.is_encoder_decoder else inputs["attention_mask"]
    torch.testing.assert_close(logits[real.bool()], plain[real.bool()], atol=1e-3, rtol=1e-3)


def mass_is_the_models_own(family: Family) -> None:
    """(b) What a scorer sees of a padded prompt are the column sums of the eager model's attention."""
    inputs = family.batch()
    eager = family.new()
    eager.set_attn_implementation("eager")
    due = attention_of(eager, inputs)
    model = family.new()
    enable(model)
    cache = PolicyCache(model, WATCH, inputs=inputs)
    forward(model, inputs, cache)
    for number, view in tables(family, cache):
        counted = due[number].float() * view.valid[:, :1, :, None]  # rows are in order: nothing was evicted
        received = counted.sum(2).unflatten(1, (view.shape[1], -1)).mean(2)
        mass = view.columns["mass"].data
        torch.testing.assert_close(mass[view.valid], received[view.valid], atol=1e-5, rtol=1e-5)


def evicted_rows_are_independent(family: Family, policy: Policy = EVICT) -> None:
    """(c) An evicting policy runs, and each row of a padded batch gives the tokens that it gives alone."""
    model, rows = family.new(), family.rows()
    enable(model)
    inputs = family.batch()
    cache = PolicyCache(model, policy, inputs=inputs)
    together = tokens_of(model, inputs, cache)
    assert cache.report().evicted > 0
    for row, tokens in zip(rows, together, strict=True):
        alone = tokens_of(model, row, PolicyCache(model, policy, inputs=row))
        assert torch.equal(alone[0], tokens)


def is_as_expected(family: Family) -> None:
    """All of it: (a), (b) and (c), or (d) in the expected words."""
    if family.refused:
        assert refusal(family) == family.refused
        return
    full_is_exact(family)
    mass_is_the_models_own(family)
    evicted_rows_are_independent(family)


def refusal(family: Family) -> str:
    """(d) What is said before a token is produced; an enabled model without a policy gives its own tokens."""
    model, inputs = family.new(), family.batch()
    plain = tokens_of(model, inputs)
    try:
        enable(model)
        assert torch.equal(tokens_of(model, inputs), plain)
        tokens_of(model, inputs, PolicyCache(model, EVICT), streamer=Silent())
    except UnsupportedModelError as error:
        return str(error)
    raise AssertionError("nothing was refused")


def tables(family: Family, cache: PolicyCache) -> list[tuple[int, CacheView]]:
    """The tables of a cache, with the number of the layer of each."""
    views = [layer.store.view() for layer in cache.session._layers]
    return list(zip(family.layers, views, strict=True))


def tokens_of(model: PreTrainedModel, inputs: Inputs, cache: PolicyCache | None = None, **options: Any) -> Tensor:
    """The tokens that greedy `generate` adds."""
    start = 1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    if cache is not None:
        options["past_key_values"] = as_taken(model, cache)
    out = model.generate(
        **inputs,
        **options,
        max_new_tokens=7,
        do_sample=False,
        suppress_tokens=list(range(FIRST_WORD)),  # an image token would ask for another picture
    )
    return out[:, start:]


def as_taken(model: PreTrainedModel, cache: PolicyCache) -> Cache:
    """What the model takes: an encoder-decoder has a second cache, for the attention to its encoder's output."""
    return EncoderDecoderCache(cache, DynamicCache()) if model.config.is_encoder_decoder else cache


def forward(model: PreTrainedModel, inputs: Inputs, cache: PolicyCache | None = None, **options: Any) -> Any:
    """One pass over the prompt."""
    if cache is not None:
        options["past_key_values"] = as_taken(model, cache)
    if model.config.is_encoder_decoder:
        options["decoder_input_ids"] = words(9, 1).expand(len(inputs["input_ids"]), -1)
    with torch.no_grad():
        return model(**inputs, **options)


def attention_of(model: PreTrainedModel, inputs: Inputs) -> dict[int, Tensor]:
    """What the self-attention of each layer pays in a pass over the prompt, [B, Hq, Q, S] by the layer's number."""
    paid: dict[int, Tensor] = {}

    def note(module: torch.nn.Module, _: Any, output: tuple[Any, ...]) -> None:
        weights = output[1]
        if weights is not None and weights.shape[-1] == weights.shape[-2]:
            paid.setdefault(module.layer_idx, weights)

    text = model.get_decoder() if hasattr(model, "get_decoder") else model
    for module in text.modules():
        if isinstance(getattr(module, "layer_idx", None), int) and "Attention" in type(module).__name__:
            module.register_forward_hook(note)
    forward(model, inputs, use_cache=False, output_attentions=True)
    return paid


def parts(model: PreTrainedModel) -> list[PreTrainedModel]:
    return [part for part in model.modules() if isinstance(part, PreTrainedModel)]


def attention_names(model: PreTrainedModel) -> list[str]:
    """What every part of a model uses, in order."""
    return [str(part.config._attn_implementation) for part in parts(model)]
