"""Presses, written here after kvpress's convention, as scorers of a policy: what they see, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from models import (
    LLAMA,
    LLAVA,
    QWEN2,
    QWEN_VL,
    Family,
    Inputs,
    assert_same_tables,
    batch,
    feed,
    new_llama,
    new_tokens,
    tables,
)
from torch import Tensor
from transformers import PreTrainedModel

import kvpolicy
from kvpolicy import (
    AdaptiveHeads,
    AttentionMass,
    CacheView,
    Drop,
    FixedRows,
    Fold,
    ImportanceScorer,
    KeepRatio,
    KeyNorm,
    Mean,
    Merger,
    MostSimilar,
    NearestPosition,
    Pass,
    Pipeline,
    PlanError,
    Policy,
    PolicyError,
    Session,
    Step,
    TopK,
)
from kvpolicy_hf import PolicyCache, enable, from_press

ModelOf = Callable[[Family], PreTrainedModel]
FAMILIES = [LLAMA, QWEN2, LLAVA, QWEN_VL]


# Presses -------------------------------------------------------------------------------------------------------------


def key_norm(keys: Tensor) -> Tensor:
    largest = keys.abs().amax(-1, keepdim=True)
    return -(largest * (keys / largest).square().sum(-1, keepdim=True).sqrt())[..., 0]


class Press:
    """The base of a family of presses: plain top-k of a score to be filled in."""

    compression_ratio = 0.5

    def score(self, module, hidden_states, keys, values, attentions, kwargs):
        raise NotImplementedError

    def compress(self, module, hidden_states, keys, values, attentions, kwargs):
        raise AssertionError("only score() runs")

    def forward_hook(self, module, input, kwargs, output):
        raise AssertionError("only score() runs")


@dataclass
class KeyNormPress(Press):
    """The shorter its key, the better a row: to the last bit as `KeyNorm` has it.

    Turning a key does not change its length, so that equal words score the same up to rounding.
    """

    compression_ratio: float = 0.0

    def score(self, module, hidden_states, keys, values, attentions, kwargs):
        return key_norm(keys)


class MeanKeyPress(Press):
    """Away from the mean over all rows: one row too many, and every score is another."""

    def score(self, module, hidden_states, keys, values, attentions, kwargs):
        return (keys - keys.mean(dim=2, keepdim=True)).norm(dim=-1)


class ObservedPress(Press):
    """What a row has received in this pass."""

    def score(self, module, hidden_states, keys, values, attentions, kwargs):
        return attentions.sum(2).view(*keys.shape[:2], -1, keys.shape[2]).mean(2)


class WindowPress(Press):
    """Attention of the last queries; recomputed from hidden states where there is none."""

    def __init__(self, window: int = 4) -> None:
        self.window = window

    def score(self, module, hidden_states, keys, values, attentions, kwargs):
        assert hidden_states.shape[1] > self.window
        if attentions is None:
            cos, _ = kwargs["position_embeddings"]
            attentions = module.q_proj(hidden_states[:, -self.window :]) * cos
        groups = module.config.num_attention_heads // keys.shape[1]
        last = attentions[..., -self.window :, : -self.window].mean(-2)
        scores = last.view(*keys.shape[:2], groups, -1).mean(2)
        return torch.nn.functional.pad(scores, (0, self.window), value=scores.max().item() + 1)


class RankPress(Press):
    """Early rows, by their place alone: wrong as soon as rows come in another order than that of arrival."""

    def score(self, module, hidden_states, keys, values, attentions, kwargs):
        return torch.arange(keys.shape[2], 0, -1, dtype=keys.dtype, device=keys.device).expand(keys.shape[:3])


class QueryPress(Press):
    """Predicts queries from hidden states."""

    def score(self, module, hidden_states, keys, values, attentions, kwargs):
        queries = module.q_proj(hidden_states).mean(1)
        return (keys * queries[:, None, None, : keys.shape[-1]]).sum(-1)


class RotatedPress(Press):
    """Wants the rotary embedding."""

    def score(self, module, hidden_states, keys, values, attentions, kwargs):
        cos, _ = kwargs["position_embeddings"]
        return (keys * cos).sum(-1)


class Wrapper:
    """A press around a press, without scores of its own."""

    def __init__(self, press: Press) -> None:
        self.press = press

    def compress(self, module, hidden_states, keys, values, attentions, kwargs):
        return keys, values


class Doing(Press):
    """Does something, then scores by key norm."""

    def __init__(self, do: Callable[..., Any]) -> None:
        self.do = do

    def score(self, module, hidden_states, keys, values, attentions, kwargs):
        made = self.do(module, hidden_states, keys, values, attentions, kwargs)
        return key_norm(keys) if made is None else made


@dataclass(frozen=True)
class MeanKey:
    """`MeanKeyPress` as a scorer that knows about validity."""

    def score(self, view: CacheView, step: Step) -> Tensor:
        valid = view.valid[..., None]
        mean = (view.keys * valid).sum(2, keepdim=True) / valid.sum(2, keepdim=True)
        return (view.keys - mean).norm(dim=-1)


# Policies ------------------------------------------------------------------------------------------------------------


def both(score: ImportanceScorer, **stages: Any) -> Policy:
    pipeline = Pipeline(**{"schedule": KeepRatio(0.4), "score": score, **stages})
    return Policy(prefill=pipeline, decode=pipeline)


def once(score: ImportanceScorer) -> Policy:
    return Policy(prefill=Pipeline(schedule=KeepRatio(0.4), score=score))


def run(model: PreTrainedModel, policy: Policy, inputs: Inputs, **options: Any) -> tuple[Tensor, PolicyCache]:
    cache = PolicyCache(model, policy, inputs=inputs)
    return new_tokens(model, inputs, past_key_values=cache, **options), cache


def assert_same(model: PreTrainedModel, ours: Policy, theirs: Policy, inputs: Inputs) -> PolicyCache:
    (mine, cache), (others, other) = run(model, ours, inputs), run(model, theirs, inputs)
    assert torch.equal(mine, others)
    assert_same_tables(cache, other)
    return cache


def assert_row_by_row(model: PreTrainedModel, policy: Policy, family: Family) -> None:
    tokens, _ = run(model, policy, family.batch())
    for number, row in enumerate(family.rows()):
        assert torch.equal(run(model, policy, row)[0][0], tokens[number])


# What comes out ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_key_norm_is_kvpolicys_own(family: Family, model_of: ModelOf) -> None:
    assert_same(model_of(family), both(from_press(KeyNormPress())), both(KeyNorm()), family.batch())


@pytest.mark.parametrize("padded", [False, True], ids=["even", "padded"])
@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_observed_attention_of_a_prompt_is_its_mass(family: Family, padded: bool, model_of: ModelOf) -> None:
    inputs = family.batch() if padded else family.even()
    model, plans = model_of(family), {}

    def listen(layer: int, view: CacheView, plan: Any, step: Step) -> None:
        scores = from_press(ObservedPress()).score(view, step)
        torch.testing.assert_close(scores[view.valid], view.columns["mass"].data[view.valid], atol=1e-5, rtol=1e-5)
        assert bool((scores[~view.valid] == -torch.inf).all())
        plans[layer] = plan

    model(**inputs, past_key_values=PolicyCache(model, once(AttentionMass()), inputs=inputs, listen=listen))
    assert sorted(plans) == [0, 1, 2]
    assert torch.equal(
        run(model, once(from_press(ObservedPress())), inputs)[0], run(model, once(AttentionMass()), inputs)[0]
    )


def test_attentions_are_the_models_own() -> None:
    inputs, seen = LLAMA.rows()[0], []
    eager, model = new_llama(), new_llama()
    eager.set_attn_implementation("eager")
    enable(model)
    press = Doing(lambda module, hidden, keys, values, attentions, kwargs: seen.append(attentions.clone()))
    score = from_press(press)
    seen.clear()  # of the trial
    model(**inputs, past_key_values=PolicyCache(model, once(score), inputs=inputs))
    for ours, theirs in zip(seen, eager(**inputs, output_attentions=True).attentions, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_statistic_over_rows_never_meets_padding_or_holes(model_of: ModelOf) -> None:
    model = model_of(LLAMA)
    cache = assert_same(model, both(from_press(MeanKeyPress())), both(MeanKey()), LLAMA.batch())
    assert any(not bool(view.valid.all()) for view in tables(cache))


def test_a_statistic_over_rows_where_heads_hold_different_numbers(model_of: ModelOf) -> None:
    stages = {"schedule": FixedRows(12), "allocate": AdaptiveHeads(floor=0.1)}
    ours, theirs = both(from_press(MeanKeyPress()), **stages), both(MeanKey(), **stages)
    cache = assert_same(model_of(LLAMA), ours, theirs, LLAMA.batch())
    held = torch.stack([view.valid.sum(-1) for view in tables(cache)])
    assert bool((held[..., 0] != held[..., 1]).any())


@pytest.mark.parametrize(
    "press", [KeyNormPress(), MeanKeyPress(), ObservedPress(), RankPress()], ids=lambda press: type(press).__name__
)
@pytest.mark.parametrize("family", [LLAMA, QWEN_VL], ids=repr)
def test_a_padded_batch_is_its_rows_alone(press: Press, family: Family, model_of: ModelOf) -> None:
    assert_row_by_row(model_of(family), both(from_press(press)), family)


@pytest.mark.parametrize("press", [MeanKeyPress(), ObservedPress()], ids=lambda press: type(press).__name__)
def test_a_padded_batch_is_its_rows_alone_with_ragged_heads(press: Press, model_of: ModelOf) -> None:
    policy = both(from_press(press), schedule=FixedRows(12), allocate=AdaptiveHeads(floor=0.1))
    assert_row_by_row(model_of(LLAMA), policy, LLAMA)


def test_a_window_press_works_on_prompts(model_of: ModelOf) -> None:
    model, press = model_of(LLAMA), WindowPress()
    assert_row_by_row(model, once(from_press(press)), LLAMA)
    kept = tables(run(model, once(from_press(press)), LLAMA.rows()[0], count=1)[1])
    length = LLAMA.rows()[0]["input_ids"].shape[1]
    for view in kept:
        assert set(range(length - press.window, length)) <= set(view.positions[0, 0].tolist())


def test_rows_come_in_order_of_arrival_with_holes_between(model_of: ModelOf) -> None:
    """Of a random choice of rows the oldest always stay: so a table that was thinned at random is read in order."""
    policy = Policy(
        prefill=Pipeline(schedule=KeepRatio(0.5), score=kvpolicy.Noise()),
        decode=Pipeline(schedule=FixedRows(6), score=from_press(RankPress()), select=TopK(last=1)),
    )
    checked = []

    def listen(layer: int, view: CacheView, plan: Any, step: Step) -> None:
        for row, head in np.ndindex(*view.shape[:2]):
            if step.phase is kvpolicy.Phase.DECODE:
                held = view.positions[row, head][view.valid[row, head]].sort().values
                stays = view.positions[row, head][plan.keep[row, head]].sort().values
                assert stays.tolist() == [*held[:5].tolist(), int(held[-1])]
                checked.append(layer)

    inputs = LLAMA.batch()
    cache = PolicyCache(model_of(LLAMA), policy, inputs=inputs, listen=listen)
    new_tokens(model_of(LLAMA), inputs, past_key_values=cache)
    assert set(checked) == {0, 1, 2}


# Composed ------------------------------------------------------------------------------------------------------------

RAGGED = {"schedule": FixedRows(12), "allocate": AdaptiveHeads()}
MERGERS = [Drop(), Fold(NearestPosition(), Mean()), Fold(MostSimilar(), Mean(), keys=False)]


@pytest.mark.parametrize("merge", MERGERS, ids=repr)
@pytest.mark.parametrize(
    "stages", [{}, {"schedule": FixedRows(12), "allocate": AdaptiveHeads()}], ids=["even", "ragged"]
)
def test_with_mergers_and_allocators(stages: dict[str, Any], merge: Merger, model_of: ModelOf) -> None:
    stages = {**stages, "merge": merge, "select": TopK(first=1, recent=0.3)}
    ours, theirs = both(from_press(KeyNormPress()), **stages), both(KeyNorm(), **stages)
    cache = assert_same(model_of(LLAMA), ours, theirs, LLAMA.batch())
    assert (cache.report().merged > 0) is (merge != Drop())


def test_with_an_allocator_over_the_whole_model(model_of: ModelOf) -> None:
    stages = {"schedule": FixedRows(12), "allocate": kvpolicy.ByVariance()}
    ours, theirs = both(from_press(MeanKeyPress()), **stages), both(MeanKey(), **stages)
    assert_same(model_of(LLAMA), ours, theirs, LLAMA.batch())


def test_attentions_with_merged_rows_weigh_what_the_model_weighed(model_of: ModelOf) -> None:
    """Under ``count_bias`` a merged row counts as many tokens; one query at a time, the mass says the same."""
    model, compared = model_of(LLAMA), []
    score = from_press(ObservedPress())
    merging = Pipeline(schedule=KeepRatio(0.4), score=AttentionMass(), merge=Fold(NearestPosition(), Mean()))

    def listen(layer: int, view: CacheView, plan: Any, step: Step) -> None:
        if step.phase is kvpolicy.Phase.DECODE:
            mine, due = score.score(view, step), step.ops.attention_mass(view, step)
            torch.testing.assert_close(mine[view.valid], due[view.valid], atol=1e-6, rtol=1e-5)
            compared.append(float(view.columns["count"].data.max()))

    inputs, policy = LLAMA.batch(), Policy(prefill=merging, decode=merging, count_bias=True)
    new_tokens(model, inputs, past_key_values=PolicyCache(model, policy, inputs=inputs, listen=listen))
    assert max(compared) > 1


def test_attentions_under_re_indexed_positions(model_of: ModelOf) -> None:
    """Keys and queries are those that the model attended with."""
    compared = []

    def listen(layer: int, view: CacheView, plan: Any, step: Step) -> None:
        mine, due = score.score(view, step), step.ops.attention_mass(view, step)
        torch.testing.assert_close(mine[view.valid], due[view.valid], atol=1e-5, rtol=1e-5)
        compared.append(step.phase)

    score, inputs = from_press(ObservedPress()), LLAMA.batch()
    policy = kvpolicy.streaming_llm(rows=12, positions="slots")
    cache = PolicyCache(model_of(LLAMA), policy, inputs=inputs, listen=listen)
    new_tokens(model_of(LLAMA), inputs, past_key_values=cache, count=4)
    assert set(compared) == set(kvpolicy.Phase)


def test_beams_and_copies(model_of: ModelOf) -> None:
    model, inputs = model_of(LLAMA), LLAMA.rows()[0]
    ours, theirs = both(from_press(MeanKeyPress())), both(MeanKey())
    assert torch.equal(run(model, ours, inputs, num_beams=3)[0], run(model, theirs, inputs, num_beams=3)[0])
    cache = PolicyCache(model, ours, inputs=inputs)
    feed(model, cache, inputs, torch.tensor([[5, 6]]))
    copied = deepcopy(cache)
    assert copied.session.policy.decode == ours.decode
    assert_same_tables(cache, copied)


# What a press gets ---------------------------------------------------------------------------------------------------


def given(model: PreTrainedModel, policy: Callable[[ImportanceScorer], Policy], inputs: Inputs) -> list:
    """The arguments of every call while a few tokens are made."""
    calls: list[tuple[Any, ...]] = []
    score = from_press(Doing(lambda *args: calls.append(args)))
    calls.clear()  # of the trial
    run(model, policy(score), inputs, count=3)
    return calls


def test_the_arguments_of_a_prompt_and_of_a_token(model_of: ModelOf) -> None:
    model, rows = model_of(LLAMA), LLAMA.rows()
    calls = given(model, both, batch(rows))
    layers = [layer.self_attn for layer in model.model.layers]
    prompt, token = calls[: 3 * len(layers)], calls[3 * len(layers) : 6 * len(layers)]
    for number, (module, hidden, keys, values, attentions, kwargs) in enumerate(prompt):
        length = rows[number % 3]["input_ids"].shape[1]  # the padding is gone
        assert module is layers[number // 3]
        assert hidden.shape == (1, length, 48)
        assert keys.shape == values.shape == (1, 2, length, 12)
        assert attentions.shape == (1, 4, length, length)
        assert dict(kwargs) == {}
        assert kwargs.get("cache_position") is None
        assert "cache_position" not in kwargs
    for number, (_, hidden, keys, _, attentions, _) in enumerate(token):
        kept = round(0.4 * rows[number % 3]["input_ids"].shape[1])
        assert hidden.shape == (1, 1, 48)
        assert keys.shape == (1, 2, kept + 1, 12)
        assert attentions.shape == (1, 4, 1, kept + 1)
        torch.testing.assert_close(attentions.sum(-1), torch.ones(1, 4, 1))


def test_a_head_with_another_number_of_rows_is_represented_by_one_with_this(model_of: ModelOf) -> None:
    """A press sees whole heads only, padding in none of them, and a head's keys with its queries."""
    views: list[CacheView] = []
    represented = []

    class Watched:
        def score(self, view: CacheView, step: Step) -> Tensor:
            views[:] = [view]
            return score.score(view, step)

    def look(module: Any, hidden: Any, keys: Tensor, values: Tensor, attentions: Tensor, kwargs: Any) -> None:
        if not views:
            return
        (view,) = views
        order = torch.where(view.valid, view.positions, 9999).argsort(-1)
        whole = [
            view.keys[row, head, order[row, head, : int(view.valid[row, head].sum())]]
            for row, head in np.ndindex(*view.shape[:2])
        ]
        assert all(any(torch.equal(shown, rows) for rows in whole) for shown in keys[0])
        if torch.equal(keys[:, 0], keys[:, 1]):
            assert torch.equal(values[:, 0], values[:, 1])
            assert torch.equal(attentions[:, :2], attentions[:, 2:])
            represented.append(keys)

    score = from_press(Doing(look))
    run(model_of(LLAMA), both(Watched(), **RAGGED), LLAMA.batch())
    assert represented


def test_attentions_are_made_only_if_touched(model_of: ModelOf, monkeypatch: pytest.MonkeyPatch) -> None:
    import kvpolicy_hf.press as module

    made: list[int] = []
    attention = module._attention
    monkeypatch.setattr(module, "_attention", lambda *args: made.append(1) or attention(*args))
    *_, attentions, _ = given(model_of(LLAMA), both, LLAMA.rows()[0])[0]
    assert isinstance(attentions, Tensor)
    assert attentions.shape == attentions.size() == (1, 4, 29, 29)
    assert (attentions.ndim, attentions.dim(), attentions.dtype) == (4, 4, torch.float32)
    assert attentions.device == torch.device("cpu")
    assert not made
    torch.testing.assert_close(attentions.sum(), torch.tensor(4 * 29.0))
    assert made == [1]
    torch.testing.assert_close(torch.cat([attentions, 1 * attentions])[1:], torch.tensor(attentions.tolist()))
    assert made == [1]


def test_attentions_may_be_written_to(model_of: ModelOf) -> None:
    *_, attentions, _ = given(model_of(LLAMA), once, LLAMA.rows()[0])[0]
    attentions[..., 0] = 0.0
    attentions *= 2
    assert float(attentions[..., 0].abs().max()) == 0.0


def test_attentions_of_half_precision_are_of_the_queries_kind() -> None:
    model = new_llama(torch.bfloat16)
    enable(model)
    calls = given(model, once, LLAMA.rows()[0])
    for _, hidden, keys, _, attentions, _ in calls:
        assert hidden.dtype == keys.dtype == attentions.dtype == (attentions + 0).dtype == torch.bfloat16
    assert run(model, once(from_press(ObservedPress())), LLAMA.rows()[0])[0].shape == (1, 12)


def test_a_press_that_writes_into_what_it_gets_does_no_harm(model_of: ModelOf) -> None:
    def spoil(module: Any, hidden: Any, keys: Tensor, values: Tensor, attentions: Tensor, kwargs: Any) -> Tensor:
        scores = key_norm(keys)
        keys.zero_()
        values.fill_(torch.nan)
        return scores

    assert_same(model_of(LLAMA), both(from_press(Doing(spoil))), both(KeyNorm()), LLAMA.batch())


def test_attentions_are_the_models_own_after_the_keys_were_written_to(model_of: ModelOf) -> None:
    def spoil(module: Any, hidden: Any, keys: Tensor, values: Tensor, attentions: Tensor, kwargs: Any) -> Tensor:
        keys.mul_(3)
        return ObservedPress().score(module, hidden, keys, values, attentions, kwargs)

    inputs = LLAMA.batch()
    assert_same(model_of(LLAMA), both(from_press(Doing(spoil))), both(from_press(ObservedPress())), inputs)


# Refused -------------------------------------------------------------------------------------------------------------


def test_a_press_that_needs_hidden_states_is_refused_when_built() -> None:
    with pytest.raises(PolicyError, match=r"from_press\(QueryPress\(...\)\): score\(\) uses hidden_states \(linear\)"):
        from_press(QueryPress())


def test_a_press_that_needs_keyword_arguments_is_refused_when_built() -> None:
    with pytest.raises(PolicyError, match=r"from_press\(RotatedPress\(...\)\): .* kwargs\['position_embeddings'\]"):
        from_press(RotatedPress())


def refused(use: Callable[[Any], Any]) -> str:
    with pytest.raises(PolicyError, match="hidden_states") as error:
        from_press(Doing(lambda module, hidden, *rest: use(hidden)))
    return str(error.value)


USES: dict[str, Callable[[Any], Any]] = {
    "__getitem__": lambda hidden: hidden[:, 1:],
    "unbind": list,
    "norm": lambda hidden: hidden.norm(dim=-1),
    "T": lambda hidden: hidden.mT.T,
    "mean": torch.mean,
    "cat": lambda hidden: torch.cat([torch.zeros(1, 1, 64), hidden], dim=1),
    "add": lambda hidden: 1 + hidden,
    "matmul": lambda hidden: torch.zeros(1, 1, 128) @ hidden,
    "__array__": np.asarray,
    "__float__": float,
    "data": lambda hidden: hidden.data,
    "einsum": lambda hidden: torch.einsum("bqd->b", hidden),
    "linear": lambda hidden: torch.nn.functional.linear(input=hidden, weight=torch.zeros(2, 64)),
    "to": lambda hidden: torch.zeros(1).to(hidden),
    "__deepcopy__": deepcopy,
}


@pytest.mark.parametrize("name", USES)
def test_any_use_of_hidden_states_is_named(name: str) -> None:
    message = refused(USES[name])
    assert "from_press(Doing(...)): score() uses hidden_states (" in message
    assert f"({name})" in message or name == "T"
    assert "Hint: " in message


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
def test_hidden_states_cannot_be_copied_out() -> None:
    refused(torch.tensor)


def test_what_is_known_of_hidden_states() -> None:
    def look(module: Any, hidden: Tensor, keys: Tensor, *rest: Any) -> Tensor:
        batch, length, width = hidden.shape
        assert (batch, length, width) == tuple(hidden.size()) == (1, keys.shape[2], module.config.hidden_size)
        assert (hidden.size(1), hidden.ndim, hidden.dim()) == (length, 3, 3)
        assert hidden is not None
        assert isinstance(hidden, Tensor)
        assert repr(hidden) == f"HiddenStates({[1, length, width]}, torch.float32)"
        looked.append(1)
        return -keys.to(hidden.device, dtype=hidden.dtype).norm(dim=-1)

    looked: list[int] = []
    from_press(Doing(look))
    assert looked


def test_what_the_trial_did_not_show_is_refused_at_run_time(model_of: ModelOf) -> None:
    class Late(Press):
        def score(self, module, hidden_states, keys, values, attentions, kwargs):
            return -keys.norm(dim=-1) if keys.shape[-1] == 16 else module.q_proj(hidden_states)

    with pytest.raises(
        PolicyError, match=r"from_press\(Late\(...\)\): score\(\) uses hidden_states \(linear\)"
    ) as error:
        run(model_of(LLAMA), both(from_press(Late())), LLAMA.rows()[0])
    assert error.value.__notes__ == ["from_press(Late(...)) was asked about 29 rows and 29 queries of layer 0."]


def test_an_error_of_the_press_is_its_own(model_of: ModelOf) -> None:
    score = from_press(WindowPress())  # more queries than its window: not while decoding
    with pytest.raises(AssertionError) as error:
        run(model_of(LLAMA), both(score), LLAMA.rows()[0])
    (note,) = error.value.__notes__
    assert note == "from_press(WindowPress(...)) was asked about 13 rows and 1 queries of layer 0."


def test_the_trial_forgives_what_only_a_model_can_give() -> None:
    def needs(module: Any, *rest: Any) -> None:
        module.rotary_emb  # noqa: B018

    before = torch.random.get_rng_state()
    from_press(Doing(needs))
    from_press(Doing(lambda *args: torch.rand(3).sum().log().item() / 0))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("press", "match"),
    [
        (KeyNormPress, r"from_press\(KeyNormPress\): takes a press, not its class"),
        (Wrapper(KeyNormPress()), r"Wrapper has no method score\(\). Hint: from_press\(press.press\) .* KeyNormPress"),
        (SimpleNamespace(score=3), r"SimpleNamespace has no method score\(\)"),
        (None, r"NoneType has no method score\(\)"),
        (KeyNorm(), r"score\(\) does not take \(module, hidden_states, .*as it is"),
    ],
    ids=["class", "wrapper", "not-callable", "none", "scorer"],
)
def test_what_is_no_press_is_refused(press: Any, match: str) -> None:
    with pytest.raises(PolicyError, match=match):
        from_press(press)


class Pyramid(KeyNormPress):
    """Scores of another press, and budgets of its own."""

    def compress(self, module, hidden_states, keys, values, attentions, kwargs):
        return keys, values


class MyPyramid(Pyramid):
    """Fills in the score, but not over the plain top-k."""

    def score(self, module, hidden_states, keys, values, attentions, kwargs):
        return values.norm(dim=-1)


class Hooked(KeyNormPress):
    """Does its work elsewhere."""

    def forward_hook(self, module, input, kwargs, output):
        return output


class AllInOne:
    """Both in one class: nobody can say what its compress() adds."""

    def score(self, module, hidden_states, keys, values, attentions, kwargs):
        return -keys.norm(dim=-1)

    def compress(self, module, hidden_states, keys, values, attentions, kwargs):
        return keys, values


@pytest.mark.parametrize(
    ("press", "method"),
    [(Pyramid(), "compress"), (MyPyramid(), "compress"), (Hooked(), "forward_hook"), (AllInOne(), "compress")],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_press_that_does_more_than_score_is_refused(press: Any, method: str, model_of: ModelOf) -> None:
    with pytest.raises(PolicyError, match=rf"{type(press).__name__} comes with a {method}\(\) of its own"):
        from_press(press)
    run(model_of(LLAMA), once(from_press(SimpleNamespace(score=press.score))), LLAMA.rows()[0], count=1)


def test_outside_of_a_cache_there_is_no_module() -> None:
    session = Session(both(from_press(KeyNormPress())), kvpolicy.backend_by_name("torch"), 1)
    keys = torch.randn(1, 2, 9, 4)
    now = Pass(0, torch.arange(9)[None], torch.ones(1, 9, dtype=torch.bool), np.array([9]), {})
    session.append(0, keys, keys, now)
    with pytest.raises(
        PolicyError, match=r"from_press\(KeyNormPress\(...\)\) hands the attention module .*PolicyCache"
    ):
        session.advance(0, torch.randn(1, 4, 9, 4), 0.5, now)


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (lambda keys: keys.norm(dim=-1)[:, :1], r"returned torch.float32 \[1, 1, 29\] at layer 0; .* \[1, 2, 29\]"),
        (lambda keys: keys.norm(dim=-1).argsort(-1), r"returned torch.int64 \[1, 2, 29\]"),
        (lambda keys: keys.norm(dim=-1).numpy(), r"returned ndarray"),
        (lambda keys: keys.norm(dim=-1) * torch.nan, r"NaN"),
    ],
    ids=["shape", "integers", "numpy", "nan"],
)
def test_impossible_scores_are_refused(answer: Callable[[Tensor], Any], match: str, model_of: ModelOf) -> None:
    press = Doing(lambda module, hidden, keys, *rest: answer(keys))
    with pytest.raises(PlanError, match=match):
        run(model_of(LLAMA), once(from_press(press)), LLAMA.rows()[0])


# A value -------------------------------------------------------------------------------------------------------------


def test_equal_by_the_press_itself() -> None:
    press, other = KeyNormPress(), KeyNormPress()
    assert press == other
    assert from_press(press) == from_press(press)
    assert hash(from_press(press)) == hash(from_press(press))
    assert from_press(press) != from_press(other)
    assert from_press(press) != press
    assert repr(from_press(press)) == "from_press(KeyNormPress(...))"
    assert "score=from_press(KeyNormPress(...))" in repr(both(from_press(press)))
    assert isinstance(from_press(press), ImportanceScorer)


def test_the_press_is_held_by_reference_and_its_ratio_ignored(model_of: ModelOf) -> None:
    inputs, press = LLAMA.rows()[0], KeyNormPress(compression_ratio=0.9)
    score = from_press(press)
    press.score = lambda *args: -key_norm(args[2])  # type: ignore[method-assign]  # the one that runs
    changed = run(model_of(LLAMA), both(score), inputs)[0]
    assert not torch.equal(changed, run(model_of(LLAMA), both(KeyNorm()), inputs)[0])
    del press.score
    assert_same(model_of(LLAMA), both(score), both(KeyNorm()), inputs)
