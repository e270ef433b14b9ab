"""ADORE on real models: rows leave for the host and come back, at a constant number; and its controller is fitted."""

from __future__ import annotations

import copy
import runpy
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import (
    LLAMA,
    LLAVA,
    Family,
    assert_same_tables,
    batch,
    continue_with,
    feed,
    llava_row,
    new_llama,
    new_tokens,
    tables,
    text_row,
    words,
)
from torch import Tensor
from transformers import PreTrainedModel

import kvpolicy
from kvpolicy import CacheView, GRUController, PolicyError, Scores, Step, TopK
from kvpolicy_hf import PolicyCache, enable, train_controller
from kvpolicy_hf.simulate import Record, RecordError, record, replay, save_record

ROOT = Path(__file__).parents[2]
DIM = 12  # of the tiny models' keys

ModelOf = Callable[[Family], PreTrainedModel]


def some_controller(dim: int = DIM, size: int = 4, seed: int = 0) -> GRUController:
    """Weights by chance."""
    rng = np.random.default_rng(seed)
    shapes = {"read": (dim, 3 * size), "read_bias": (3 * size,), "state": (size, 3 * size), "state_bias": (size,),
              "ask": (dim, size), "ask_bias": (size,), "age": (1,)}  # fmt: skip
    return GRUController.from_arrays({name: rng.standard_normal(shape) for name, shape in shapes.items()})


CONTROLLERS = {"attention": None, "gru": some_controller()}
each_controller = pytest.mark.parametrize("controller", CONTROLLERS.values(), ids=CONTROLLERS)


@dataclass(frozen=True)
class Planned:
    """What a test wants a row to be worth: by position, and whether a certain token has been seen."""

    wanted: int
    until: int

    def score(self, view: CacheView, step: Step) -> Scores:
        worth = (view.positions * 37 % 101).double()  # an order that is not that of arrival
        return torch.where(view.positions == self.wanted, -1.0 if step.seen[0] < self.until else 1000.0, worth)

    def best(self, rows: set[int], count: int, seen: int) -> set[int]:
        """The same without any of our code."""

        def worth(row: int) -> float:
            return (-1.0 if seen < self.until else 1000.0) if row == self.wanted else row * 37 % 101

        return set(sorted(rows, key=lambda row: (worth(row), row), reverse=True)[:count])


def storages(view: CacheView) -> set[int]:
    return {data.untyped_storage().data_ptr() for data in (view.keys, view.values)}


def releasing(controller: Any = None, rows: int = 10, recall: int = 3) -> kvpolicy.Policy:
    return kvpolicy.adore(rows=rows, recall=recall, controller=controller)


def positions(view: CacheView, b: int = 0, h: int = 0) -> list[int]:
    found: list[int] = view.positions[b, h][view.valid[b, h]].sort().values.tolist()
    return found


class TestMechanism:
    @each_controller
    def test_released_rows_are_in_host_memory_whole_and_nowhere_else(self, controller: Any, model_of: ModelOf) -> None:
        model, row = model_of(LLAMA), LLAMA.rows()[0]
        whole, cache = PolicyCache(model, kvpolicy.full()), PolicyCache(model, releasing(controller))
        tokens = words(7, 9)
        feed(model, whole, row, tokens)
        model(**row, past_key_values=cache)
        sizes = [cache.report().archive_bytes]
        for token in range(7):
            mask = torch.nn.functional.pad(row["attention_mask"], (0, token), value=1)
            continue_with(model, cache, mask, tokens[:, token : token + 1])
            sizes.append(cache.report().archive_bytes)
        everything = tables(whole)[0]  # of the first layer, whose keys depend on no policy
        for number, layer in enumerate(cache.session._layers):
            assert layer.archive is not None
            table, archive = layer.store.view(), layer.archive.view()
            assert archive.keys.device == archive.values.device == torch.device("cpu")
            assert not storages(table) & storages(archive)
            for h in range(2):
                here, there = positions(table, h=h), positions(archive, h=h)
                assert sorted(here + there) == list(range(29 + 7))
                if number:
                    continue
                for place in there:
                    slot = (archive.positions[0, h] == place) & archive.valid[0, h]
                    for name in ("keys", "values"):
                        kept = getattr(archive, name)[0, h][slot][0]
                        torch.testing.assert_close(kept, getattr(everything, name)[0, h, place])
        row_bytes = 2 * DIM * 4
        assert all(size >= 3 * 2 * (29 + step - 10) * row_bytes for step, size in enumerate(sizes))
        assert sizes[-1] > sizes[0]
        assert cache.report().recalled > 0

    def test_what_left_is_missed_and_what_came_back_is_attended_to(self) -> None:
        """One layer, so that keys are the same under any policy: logits of each step are those of a plain mask."""
        plain, model = new_llama(num_hidden_layers=1), new_llama(num_hidden_layers=1)
        enable(model)
        row, tokens, count = text_row(14, 1), words(10, 8), 6
        plan = Planned(wanted=4, until=19)
        policy = kvpolicy.adore(rows=count, recall=2, controller=plan)
        cache = PolicyCache(model, policy, inputs=row)
        ours = feed(model, cache, row, tokens)[0]
        # By hand: who is there when each token attends. The best of the table stay, the newest in any case, and the
        # two best of those that left compete with them.
        table, left, seen_by = set(range(14)), set[int](), {}
        for now in range(13, 24):
            if now > 13:
                table = table | {now}
                seen_by[now] = set(table)
                back = plan.best(left, 2, now + 1)
                table, left = table | back, left - back
            stays = {now} | plan.best(table - {now}, count - 1, now + 1)
            table, left = stays, left | (table - stays)
        assert [4 in rows for rows in seen_by.values()] == [False] * 5 + [True] * 5
        assert positions(cache.session._layers[0].store.view()) == sorted(table)
        assert all(len(rows) == count + 1 for rows in seen_by.values())

        def logits(seen: dict[int, set[int]]) -> Tensor:
            hidden = torch.ones(24, 24, dtype=torch.bool).triu(1)
            for token, rows in seen.items():
                hidden[token] = torch.tensor([place not in rows for place in range(24)])
            bias = torch.zeros(24, 24).masked_fill(hidden, torch.finfo(torch.float32).min)
            out: Tensor = plain(torch.cat([row["input_ids"], tokens], dim=1), attention_mask=bias[None, None]).logits
            return out[0, 13:]

        torch.testing.assert_close(ours, logits(seen_by), atol=1e-4, rtol=1e-4)
        without = logits({token: rows - {4} for token, rows in seen_by.items()})
        assert all((ours[step] - without[step]).abs().max() > 0.01 for step in range(6, 11))

    @each_controller
    @pytest.mark.parametrize("family", [LLAMA, LLAVA], ids=repr)
    def test_the_number_of_rows_is_constant(self, family: Family, controller: Any, model_of: ModelOf) -> None:
        model, inputs = model_of(family), family.batch()
        cache = PolicyCache(model, releasing(controller), inputs=inputs)
        tokens = words(6, 3).expand(len(inputs["input_ids"]), -1)
        model(**inputs, past_key_values=cache)
        for token in range(6):
            mask = torch.nn.functional.pad(inputs["attention_mask"], (0, token), value=1)
            continue_with(model, cache, mask, tokens[:, token : token + 1])
            report = cache.report()
            for layer in report.layers:
                assert (layer.rows, layer.most) == (10, 10)
                assert layer.capacity <= 10 + 1 + 3
            tokens_seen = int(inputs["attention_mask"].sum()) + 3 * (token + 1)
            assert report.evicted == 3 * 2 * (tokens_seen - 3 * 10)  # layers, heads
            assert report.merged == 0

    @each_controller
    def test_each_row_of_a_batch_is_what_it_is_alone(self, controller: Any, model_of: ModelOf) -> None:
        model, rows = model_of(LLAMA), LLAMA.rows()
        together = PolicyCache(model, releasing(controller))
        inputs = batch(rows)
        out = new_tokens(model, inputs, 9, past_key_values=together)
        for number, row in enumerate(rows):
            alone = PolicyCache(model, releasing(controller))
            assert torch.equal(new_tokens(model, row, 9, past_key_values=alone)[0], out[number])
            left = inputs["input_ids"].shape[1] - row["input_ids"].shape[1]
            for ours, theirs in zip(together.session._layers, alone.session._layers, strict=True):
                assert ours.archive is not None
                assert theirs.archive is not None
                for one, other in ((ours.store, theirs.store), (ours.archive, theirs.archive)):
                    for h in range(2):
                        shifted = [place - left for place in positions(one.view(), number, h)]
                        assert shifted == positions(other.view(), 0, h)

    @each_controller
    def test_a_chunked_prompt_is_a_whole_one(self, controller: Any, model_of: ModelOf) -> None:
        model, row = model_of(LLAMA), LLAMA.rows()[1]
        caches = [PolicyCache(model, releasing(controller), inputs=row) for _ in range(2)]
        whole = new_tokens(model, row, 8, past_key_values=caches[0])
        chunked = new_tokens(model, row, 8, past_key_values=caches[1], prefill_chunk_size=7)
        assert torch.equal(whole, chunked)
        assert_same_tables(*caches)

    @each_controller
    def test_two_requests_do_not_meet(self, controller: Any, model_of: ModelOf) -> None:
        """One policy, shared: by requests that take turns, and by one cache after a reset."""
        model, (one, other, _) = model_of(LLAMA), LLAMA.rows()
        policy = releasing(controller)
        alone = [new_tokens(model, row, 8, past_key_values=PolicyCache(model, policy)) for row in (one, other)]
        caches = [PolicyCache(model, policy) for _ in range(2)]
        logits = [[feed(model, cache, row, words(0, 1))[:, 0]] for cache, row in zip(caches, (one, other), strict=True)]
        for step in range(7):
            for said, cache, row in zip(logits, caches, (one, other), strict=True):
                mask = torch.nn.functional.pad(row["attention_mask"], (0, step), value=1)
                said[-1][:, :4] = -torch.inf  # as new_tokens
                said.append(continue_with(model, cache, mask, said[-1].argmax(-1, keepdim=True))[:, 0])
        for said, due in zip(logits, alone, strict=True):
            said[-1][:, :4] = -torch.inf
            assert torch.cat([step.argmax(-1) for step in said]).tolist() == due[0].tolist()
        used = caches[0]
        used.reset()
        assert used.report().archive_bytes == 0
        assert torch.equal(new_tokens(model, other, 8, past_key_values=used), alone[1])

    @each_controller
    def test_a_copied_cache_goes_its_own_way(self, controller: Any, model_of: ModelOf) -> None:
        model, row = model_of(LLAMA), LLAMA.rows()[0]
        cache, fresh = (PolicyCache(model, releasing(controller)) for _ in range(2))
        feed(model, cache, row, words(3, 1))
        feed(model, fresh, row, words(3, 1))
        copied = copy.deepcopy(cache)
        for mine, theirs in zip(cache.session._layers, copied.session._layers, strict=True):
            assert mine.archive is not None
            assert theirs.archive is not None
            assert not storages(mine.archive.view()) & storages(theirs.archive.view())
        mask = torch.nn.functional.pad(row["attention_mask"], (0, 3), value=1)
        continue_with(model, copied, mask, words(4, 2))
        due = continue_with(model, fresh, mask, words(4, 3))
        torch.testing.assert_close(continue_with(model, cache, mask, words(4, 3)), due)
        assert_same_tables(cache, fresh)
        assert copied.session.policy is cache.session.policy

    def test_beams_take_codes_and_archive_along(self, model_of: ModelOf) -> None:
        model, inputs = model_of(LLAMA), LLAMA.batch()
        everything = kvpolicy.adore(keep=1.0, controller=some_controller())
        plain = new_tokens(model, inputs, 8, num_beams=3)
        assert torch.equal(
            new_tokens(model, inputs, 8, num_beams=3, past_key_values=PolicyCache(model, everything)), plain
        )
        cache = PolicyCache(model, releasing(some_controller()))
        new_tokens(model, inputs, 8, num_beams=3, past_key_values=cache)
        for layer in cache.session._layers:
            assert layer.held.tolist() == [[10, 10]] * 9
            assert layer.archive is not None
            assert (layer.archived == layer.seen[:, None] - 10).all()


def pointed(seed: int, *, prompt: int = 40, steps: int = 12, layers: int = 2, dtype: Any = torch.float32) -> Record:
    """A record in which a token is asked for by its kind, which its key tells: one that recency cannot guess."""
    rng = torch.Generator().manual_seed(seed)
    count, dim = prompt + steps, 8
    kinds = torch.randint(4, (count,), generator=rng)
    wanted = torch.randint(4, (count // 4 + 1,), generator=rng).repeat_interleave(4)[:count]  # each for a while
    axes = 3 * torch.eye(dim)

    def vectors(which: Tensor, heads: int) -> list[Tensor]:
        noise = 0.3 * torch.randn(layers, 1, heads, count, dim, generator=rng)
        return list((axes[which] + noise).to(dtype))

    return Record(
        model="pointed",
        prompt=prompt,
        scales=[1.0] * layers,
        tokens=torch.arange(count)[None],
        segments=torch.zeros(1, count, dtype=torch.int64),
        queries=vectors(wanted, 4),
        keys=vectors(kinds, 2),
        values=[torch.randn(1, 2, count, 4, generator=rng).to(dtype) for _ in range(layers)],
    )


class TestTraining:
    LESSONS = (pointed(0), pointed(1), pointed(2))

    def test_it_learns_what_is_asked_for(self) -> None:
        """On a record that it has not seen, against the controller that training began with."""
        test = pointed(9)
        untrained, trained = (train_controller(self.LESSONS, steps=steps) for steps in (0, 80))
        policies = [kvpolicy.adore(rows=12, recall=6, controller=made) for made in (untrained, trained)]
        before, after = (replay(test, policy).mass.mean() for policy in policies)
        assert after > before + 0.15
        top = train_controller(self.LESSONS, steps=80, rows=12)
        assert replay(test, kvpolicy.adore(rows=12, recall=6, controller=top)).recall.mean() > (
            replay(test, policies[0]).recall.mean() + 0.1
        )

    def test_the_scores_that_were_trained_are_the_controllers(self) -> None:
        from kvpolicy_hf.train_controller import _features, _Network

        data, said = pointed(3), {}
        torch.manual_seed(0)
        network = _Network(8, 5)
        made = network.controller()

        @dataclass(frozen=True)
        class Told:
            columns = made.columns

            def observe(self, view: CacheView, step: Step) -> Any:
                found = made.observe(view, step)
                said[view.layer, int(step.seen[0]) - 1] = made.score(view.with_columns(found), step)[0, 0]
                return found

            def score(self, view: CacheView, step: Step) -> Scores:
                raise NotImplementedError

        replay(data, kvpolicy.Policy(decode=kvpolicy.Pipeline(schedule=kvpolicy.KeepRatio(1.0), score=Told())))
        keys, queries = (torch.cat([_features(one) for one in many]) for many in (data.keys, data.queries))
        for (layer, token), scores in said.items():
            due = network(keys, queries, torch.tensor([token]))[layer, 0]
            torch.testing.assert_close(scores[:token], due[:token], atol=1e-5, rtol=1e-5)
            assert scores[token] == torch.inf
        assert len(said) == 2 * (1 + 12)

    @pytest.mark.parametrize("rows", [None, 5])
    def test_a_seed_decides_everything(self, rows: int | None, tmp_path: Path) -> None:
        one = train_controller(self.LESSONS, size=3, steps=4, rows=rows)
        torch.rand(5)
        torch.manual_seed(11)
        after = torch.rand(3)
        torch.manual_seed(11)
        assert train_controller(self.LESSONS, size=3, steps=4, rows=rows) == one
        assert torch.equal(torch.rand(3), after)  # and leaves everybody else's numbers alone
        assert train_controller(self.LESSONS, size=3, steps=4, rows=rows, seed=1) != one
        files = []
        for number, lesson in enumerate(self.LESSONS):
            files.append(tmp_path / f"{number}.safetensors")
            save_record(lesson, files[-1])
        assert train_controller(map(str, files), size=3, steps=4, rows=rows) == one
        with torch.inference_mode():
            assert train_controller(iter(self.LESSONS), size=3, steps=4, rows=rows) == one

    @pytest.mark.parametrize("rows", [None, 1000])
    def test_records_of_any_model(self, rows: int | None, model_of: ModelOf) -> None:
        model, words_only = model_of(LLAVA), {"suppress_tokens": list(range(4))}
        with torch.inference_mode():
            records = [record(model, row, new_tokens=3, **words_only) for row in LLAVA.rows()]
        made = train_controller([*records, records[0]], size=2, steps=5, rows=rows)
        assert made.dim == DIM
        assert np.isfinite(made.arrays["read"]).all()
        cache = PolicyCache(model, releasing(made))
        new_tokens(model, llava_row(7, 1, 9, 1), 4, past_key_values=cache)
        assert cache.report().recalled > 0
        narrow = train_controller([pointed(0, dtype=torch.bfloat16)], size=2, steps=2, rows=rows)
        assert np.isfinite(narrow.arrays["ask"]).all()

    def test_what_cannot_be_learned_from(self, tmp_path: Path) -> None:
        with pytest.raises(PolicyError, match="nothing to learn from"):
            train_controller([])
        with pytest.raises(RecordError, match="no record"):
            train_controller([tmp_path / "none.safetensors"])
        other = pointed(0)
        other = replace(
            other, **{name: [data[..., :6] for data in getattr(other, name)] for name in ("queries", "keys")}
        )
        with pytest.raises(PolicyError, match=r"keys of \[6, 8\] dimensions are not of one model"):
            train_controller([pointed(0), other])
        with pytest.raises(PolicyError, match="is too short"):
            train_controller([pointed(0, prompt=1, steps=1)])
        assert train_controller([pointed(0, prompt=1, steps=2)], size=1, steps=2).size == 1

    @pytest.mark.parametrize("arguments", [{"size": 0}, {"steps": -1}, {"rows": 0}, {"size": 1.5}, {"steps": True}])
    def test_refused_arguments(self, arguments: dict[str, Any]) -> None:
        ((name, value),) = arguments.items()
        with pytest.raises(PolicyError, match=rf"train_controller\({name}={value}\)"):
            train_controller(self.LESSONS, **arguments)


def test_shared_it_is_one_schedule_for_all_layers(model_of: ModelOf) -> None:
    policy = kvpolicy.adore(rows=9, recall=2, controller=kvpolicy.Shared(some_controller()))
    assert policy.prefill is not None
    policy = replace(policy, decode=None, prefill=replace(policy.prefill, recall=None, select=TopK(last=1)))
    cache = PolicyCache(model_of(LLAMA), policy)
    new_tokens(model_of(LLAMA), LLAMA.rows()[0], 1, past_key_values=cache)
    kept = {tuple(positions(view, h=h)) for view in tables(cache) for h in range(2)}
    assert len(kept) == 1


def test_example_prints_a_line_a_policy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["05_adore.py", "--steps", "20", "--rows", "12"])
    runpy.run_path(str(ROOT / "examples" / "05_adore.py"), run_name="__main__")
    out = capsys.readouterr().out
    head, *rest = out.split("\n\n")
    assert head.startswith("GRUController(size=16, ")
    kept = {line[:24].strip(): float(line.split("%")[0].split()[-1]) for line in rest[0].splitlines()[1:]}
    assert list(kept) == ["h2o", "adore, moving average", "adore, controller", "clairvoyant"]
    assert max(kept.values()) == kept["clairvoyant"] < 100
    assert "rows came back from the archive" in out


class TestScript:
    SCRIPT = runpy.run_path(str(ROOT / "scripts" / "measure_adore.py"))

    def test_what_returns_and_stays_is_counted(self) -> None:
        counter, moving = self.SCRIPT["Returned"](), Planned(wanted=4, until=45)
        replay(pointed(0), kvpolicy.adore(rows=8, recall=3, controller=moving), listen=counter.listen)
        assert counter.count == 2 * 2  # layers, heads; once

    def test_who_knows_the_future_names_the_most(self) -> None:
        test = pointed(4, steps=3)
        scorers = {"recency": kvpolicy.Recency(), "h2o": kvpolicy.AttentionMass()}
        lines = self.SCRIPT["guesses"](scorers, [test], 6)
        mass = {line.split("|")[1].strip(): float(line.split("|")[3].strip("% ")) for line in lines[2:]}
        assert list(mass) == ["recency", "h2o", "clairvoyant"]
        assert max(mass.values()) == mass["clairvoyant"]

    def test_no_recall_is_a_recall_of_none(self) -> None:
        made = self.SCRIPT["adore"](kvpolicy.AttentionMass(), 8, 0)
        assert made.decode.recall is None
        assert self.SCRIPT["adore"](kvpolicy.AttentionMass(), 8, 2).decode.recall.rows == 2
