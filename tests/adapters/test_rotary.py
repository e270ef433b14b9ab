"""Turning keys and queries by the model's own rotary embedding, and what is built on it: slots, Expected Attention."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from models import (
    LLAMA,
    LLAVA,
    MIXED,
    QWEN2,
    QWEN_VL,
    TEXT,
    Family,
    Inputs,
    assert_same_tables,
    batch,
    continue_with,
    feed,
    new_llama,
    new_tokens,
    tables,
    text_row,
    text_rows,
    words,
)
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

import kvpolicy
from kvpolicy import Pipeline, Policy, Recency, UnsupportedModelError
from kvpolicy.scorers import ExpectedAttention, Pooled
from kvpolicy_hf import PolicyCache, enable
from kvpolicy_hf.rotary import rotation


def new(name: str, **changes: Any) -> PreTrainedModel:
    """A tiny model of a kind that the other tests have no use for."""
    torch.manual_seed(7)
    config = getattr(transformers, f"{name}TextConfig", None) or getattr(transformers, f"{name}Config")
    model: PreTrainedModel = getattr(transformers, f"{name}ForCausalLM")(config(**{**TEXT, **changes})).eval()
    return model


def scaled(kind: str, **settings: Any) -> PreTrainedModel:
    return new_llama(rope_parameters={"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0, **settings})


PLAIN: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": new_llama,
    "qwen2": QWEN2.new,
    "llava": LLAVA.new,
    "some layers slide": MIXED.new,
    "linear": lambda: scaled("linear"),
    "llama3": lambda: scaled("llama3", low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=256),
    "yarn": lambda: scaled("yarn", original_max_position_embeddings=256),
    "neighbours": lambda: new("Cohere"),
    "part, neighbours": lambda: new("Glm", head_dim=12),
    "part": lambda: new("GPTNeoX"),
    "part, cut by the attention": lambda: new("Phi", partial_rotary_factor=0.5),
}
OTHER: dict[str, tuple[Callable[[], PreTrainedModel], str]] = {
    "three dimensions": (QWEN_VL.new, "several dimensions (M-RoPE)"),
    "by length": (lambda: scaled("dynamic"), "'dynamic', which change with the length"),
    "long or short": (
        lambda: scaled("longrope", short_factor=[1.0] * 6, long_factor=[2.0] * 6, original_max_position_embeddings=256),
        "'longrope', which change with the length",
    ),
    "by kind of layer": (
        lambda: new("Gemma3", head_dim=12, num_hidden_layers=6),
        "has no rotary embedding for all its layers",
    ),
    "none": (lambda: new("OPT", ffn_dim=64, word_embed_proj_dim=48), "has no rotary embedding"),
    "not in all layers": (lambda: new("SmolLM3", num_hidden_layers=4), "does not simply turn"),
    "in sliding layers only": (lambda: new("Cohere2", num_hidden_layers=4, sliding_window=8), "does not simply turn"),
    "as complex numbers": (lambda: new("Llama4", head_dim=12, num_hidden_layers=4), "in a way of its own"),
    "of the end of a head": (
        lambda: new(
            "DeepseekV3", kv_lora_rank=16, q_lora_rank=16, qk_rope_head_dim=8, v_head_dim=12, qk_nope_head_dim=12
        ),
        "cannot be tried by itself",
    ),
    "weighed afterwards": (lambda: weighed(new("HunYuanDenseV1", head_dim=12)), "does not simply turn"),
}


def weighed(model: PreTrainedModel) -> PreTrainedModel:
    """Norms after the rotary embedding, with weights that differ from one dimension to the next."""
    for name, weight in model.named_parameters():
        if "query_layernorm" in name or "key_layernorm" in name:
            weight.data = torch.linspace(0.5, 2.0, len(weight))
    return model


def rotate_of(model: PreTrainedModel) -> Any:
    enable(model)
    rotate, why_not = rotation(model)
    assert rotate is not None, why_not
    return rotate


@pytest.mark.parametrize("kind", PLAIN)
def test_it_turns_as_the_model_does(kind: str) -> None:
    """The keys of a prompt that begins later are those of the prompt, turned."""
    model = PLAIN[kind]()
    rotate, ids = rotate_of(model), words(9, 1)
    at = torch.arange(9)[None]
    near, far = DynamicCache(config=model.config.get_text_config()), DynamicCache()
    model(input_ids=ids, position_ids=at, past_key_values=near)
    model(input_ids=ids, position_ids=at + 23, past_key_values=far)
    layers = [n for n, layer in enumerate(near.layers) if type(layer) is type(far.layers[0])]
    assert layers
    for n in layers:
        here, there = near.layers[n].keys, far.layers[n].keys
        by = torch.full(here.shape[:3], 23)
        scale = float(here.abs().max())
        torch.testing.assert_close(rotate(here, by) / scale, there / scale, atol=2e-5, rtol=0)
        torch.testing.assert_close(rotate(there, -by) / scale, here / scale, atol=2e-5, rtol=0)
        assert not torch.allclose(here, there, atol=0.05 * scale)


@pytest.mark.parametrize("kind", PLAIN)
def test_every_vector_by_its_own_number_of_positions(kind: str) -> None:
    rotate = rotate_of(PLAIN[kind]())
    x, by = torch.randn(2, 3, 5, 12), torch.randint(-40, 40, (2, 3, 5))
    together = rotate(x, by)
    for b, h, n in ((0, 0, 0), (1, 2, 3), (1, 0, 4)):
        alone = rotate(x[b : b + 1, h : h + 1, n : n + 1], by[b : b + 1, h : h + 1, n : n + 1])
        torch.testing.assert_close(together[b, h, n], alone[0, 0, 0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(together.norm(dim=-1), x.norm(dim=-1))  # also where cosines are scaled for attention
    assert torch.equal(rotate(x, torch.zeros_like(by)), x)
    assert rotate(x[:, :, :0], by[:, :, :0]).shape == (2, 3, 0, 12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_precision_is_turned_in_full(dtype: torch.dtype) -> None:
    rotate = rotate_of(new_llama(dtype))
    x, by = torch.randn(1, 2, 6, 12, dtype=dtype), torch.randint(-900, 900, (1, 2, 6))
    assert rotate(x, by).dtype == dtype
    torch.testing.assert_close(rotate(x, by), rotate(x.double(), by).to(dtype))
    assert torch.equal(rotate(x, torch.zeros_like(by)), x)


def test_building_it_leaves_no_trace() -> None:
    model = new_llama()
    enable(model)
    called = []
    for part in model.modules():
        if type(part).__name__ == "LlamaAttention":
            part.register_forward_pre_hook(lambda *_: called.append(1))
    before = torch.get_rng_state()
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    with torch.enable_grad():
        assert rotation(model)[0] is not None
    assert not called
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize("kind", OTHER)
def test_models_without_plain_rotary_positions(kind: str) -> None:
    make, reason = OTHER[kind]
    model = make()
    enable(model)
    rotate, why_not = rotation(model)
    assert rotate is None
    assert reason in why_not
    slots = Policy(positions="slots")
    with pytest.raises(UnsupportedModelError) as caught:
        PolicyCache(model, slots)
    for part in ("positions='slots' needs plain rotary positions", type(model).__name__, reason, "Hint: positions="):
        assert part in str(caught.value)


@pytest.mark.parametrize("score", [ExpectedAttention(), Pooled(ExpectedAttention())])
def test_a_scorer_that_needs_them_is_named_before_any_token(score: Any) -> None:
    model = QWEN_VL.new()
    enable(model)
    pipeline = Pipeline(schedule=kvpolicy.FixedRows(9), score=score)
    for policy in (Policy(prefill=pipeline), Policy(decode=pipeline)):
        with pytest.raises(UnsupportedModelError) as caught:
            PolicyCache(model, policy)
        assert str(caught.value).startswith(f"{score!r} needs plain rotary positions, and Qwen2_5_VL")
        assert "another stage" in str(caught.value)
    PolicyCache(model, kvpolicy.h2o(keep=0.5))  # others do not mind


SLOTS = Policy(positions="slots")


@pytest.mark.parametrize("padded", [False, True], ids=["even", "padded"])
@pytest.mark.parametrize("family", [LLAMA, QWEN2, LLAVA, MIXED], ids=repr)
def test_slots_of_everything_are_the_positions(family: Family, padded: bool) -> None:
    model, inputs = family.new(), family.batch() if padded else family.even()
    enable(model)
    plain = new_tokens(model, inputs, past_key_values=PolicyCache(model, kvpolicy.full(), inputs=inputs))
    assert torch.equal(new_tokens(model, inputs, past_key_values=PolicyCache(model, SLOTS, inputs=inputs)), plain)


@pytest.mark.parametrize("chunk", [7, 16])
def test_slots_of_a_prompt_in_chunks(chunk: int) -> None:
    model, inputs = new_llama(), LLAMA.batch()
    enable(model)
    plain = new_tokens(model, inputs, past_key_values=PolicyCache(model, kvpolicy.full(), inputs=inputs))
    cache = PolicyCache(model, SLOTS, inputs=inputs)
    assert torch.equal(new_tokens(model, inputs, past_key_values=cache, prefill_chunk_size=chunk), plain)


def window(rows: int, sinks: int) -> Policy:
    """StreamingLLM with re-indexed positions."""
    pipeline = Pipeline(schedule=kvpolicy.FixedRows(rows), score=Recency(), select=kvpolicy.TopK(first=sinks))
    return Policy(prefill=pipeline, decode=pipeline, positions="slots")


class Streaming:
    """A Llama by hand that keeps keys from before their rotary embedding, and turns them to their slots to attend."""

    def __init__(self, model: Any, rows: int, sinks: int) -> None:
        self.model, self.rows, self.sinks = model, rows, sinks
        self.tables: list[tuple[Tensor, Tensor]] = []

    def __call__(self, ids: Tensor) -> Tensor:
        """Tokens [1, N] after what is there; the logits of the last, [1, V]."""
        from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

        hidden = self.model.model.embed_tokens(ids)
        for number, layer in enumerate(self.model.model.layers):
            attention, normed = layer.self_attn, layer.input_layernorm(hidden)
            query, key, value = (
                project(normed).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
                for project in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            if number < len(self.tables):
                key, value = (torch.cat(pair, dim=2) for pair in zip(self.tables[number], (key, value), strict=True))
            slots = torch.arange(key.shape[2])[None]
            cos, sin = self.model.model.rotary_emb(hidden, slots)
            asked = slots[:, -ids.shape[1] :]
            turned_query, _ = apply_rotary_pos_emb(query, query, *self.model.model.rotary_emb(hidden, asked))
            _, turned_key = apply_rotary_pos_emb(key, key, cos, sin)
            groups = attention.num_key_value_groups
            logits = turned_query @ turned_key.repeat_interleave(groups, dim=1).transpose(-1, -2) * attention.scaling
            logits = logits.masked_fill(slots[:, None, None] > asked[:, None, :, None], -torch.inf)
            mixed = logits.softmax(-1) @ value.repeat_interleave(groups, dim=1)
            hidden = hidden + attention.o_proj(mixed.transpose(1, 2).flatten(2))
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
            if (rows := key.shape[2]) > self.rows:
                kept = [*range(self.sinks), *range(rows - self.rows + self.sinks, rows)]
                key, value = key[:, :, kept], value[:, :, kept]
            self.tables[number:] = [(key, value), *self.tables[number + 1 :]]
        logits = self.model.lm_head(self.model.model.norm(hidden))[:, -1]
        return logits


@pytest.mark.parametrize(("rows", "sinks"), [(10, 3), (1, 0), (28, 4), (200, 4)])
def test_a_streaming_window_in_slots_is_streaming_llm(rows: int, sinks: int) -> None:
    model = new_llama()
    enable(model)
    row, tokens = text_row(29, 1), words(12, 77)
    by_hand = Streaming(model, rows, sinks)
    due = torch.stack([by_hand(row["input_ids"]), *(by_hand(token) for token in tokens.split(1, dim=1))], dim=1)
    cache = PolicyCache(model, window(rows, sinks), inputs=row)
    torch.testing.assert_close(feed(model, cache, row, tokens), due, atol=2e-4, rtol=2e-4)
    if sinks and rows < 29:  # without sinks, slots are only shifted positions
        other = PolicyCache(model, replace(window(rows, sinks), positions="original"), inputs=row)
        assert not torch.allclose(feed(model, other, row, tokens)[:, 1:], due[:, 1:], atol=1e-2)


def test_rows_of_a_padded_batch_in_slots() -> None:
    model = new_llama()
    enable(model)
    rows, tokens = text_rows(), torch.cat([words(8, 50 + n) for n in range(3)])
    together = PolicyCache(model, window(9, 2))
    logits = feed(model, together, batch(rows), tokens)
    for n, row in enumerate(rows):
        alone = feed(model, PolicyCache(model, window(9, 2)), row, tokens[n : n + 1])
        torch.testing.assert_close(logits[n : n + 1], alone, atol=2e-4, rtol=2e-4)


def test_a_second_turn_in_slots() -> None:
    model = new_llama()
    enable(model)
    row, tokens = text_row(29, 1), words(5, 77)
    by_hand = Streaming(model, 10, 3)
    cache = PolicyCache(model, window(10, 3), inputs=row)
    feed(model, cache, row, tokens)
    for part in (row["input_ids"], *tokens.split(1, dim=1)):
        by_hand(part)
    turn = words(17, 5)
    places = torch.arange(34, 51)[None]
    due = by_hand(turn)
    logits = model(input_ids=turn, position_ids=places, past_key_values=cache).logits[:, -1]
    torch.testing.assert_close(logits, due, atol=2e-4, rtol=2e-4)


def test_keys_are_stored_as_they_came() -> None:
    """Turning is for attention: what is kept is the same as with original positions."""
    model, row = new_llama(), text_row(29, 1)
    enable(model)
    slots, original = (
        PolicyCache(model, policy) for policy in (window(10, 3), replace(window(10, 3), positions="original"))
    )
    for cache in (slots, original):
        feed(model, cache, row, words(0, 1))
    assert_same_tables(slots, original)


def test_a_copied_cache_goes_on_in_slots() -> None:
    model, row = new_llama(), text_row(29, 1)
    enable(model)
    cache = PolicyCache(model, window(10, 3))
    feed(model, cache, row, words(3, 2))
    copied = copy.deepcopy(cache)
    assert copied.session._rotate is cache.session._rotate
    one, other = (continue_with(model, c, row["attention_mask"], words(3, 4)) for c in (cache, copied))
    assert torch.equal(one, other)


def test_gradients_flow_through_a_first_pass_in_slots() -> None:
    model, inputs = new_llama(), LLAMA.batch()
    enable(model)
    with torch.enable_grad():
        model(**inputs, past_key_values=PolicyCache(model, SLOTS), labels=inputs["input_ids"]).loss.backward()
    plain = new_llama()
    with torch.enable_grad():
        plain(**inputs, labels=inputs["input_ids"]).loss.backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-3)


class Modules:
    """Notes the attention module of every step."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def score(self, view: Any, step: Any, /) -> Any:
        self.seen.append(step.module)
        return Recency().score(view, step)


def test_stages_see_the_attention_module() -> None:
    model, score = new_llama(), Modules()
    enable(model)
    cache = PolicyCache(model, Policy(prefill=Pipeline(schedule=kvpolicy.FixedRows(5), score=score)))
    model(**text_row(9, 1), past_key_values=cache)
    assert score.seen == [layer.self_attn for layer in model.model.layers]


@pytest.mark.parametrize("family", [LLAMA, QWEN2, LLAVA, MIXED], ids=repr)
def test_expected_attention_of_a_padded_batch_is_that_of_its_rows(family: Family) -> None:
    pipeline = Pipeline(schedule=kvpolicy.KeepRatio(0.4), score=ExpectedAttention(window=16))
    model, rows = family.new(), family.rows()
    enable(model)

    def kept(inputs: Inputs, **options: Any) -> list[Any]:
        cache = PolicyCache(model, Policy(prefill=pipeline), inputs=inputs)
        new_tokens(model, inputs, count=1, past_key_values=cache, **options)
        return tables(cache)

    together = kept(batch(rows))
    for n, row in enumerate(rows):
        padding = batch(rows)["input_ids"].shape[1] - row["input_ids"].shape[1]
        for whole, alone in zip(together, kept(row), strict=True):
            for h in range(whole.shape[1]):
                mine = whole.positions[n, h][whole.valid[n, h]] - padding
                assert mine.tolist() == alone.positions[0, h][alone.valid[0, h]].tolist()


def test_expected_attention_looks_ahead_from_a_prompt_in_chunks() -> None:
    pipeline = Pipeline(schedule=kvpolicy.FixedRows(11), score=ExpectedAttention(window=16))
    model, inputs = new_llama(), text_row(41, 2)
    enable(model)
    whole, parts = (PolicyCache(model, Policy(prefill=pipeline), inputs=inputs) for _ in range(2))
    new_tokens(model, inputs, count=1, past_key_values=whole)
    new_tokens(model, inputs, count=1, past_key_values=parts, prefill_chunk_size=9)
    assert_same_tables(whole, parts)
