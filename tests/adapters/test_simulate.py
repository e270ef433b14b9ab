"""Recording a request and replaying policies over it: fidelity, the numbers, the bound, the files, the command."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from models import (
    LLAMA,
    LLAVA,
    MIXED,
    QWEN_VL,
    TEXT,
    Family,
    assert_same_tables,
    llava_row,
    new_llama,
    new_tokens,
    text_row,
    words,
)
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import CohereConfig, CohereForCausalLM, PreTrainedModel, StableLmConfig, StableLmForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from typer.testing import CliRunner

import kvpolicy
from kvpolicy import CacheError, CacheView, Fold, KeepRatio, Mean, NearestPosition, PolicyError, Scores, Step
from kvpolicy.cli import app
from kvpolicy_hf import IMAGE, PolicyCache, enable
from kvpolicy_hf.evaluate import arms_of
from kvpolicy_hf.rotary import rotation as rotation_of
from kvpolicy_hf.simulate import Record, RecordError, Replay, clairvoyant, load_record, record, replay, save_record
from kvpolicy_hf.simulate import compare as compare_module
from kvpolicy_hf.simulate.compare import BOUNDS, choose, compare
from kvpolicy_hf.simulate.plot import draw_plot
from kvpolicy_hf.simulate.replay import feed, open_session
from kvpolicy_hf.simulate.rotary import frequencies, rotation
from kvpolicy_hf.simulate.tables import shown_layers

ROOT = Path(__file__).parents[2]

ModelOf = Callable[[Family], PreTrainedModel]

NO_IMAGES = {"suppress_tokens": list(range(4))}  # an image token would ask for another picture
RECIPES = ["full", "elastic_cache", "h2o", "streaming_llm"]


def make_record(seed: int = 0, *, prompt: int = 20, steps: int = 6, layers: int = 2, sharp: float = 2.0) -> Record:
    """Random numbers of a record's shapes: two key/value heads of two query heads each."""
    rng = torch.Generator().manual_seed(seed)
    count = prompt + steps

    def draw(heads: int, dim: int) -> list[torch.Tensor]:
        return [torch.randn(1, heads, count, dim, generator=rng, dtype=torch.float64) for _ in range(layers)]

    return Record(
        model="random",
        prompt=prompt,
        scales=[sharp / (layer + 2) for layer in range(layers)],
        tokens=torch.arange(count)[None],
        segments=torch.zeros(1, count, dtype=torch.int64),
        queries=draw(4, 6),
        keys=draw(2, 6),
        values=draw(2, 4),
        inv_freq=torch.tensor([1.0, 0.3, 0.01]),
    )


@pytest.fixture(scope="module")
def random_record() -> Record:
    return make_record()


def once(name: str, keep: float) -> kvpolicy.Policy:
    """A recipe that compresses the prompt only."""
    return replace(kvpolicy.from_text(name, keep=keep), decode=None)


class TestRecord:
    @pytest.mark.parametrize("family", [LLAMA, LLAVA, QWEN_VL, MIXED], ids=repr)
    def test_attention_computed_from_it_is_the_models_own(self, family: Family, model_of: ModelOf) -> None:
        inputs = family.rows()[0]
        made = record(model_of(family), inputs, new_tokens=3, **NO_IMAGES)
        plain = family.new()
        plain.set_attn_implementation("eager")
        seen = plain(**inputs, output_attentions=True)
        sliding = getattr(plain.config, "layer_types", None) or []
        policed = [n for n in range(len(seen.attentions)) if "sliding_attention" not in sliding[n : n + 1]]
        assert made.layers == len(policed)
        for layer, number in enumerate(policed):
            keys = made.keys[layer][:, :, : made.prompt].repeat_interleave(2, dim=1)
            logits = made.scales[layer] * made.queries[layer][:, :, : made.prompt] @ keys.transpose(-1, -2)
            hidden = torch.ones(made.prompt, made.prompt, dtype=torch.bool).triu(1)
            ours = logits.masked_fill(hidden, -torch.inf).softmax(-1)
            torch.testing.assert_close(ours, seen.attentions[number], atol=1e-5, rtol=1e-4)
            cached = seen.past_key_values.layers[number]
            torch.testing.assert_close(made.values[layer][:, :, : made.prompt], cached.values, atol=1e-5, rtol=1e-4)

    def test_decode_steps_hold_what_the_plain_cache_holds(self, model_of: ModelOf) -> None:
        inputs = LLAMA.rows()[0]
        made = record(model_of(LLAMA), inputs, new_tokens=5, **NO_IMAGES)
        cache = LLAMA.new()(input_ids=made.tokens, use_cache=True).past_key_values
        for layer in range(made.layers):
            torch.testing.assert_close(made.keys[layer], cache.layers[layer].keys, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(made.values[layer], cache.layers[layer].values, atol=1e-5, rtol=1e-4)

    def test_tokens_are_those_of_the_plain_model(self, model_of: ModelOf) -> None:
        inputs = LLAVA.rows()[0]
        made = record(model_of(LLAVA), inputs, new_tokens=7, **NO_IMAGES)
        plain = new_tokens(LLAVA.new(), inputs, 8)
        assert (made.prompt, made.steps, made.length) == (inputs["input_ids"].shape[1], 7, made.prompt + 7)
        assert torch.equal(made.tokens, torch.cat([inputs["input_ids"], plain[:, :-1]], dim=1))
        assert int((made.segments == IMAGE).sum()) == 16
        assert not made.segments[:, made.prompt :].any()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_a_file_gives_back_every_bit(self, dtype: torch.dtype, tmp_path: Path) -> None:
        model = new_llama(dtype)
        enable(model)
        made = record(model, text_row(19, 1), tmp_path / "one.safetensors", new_tokens=4, name="tiny")
        read = load_record(tmp_path / "one.safetensors")
        assert (read.model, read.prompt, list(read.scales)) == ("tiny", 19, list(made.scales))
        assert made.inv_freq is not None
        assert read.inv_freq is not None
        pairs = [(made.tokens, read.tokens), (made.segments, read.segments), (made.inv_freq, read.inv_freq)]
        for kind in ("queries", "keys", "values"):
            pairs += zip(getattr(made, kind), getattr(read, kind), strict=True)
        assert len(pairs) == 3 + 3 * 3
        assert all(mine.dtype == yours.dtype and torch.equal(mine, yours) for mine, yours in pairs)
        assert read.keys[0].dtype == dtype

    def test_a_prompt_in_chunks_is_recorded_whole(self, model_of: ModelOf) -> None:
        inputs = LLAMA.rows()[0]
        whole = record(model_of(LLAMA), inputs, new_tokens=3)
        parts = record(model_of(LLAMA), inputs, new_tokens=3, prefill_chunk_size=11)
        assert torch.equal(whole.tokens, parts.tokens)
        for mine, other in zip([*whole.queries, *whole.keys], [*parts.queries, *parts.keys], strict=True):
            torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)

    def test_what_it_does_not_hold_is_refused(self, model_of: ModelOf) -> None:
        model, inputs = model_of(LLAMA), LLAMA.rows()[0]
        with pytest.raises(RecordError, match="the model runs 3 batch rows"):
            record(model, LLAMA.batch(), new_tokens=2)
        with pytest.raises(RecordError, match="the model runs 2 batch rows"):
            record(model, inputs, new_tokens=2, num_beams=2)
        padded = {"input_ids": torch.cat([torch.zeros_like(words(3, 0)), inputs["input_ids"]], dim=1)}
        padded["attention_mask"] = (padded["input_ids"] > 0).long()
        with pytest.raises(RecordError, match="no padding"):
            record(model, padded, new_tokens=2)
        first = int(new_tokens(model, inputs, 1))
        with pytest.raises(RecordError, match=r"stopped after its first token.*Hint: .*min_new_tokens"):
            record(model, inputs, new_tokens=2, eos_token_id=first, **NO_IMAGES)
        for wrong in (0, -1, True, 2.0):
            with pytest.raises(RecordError, match="new_tokens must be an integer >= 1"):
                record(model, inputs, new_tokens=wrong)  # type: ignore[arg-type]
        with pytest.raises(CacheError, match="not enabled"):
            record(LLAMA.new(), inputs)


class TestRotation:
    def test_turns_keys_to_other_positions(self, model_of: ModelOf) -> None:
        model: Any = model_of(LLAMA)
        known = frequencies(model, 12)
        assert known is not None
        vectors = torch.randn(1, 2, 5, 12)
        by = torch.tensor([3, -2, 0, 100, 7]).expand(1, 2, 5)
        turned = rotation(known)(vectors, by)
        cos, sin = model.model.rotary_emb(vectors, by[:, 0])
        torch.testing.assert_close(turned, apply_rotary_pos_emb(vectors, vectors, cos, sin)[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(rotation(known)(turned, -by), vectors, atol=1e-5, rtol=1e-4)

    def test_only_where_positions_are_plain(self, model_of: ModelOf) -> None:
        assert frequencies(model_of(LLAVA), 12) is not None
        assert frequencies(model_of(QWEN_VL), 12) is None  # three positions a token
        dynamic = new_llama(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
        enable(dynamic)
        assert frequencies(dynamic, 12) is None  # frequencies that depend on the length

    def test_only_where_pairs_are_halves(self) -> None:
        torch.manual_seed(7)
        neighbours = CohereForCausalLM(CohereConfig(**TEXT)).eval()  # pairs dimension 2i with 2i + 1
        enable(neighbours)
        assert rotation_of(neighbours)[0] is not None
        assert frequencies(neighbours, 12) is None

    def test_a_part_of_a_head_is_turned(self) -> None:
        torch.manual_seed(7)
        partial = StableLmForCausalLM(StableLmConfig(**{**TEXT, "hidden_size": 64}, partial_rotary_factor=0.25)).eval()
        enable(partial)
        known = frequencies(partial, 16)
        assert known is not None
        assert len(known) == 2
        vectors = torch.randn(1, 1, 3, 16)
        turned = rotation(known)(vectors, torch.tensor([[[1, 5, -4]]]))
        assert torch.equal(turned[..., 4:], vectors[..., 4:])
        assert not torch.allclose(turned[..., :4], vectors[..., :4])


class TestFiles:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        save_record(make_record(), tmp_path / "good.safetensors")
        return tmp_path / "good.safetensors"

    def altered(self, file: Path, change: Callable[[dict[str, Any], dict[str, str]], None]) -> Path:
        with safe_open(file, "pt") as opened:
            tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
            about = dict(opened.metadata())
        change(tensors, about)
        save_file(tensors, file, about)
        return file

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda data, about: about.clear(), "is a safetensors file, but no record"),
            (lambda data, about: about.update(version="2"), "is a record of version '2'; this kvpolicy reads version"),
            (lambda data, about: about.pop("scales"), "lacks 'scales'"),
            (lambda data, about: about.update(scales="[0.5, "), "is damaged"),
            (lambda data, about: about.update(scales="7"), "is damaged"),
            (lambda data, about: about.update(scales="[]"), "is damaged: 0 layers"),
            (lambda data, about: about.update(scales="[NaN, 1]"), "is damaged: scales"),
            (lambda data, about: about.update(prompt="many"), "is damaged"),
            (lambda data, about: about.update(prompt="26"), "there is no decode step"),
            (lambda data, about: data.pop("tokens"), "lacks 'tokens'"),
            (lambda data, about: data.pop("layers.1.keys"), r"lacks 'layers\.1\.keys'"),
            (lambda data, about: data.update(tokens=data["tokens"].float()), "tokens is torch.float32"),
            (lambda data, about: data.update(tokens=torch.tensor(3)), "tokens is torch.int64"),
            (lambda data, about: about.update(scales="[1" + "0" * 400 + ", 1]"), "is damaged"),
            (
                lambda data, about: data.update(
                    {f"layers.0.{kind}": torch.zeros(1, 0, 26, 4) for kind in ("queries", "keys", "values")}
                ),
                "layer 0 are",
            ),
            (lambda data, about: data.update(segments=data["segments"][:, :3].clone()), "segments is torch.int64"),
            (lambda data, about: data["layers.1.values"].fill_(torch.nan), "layer 1 holds NaN"),
            (
                lambda data, about: data.update({"layers.0.keys": data["layers.0.keys"][:, :, 1:].clone()}),
                "values of layer 0 are",
            ),
            (
                lambda data, about: data.update({"layers.0.queries": data["layers.0.queries"].half()}),
                "float16.*do not belong together",
            ),
            (lambda data, about: data.update(inv_freq=torch.ones(4)), "inv_freq has shape"),
        ],
    )
    def test_damage_is_named(self, file: Path, change: Callable[..., None], message: str) -> None:
        with pytest.raises(RecordError, match=message) as caught:
            load_record(self.altered(file, change))
        assert str(file) in str(caught.value)
        assert "Hint: " in str(caught.value)

    def test_a_part_of_a_file_is_refused(self, file: Path) -> None:
        whole = file.read_bytes()
        for length in [0, 1, 8, 9, 100, *range(500, len(whole), len(whole) // 20), len(whole) - 1]:
            file.write_bytes(whole[:length])
            with pytest.raises(RecordError, match=r"is not a safetensors file, or only a part of one.*Hint: record it"):
                load_record(file)

    def test_another_kind_of_file_is_refused(self, file: Path, tmp_path: Path) -> None:
        for content in (b"hello, this is some text, and no tensors at all", json.dumps({"a": 1}).encode(), b"\0" * 64):
            file.write_bytes(content)
            with pytest.raises(RecordError, match="is not a safetensors file"):
                load_record(file)
        for nothing in (tmp_path, tmp_path / "nothing.safetensors"):
            with pytest.raises(RecordError, match=r"no record .*Hint: `kvpolicy simulate --record"):
                load_record(nothing)

    def test_a_place_that_cannot_be_written_is_named(self, tmp_path: Path) -> None:
        for place in (tmp_path, tmp_path / "no" / "such.safetensors"):
            with pytest.raises(RecordError, match="cannot write the record"):
                save_record(make_record(), place)


def by_hand(data: Record, policy: kvpolicy.Policy) -> np.ndarray:
    """Mass, error, recall and rows [4, T, L], in loops over heads and rows, from the tables alone."""
    session, out = open_session(data, policy), np.zeros((4, data.steps, data.layers))
    for _ in feed(session, data, 0, data.prompt):
        pass
    for step in range(data.steps):
        end = data.prompt + step + 1
        for view, asked in feed(session, data, end - 1, end):
            layer, rows, outputs, wanted = view.layer, [], [], []
            for head in range(4):
                group = head // 2
                query = data.queries[layer][0, head, end - 1].numpy()
                full = _softmax(data.scales[layer] * data.keys[layer][0, group, :end].numpy() @ query)
                wanted.append(full @ data.values[layer][0, group, :end].numpy())
                alive = view.valid[0, group].numpy()
                here = view.positions[0, group].numpy()[alive]
                logits = data.scales[layer] * view.keys[0, group].numpy()[alive] @ asked[0, head, 0].numpy()
                if policy.count_bias:
                    logits = logits + np.log(view.columns["count"].data[0, group].numpy()[alive])
                outputs.append(_softmax(logits) @ view.values[0, group].numpy()[alive])
                best = np.argsort(-full)[: len(here)]
                rows.append((full[here].sum(), len(set(best) & set(here)) / len(here), len(here)))
            lost = np.linalg.norm(np.ravel(outputs) - np.ravel(wanted)) / np.linalg.norm(wanted)
            mass, recall, held = np.mean(rows, axis=0)
            out[:, step, layer] = mass, lost, recall, held
    return out


def _softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits - logits.max())
    return shares / shares.sum()


class TestReplay:
    @pytest.mark.parametrize("family", [LLAMA, LLAVA, QWEN_VL], ids=repr)
    def test_full_loses_nothing(self, family: Family, model_of: ModelOf) -> None:
        data = record(model_of(family), family.rows()[0], new_tokens=4, **NO_IMAGES)
        result = replay(data, kvpolicy.full())
        assert result.mass.shape == result.error.shape == result.recall.shape == result.rows.shape == (4, data.layers)
        assert result.error.max() < 1e-12
        np.testing.assert_allclose(result.mass, 1.0, atol=1e-12)
        assert (result.recall == 1).all()
        assert result.rows[:, 0].tolist() == list(range(data.prompt + 1, data.length + 1))

    @pytest.mark.parametrize("name", [*RECIPES, "elastic_cache(last=4, distance=2)", "streaming_llm(rows=7)"])
    @pytest.mark.parametrize("keep", [0.3, 0.7])
    def test_numbers_are_those_of_the_formulas(self, name: str, keep: float, random_record: Record) -> None:
        policy = kvpolicy.from_text(name, keep=keep)
        result = replay(random_record, policy)
        expected = by_hand(random_record, policy)
        for ours, theirs in zip((result.mass, result.error, result.recall, result.rows), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-12)

    def test_merged_rows_weigh_as_many_tokens_as_they_stand_for(self, random_record: Record) -> None:
        pipeline = kvpolicy.elastic_cache(keep=0.4).prefill
        assert pipeline is not None
        assert isinstance(pipeline.merge, Fold)
        counted = kvpolicy.Policy(prefill=pipeline, count_bias=True)
        plain = kvpolicy.Policy(prefill=pipeline)
        expected = by_hand(random_record, counted)
        np.testing.assert_allclose(replay(random_record, counted).error, expected[1], atol=1e-12)
        assert not np.allclose(replay(random_record, plain).error, expected[1], atol=1e-3)

    def test_a_token_merged_away_is_not_kept(self, random_record: Record) -> None:
        pipeline = once("h2o", 0.4).prefill
        assert pipeline is not None
        merging = kvpolicy.Policy(prefill=replace(pipeline, merge=Fold(NearestPosition(), Mean())))
        dropped, merged = replay(random_record, kvpolicy.Policy(prefill=pipeline)), replay(random_record, merging)
        np.testing.assert_array_equal(dropped.mass, merged.mass)
        np.testing.assert_array_equal(dropped.recall, merged.recall)
        assert not np.allclose(dropped.error, merged.error)

    @pytest.mark.parametrize("name", [name for name in RECIPES if name != "full"])
    @pytest.mark.parametrize("family", [LLAMA, LLAVA], ids=repr)
    def test_prompt_tables_are_those_of_the_real_run(self, family: Family, name: str, model_of: ModelOf) -> None:
        """The prompt's outputs are exact under every policy, so its tables are the real ones at any budget."""
        inputs, policy = family.rows()[0], kvpolicy.from_text(name, keep=0.3)
        data = record(model_of(family), inputs, new_tokens=2, **NO_IMAGES)
        cache = PolicyCache(model_of(family), policy, inputs=inputs)
        new_tokens(model_of(family), inputs, 1, past_key_values=cache)
        session = open_session(data, policy)
        for _ in feed(session, data, 0, data.prompt):
            pass
        assert_same_tables(cache, SimpleNamespace(session=session))

    @pytest.mark.parametrize("name", [name for name in RECIPES if name != "full"])
    def test_with_everything_kept_all_tables_are_those_of_the_real_run(self, name: str, model_of: ModelOf) -> None:
        inputs, policy = LLAMA.rows()[1], kvpolicy.from_text(name, keep=1.0)
        data = record(model_of(LLAMA), inputs, new_tokens=6, **NO_IMAGES)
        cache = PolicyCache(model_of(LLAMA), policy, inputs=inputs)
        new_tokens(model_of(LLAMA), inputs, 7, past_key_values=cache)
        session = open_session(data, policy)
        for start, end in ((0, data.prompt), *((n, n + 1) for n in range(data.prompt, data.length))):
            for _ in feed(session, data, start, end):
                pass
        assert_same_tables(cache, SimpleNamespace(session=session))
        assert replay(data, policy).error.max() < 1e-12

    def test_rows_in_new_slots_are_attended_to_there(self, random_record: Record) -> None:
        pipeline = kvpolicy.h2o(keep=0.4).prefill
        policy = kvpolicy.Policy(prefill=pipeline, decode=pipeline, positions="slots")
        moved, still = replay(random_record, policy), replay(random_record, kvpolicy.h2o(keep=0.4))
        np.testing.assert_allclose(moved.error, by_hand(random_record, policy)[1], atol=1e-12)
        np.testing.assert_array_equal(moved.mass[0], still.mass[0])  # which rows stay of the prompt is the same
        assert not np.allclose(moved.error[0], still.error[0])
        everything = kvpolicy.Policy(positions="slots")
        assert replay(random_record, everything).error.max() < 1e-12
        policies = {"slots": policy, **choose("expected_attention, h2o", 0.4)}
        without = compare(replace(random_record, inv_freq=None), policies, 0.4)
        for name in ("slots", "expected_attention"):
            assert "needs the model's rotary embedding" in str(without[name])
        assert all(isinstance(compare(random_record, policies, 0.4)[name], Replay) for name in policies)

    def test_plans_are_told(self, random_record: Record) -> None:
        told: list[tuple[int, int]] = []

        def listen(layer: int, view: CacheView, plan: kvpolicy.Plan, step: Step) -> None:
            told.append((layer, int(plan.keep.sum())))

        replay(random_record, once("h2o", 0.5), listen=listen)
        assert told == [(0, 20), (1, 20)]  # 10 of 20 rows in each of two heads


class TestClairvoyant:
    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize("keep", [0.2, 0.35, 0.8])
    def test_bounds_the_mass_of_every_eviction_of_the_prompt(self, seed: int, keep: float) -> None:
        data = make_record(seed)
        evenly = {
            name: replace(policy, decode=None)
            for name, policy in choose(None, keep).items()
            if policy.prefill is not None and policy.prefill.allocate == kvpolicy.Uniform()
        }
        results = compare(data, evenly, keep)
        best = results[BOUNDS[1]]
        assert isinstance(best, Replay)
        assert {"elastic_cache", "h2o", "streaming_llm"} <= results.keys()
        for result in results.values():
            if isinstance(result, Replay) and result is not results[BOUNDS[0]]:
                assert (result.rows <= best.rows).all()
                assert (result.mass.mean(axis=0) <= best.mass.mean(axis=0) + 1e-12).all()

    def test_is_the_best_of_all_choices(self) -> None:
        data = make_record(3, prompt=7, steps=4)
        best = replay(data, clairvoyant(data, KeepRatio(3 / 7), decode=False))
        assert best.report.layers[0].evicted == 2 * 4
        for layer in range(data.layers):
            received = np.zeros((2, 7))  # what each prompt row of each head gets from the decode steps
            for step in range(4):
                end = 7 + step + 1
                for head in range(4):
                    query = data.queries[layer][0, head, end - 1].numpy()
                    logits = data.scales[layer] * data.keys[layer][0, head // 2, :end].numpy() @ query
                    received[head // 2] += _softmax(logits)[:7] / 2
            most = sum(max(sum(row[list(kept)]) for kept in combinations(range(7), 3)) for row in received)
            everything = replay(data, kvpolicy.full()).mass[:, layer].sum()
            lost = (received.sum() - most) / 2
            np.testing.assert_allclose(best.mass[:, layer].sum(), everything - lost, atol=1e-12)

    def test_goes_on_within_its_budget_while_decoding(self, random_record: Record) -> None:
        policy = clairvoyant(random_record, KeepRatio(0.3))
        result = replay(random_record, policy)
        assert result.report.layers[0].most == round(0.3 * random_record.length)
        worst = replay(random_record, kvpolicy.streaming_llm(keep=0.3, sinks=0))
        assert result.mass.mean() > worst.mass.mean()
        assert "FutureMass(Record('random', prompt=20, steps=6, layers=2))" in repr(policy)


class TestChoose:
    def test_splits_at_commas_outside_brackets(self) -> None:
        assert choose("h2o, elastic_cache(last=8, rows=64),full", 0.3) == {
            "h2o": kvpolicy.h2o(keep=0.3),
            "elastic_cache(last=8, rows=64)": kvpolicy.elastic_cache(last=8, rows=64),
            "full": kvpolicy.full(),
        }

    def test_files_and_what_is_ones_own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "mine_to_replay.py").write_text(
            "import kvpolicy\n\n\ndef half(keep):\n    return kvpolicy.h2o(keep=keep / 2)\n", encoding="utf-8"
        )
        file = tmp_path / "tuned.json"
        file.write_text(kvpolicy.to_json(kvpolicy.tova(keep=0.3)), encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        scorer = "kvpolicy.scorers:WindowMass(window=4)"
        pipeline = kvpolicy.Pipeline(
            schedule=KeepRatio(0.4), score=kvpolicy.WindowMass(4), select=kvpolicy.TopK(recent=0.5)
        )
        assert choose(f"mine_to_replay:half, {scorer}, {file}, mine_to_replay:half(keep=0.8),", 0.4) == {
            "mine_to_replay:half": kvpolicy.h2o(keep=0.2),
            scorer: kvpolicy.Policy(prefill=pipeline, decode=pipeline),
            str(file): kvpolicy.tova(keep=0.3),
            "mine_to_replay:half(keep=0.8)": kvpolicy.h2o(keep=0.4),
        }

    def test_every_command_takes_the_same_names(self) -> None:
        names = ["h2o", "elastic_cache(last=8)", "kvpolicy.policies:tova", "kvpolicy:KeyNorm"]
        chosen = choose(", ".join(names), 0.4)
        assert list(chosen.values()) == [arm.policy for arm in arms_of(names, [0.4])[1:]]

    @pytest.mark.parametrize("text", ["make(name='a, b')", 'make(name="a)")', "make(# , (\n)", "make(of=(1, {2: 3}))"])
    def test_quotes_comments_and_brackets_hold_together(self, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(compare_module, "policy_of", lambda label, target, keep: (target, keep))
        assert list(choose(f"h2o, {text} ,tova", 0.5).values()) == [("h2o", 0.5), (text, 0.5), ("tova", 0.5)]

    def test_by_default_every_recipe_that_needs_only_a_budget(self) -> None:
        chosen = choose(None, 0.4)
        assert set(RECIPES) <= set(chosen) == set(kvpolicy.catalogue(keep=0.4))
        assert chosen["h2o"] == kvpolicy.h2o(keep=0.4)

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            ("", "no list of policies"),
            ("h2o(", "no list of policies"),
            ("h2o,,full", "no list of policies"),
            ("h2o] + [full", "neither a recipe"),
            ("h20", "no recipe 'h20'"),
            ("h2o(size=3)", "size"),
            ("no_such_module:It", "no module 'no_such_module'"),
            ("kvpolicy:Nobody", "has no 'Nobody'"),
            ("kvpolicy:TopK", "is a TopK, neither a policy nor a scorer"),
            ("nowhere.json", "'nowhere.json' cannot be read"),
        ],
    )
    def test_wrong_names(self, names: str, message: str) -> None:
        with pytest.raises(PolicyError, match=message):
            choose(names, 0.2)

    @pytest.mark.parametrize(("keep", "hint"), [(0.0, "0.2, or keep=0.2, is 20%"), (35, "0.35, or keep=0.35, is 35%")])
    def test_wrong_budget(self, keep: float, hint: str) -> None:
        with pytest.raises(
            PolicyError, match=rf"^keep={keep}: .* share of the cache, in \(0, 1\]. Hint: --keep {hint}.$"
        ):
            choose(None, keep)


class TestCompare:
    def test_a_policy_that_cannot_be_replayed_gives_its_reason(self, random_record: Record) -> None:
        results = compare(random_record, choose("h2o, h2o(memory=10)", 0.5), 0.5)
        assert list(results) == ["h2o", "h2o(memory=10)", BOUNDS[0]]
        assert isinstance(results["h2o"], Replay)
        assert "MemoryBudget(memory=10)" in str(results["h2o(memory=10)"])
        with pytest.raises(PolicyError, match=r"none of the policies can be replayed. h2o\(memory=10\): "):
            compare(random_record, choose("h2o(memory=10)", 0.5), 0.5)

    def test_policies_of_the_prompt_only_have_their_own_bound(self, random_record: Record) -> None:
        policies = {"prompt only": once("h2o", 0.3), "h2o": kvpolicy.h2o(keep=0.3)}
        assert list(compare(random_record, policies, 0.3)) == [*policies, *BOUNDS]
        assert list(compare(random_record, {"full": kvpolicy.full()}, 0.3)) == ["full", BOUNDS[0]]

    def test_layers_are_thinned_out_in_tables(self) -> None:
        assert shown_layers(1) == [0]
        assert shown_layers(4) == [0, 1, 2, 3]
        assert shown_layers(30) == [0, 4, 8, 12, 17, 21, 25, 29]

    @pytest.mark.parametrize("layers", [1, 30])
    def test_the_plot_has_a_line_a_policy(self, layers: int, tmp_path: Path) -> None:
        data = make_record(layers=layers, steps=2)
        results = compare(data, {name: kvpolicy.from_text(name, keep=0.3) for name in RECIPES}, 0.3)
        few = {name: results[name] for name in ("full", "h2o")}
        sizes = []
        for shown in (results, few):
            draw_plot("title", "subtitle", shown, tmp_path / "plot.png")
            with Image.open(tmp_path / "plot.png") as picture:
                sizes.append(picture.size)
        assert sizes[0][1] - sizes[1][1] == 3 * 45  # three lines of 0.3 inches
        assert min(size[0] for size in sizes) > 1000


def invoke(*args: str) -> tuple[int, str, str]:
    result = CliRunner(env={"COLUMNS": "160", "TERMINAL_WIDTH": "160"}).invoke(app, ["simulate", *args])
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


class TestCommand:
    def test_records_and_replays(self, tmp_path: Path) -> None:
        file, out = tmp_path / "demo.safetensors", tmp_path / "plot.png"
        code, printed, _ = invoke("--record", str(file), "--policies", "full, h2o, streaming_llm", "--out", str(out))
        assert code == 0
        made = load_record(file)
        assert f"{made.prompt} prompt tokens, {made.steps} decode steps, 4 layers" in printed
        assert made.steps >= 4
        lines = {line.split()[0]: line for line in printed.splitlines() if line.strip()}
        assert {"full", "h2o", "streaming_llm", "clairvoyant"} <= lines.keys()
        assert printed.count("100.0%") == 2  # mass and recall of the full cache
        with Image.open(out) as picture:
            assert picture.size[0] > 1000

        again = invoke(str(file), "--policies", "h2o", "--keep", "0.5", "--out", str(out))
        assert again[0] == 0
        expected = replay(made, kvpolicy.h2o(keep=0.5))
        numbers = next(line for line in again[1].splitlines() if line.split()[:1] == ["h2o"]).split()
        assert numbers[-3:] == [
            f"{expected.mass.mean():.1%}",
            f"{expected.recall.mean():.1%}",
            f"{expected.error.mean():.3f}",
        ]
        assert "layer 4" in again[1]
        assert "Open loop" in again[1]

    def test_a_reason_stands_in_the_table(self, tmp_path: Path) -> None:
        save_record(make_record(), tmp_path / "r.safetensors")
        code, printed, _ = invoke(str(tmp_path / "r.safetensors"), "--policies", "h2o, h2o(memory=10)",
                                  "--out", str(tmp_path / "plot.png"))  # fmt: skip
        assert code == 0
        assert "one row per layer and head takes" in " ".join(printed.split())

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            ([], "give either a RECORD to replay, or --record FILE to make one"),
            (["a.safetensors", "--record", "b.safetensors"], "give either a RECORD"),
            (["/no/such.safetensors"], "error: no record '/no/such.safetensors'. Hint: "),
            ([__file__], "is not a safetensors file"),
            (["x.safetensors", "--policies", "h20"], "error: no recipe 'h20'"),
            (["x.safetensors", "--keep", "20"], "error: keep=20.0: what may be kept is a share of the cache"),
            (["x.safetensors", "--out", "/no/such/folder/plot.png"], "there is no folder '/no/such/folder'"),
            (["--record", "/no/such/folder/x.safetensors", "--policies", "full"], "cannot write the record"),
        ],
    )
    def test_wrong_arguments_are_one_clear_line(self, args: list[str], message: str) -> None:
        code, printed, err = invoke(*args)
        assert (code, printed) == (2, "")
        assert message in err
        assert "Traceback" not in err


def test_image_tokens_are_told_from_text(model_of: ModelOf) -> None:
    """The column that a policy may ask for comes with the record."""

    class Pictures:
        def score(self, view: CacheView, step: Step) -> Scores:
            return view.column("segment", needed_by="Pictures").double()

    data = record(model_of(LLAVA), llava_row(7, 1, 9, 1), new_tokens=2, **NO_IMAGES)
    pipeline = kvpolicy.Pipeline(schedule=kvpolicy.FixedRows(16), score=Pictures())
    session = open_session(data, kvpolicy.Policy(prefill=pipeline))
    for _ in feed(session, data, 0, data.prompt):
        pass
    view, _ = next(feed(session, data, data.prompt, data.prompt + 1))
    held = view.positions[0, 0][view.valid[0, 0]].sort().values.tolist()
    assert held == [*range(7, 23), data.prompt]


def test_example_prints_a_line_a_policy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["04_simulate.py", "--keep", "0.3"])
    runpy.run_path(str(ROOT / "examples" / "04_simulate.py"), run_name="__main__")
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if "%" in line]
    assert [line[0] for line in lines] == ["elastic_cache", "h2o", "streaming_llm", "clairvoyant"]
    masses = [float(line[1].rstrip("%")) for line in lines]
    assert max(masses[:-1]) < masses[-1] < 100


class TestScript:
    SCRIPT = runpy.run_path(str(ROOT / "scripts" / "simulate_all.py"))

    def test_records_are_joined_step_by_step(self) -> None:
        parts = [compare(make_record(seed, steps=3 + seed), choose("h2o, h2o(memory=10)", 0.5), 0.5) for seed in (0, 1)]
        results = self.SCRIPT["joined"](parts)
        joined, one, two = (part["h2o"] for part in (results, *parts))
        np.testing.assert_array_equal(joined.error, np.concatenate([one.error, two.error]))
        assert joined.mass.shape == (3 + 4, 2)
        assert isinstance(results["h2o(memory=10)"], PolicyError)

    def test_the_table_has_a_line_a_policy(self) -> None:
        results = compare(make_record(), choose("full, h2o(memory=10)", 0.5), 0.5)
        head, _, *lines = self.SCRIPT["table"](results)
        assert [line.split("`")[1] for line in lines] == list(results)
        assert {line.count("|") for line in (head, *lines)} == {head.count("|")}
        assert "| 100.0% | 100.0% | 0.000 | 0.000, 0.000 |" in lines[0]
        assert "memory" in lines[1]

    def test_records_of_the_demos_model(self) -> None:
        grid, photo = self.SCRIPT["demo_records"](1)
        assert grid.layers == photo.layers == 4
        assert min(grid.steps, photo.steps) >= 4
        assert not torch.equal(grid.tokens[:, : grid.prompt], photo.tokens[:, : photo.prompt])
