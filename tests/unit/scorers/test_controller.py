"""GRUController against a network written in loops, and against torch's GRU; as a value, and as a file."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from driving import Request, drive, make_request, same_tables
from scoring import BACKENDS, CHUNKS, agrees, watch

from kvpolicy import (
    FixedRows,
    GRUController,
    MissingColumnError,
    Pipeline,
    Policy,
    PolicyError,
    Shared,
    TopRecall,
    adore,
)

SIZE, DIM = 3, 4


def arrays(seed: int = 0, size: int = SIZE, dim: int = DIM) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    shapes = GRUController(dim, size, bytes(4 * (3 * size * (dim + 1 + size) + size + dim * size + size + 1))).arrays
    return {name: rng.standard_normal(data.shape).astype(np.float32) for name, data in shapes.items()}


def controller(seed: int = 0, **sizes: int) -> GRUController:
    return GRUController.from_arrays(arrays(seed, **sizes))


def features(vectors: Any) -> list[float]:
    """Of one token, from its vectors of all heads [H, D]."""
    mean = [sum(float(v[d]) for v in vectors) / len(vectors) for d in range(len(vectors[0]))]
    length = math.sqrt(sum(x * x for x in mean))
    return [x / length * math.sqrt(len(mean)) if length else 0.0 for x in mean]


def codes(made: GRUController, keys: Any) -> list[list[float]]:
    """The code of each token of [H, N, D], unit by unit."""
    w, size, out = {n: a.astype(float) for n, a in made.arrays.items()}, made.size, []
    state = [0.0] * size
    for t in range(keys.shape[1]):
        x = features(keys[:, t])

        def pushed(unit: int, x: list[float] = x) -> float:
            return float(w["read_bias"][unit] + sum(x[d] * w["read"][d, unit] for d in range(len(x))))

        def pulled(unit: int, state: list[float] = state) -> float:
            return float(sum(state[i] * w["state"][i, unit] for i in range(size)))

        new = []
        for i in range(size):
            g = 1 / (1 + math.exp(-(pushed(i) + pulled(i))))
            z = 1 / (1 + math.exp(-(pushed(size + i) + pulled(size + i))))
            n = math.tanh(pushed(2 * size + i) + g * (pulled(2 * size + i) + float(w["state_bias"][i])))
            new.append((1 - z) * n + z * state[i])
        state = new
        out.append(state)
    return out


def importance(made: GRUController, known: Sequence[Sequence[float]], query: Any, now: int, row: int) -> float:
    """Of a row for token ``now``, whose queries are [Hq, D]."""
    if row == now:
        return math.inf
    w, q = made.arrays, features(query)
    wanted = [
        w["ask_bias"][i].astype(float) + sum(q[d] * float(w["ask"][d, i]) for d in range(len(q)))
        for i in range(made.size)
    ]
    fit = sum(u * c for u, c in zip(wanted, known[row], strict=True))
    return float(fit + float(w["age"][0]) * math.log1p(now - row))


def formula(made: GRUController) -> Any:
    def scores(request: Request, seen: int) -> list[list[float]]:
        known, query = codes(made, request.keys[0, 0, :, :seen]), request.queries[0, 0, :, seen - 1]
        line = [importance(made, known, query, seen - 1, row) for row in range(seen)]
        return [line] * request.keys.shape[2]

    return scores


class TestScores:
    @pytest.mark.parametrize("backend", BACKENDS)
    def test_they_are_the_formula(self, backend: str) -> None:
        """Whole and in chunks, beside padding, with grouped heads."""
        agrees(controller(), formula(controller()), backend=backend)

    def test_of_other_sizes(self) -> None:
        agrees(controller(1, size=1), formula(controller(1, size=1)), chunked=False)
        agrees(controller(2, size=9), formula(controller(2, size=9)), chunked=False)

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
    def test_narrow_keys_are_read_in_float32(self, dtype: str) -> None:
        agrees(controller(), formula(controller()), dtype=dtype, tolerance=2e-5, chunked=False)

    def test_the_gru_is_that_of_torch(self) -> None:
        made, request = controller(size=5), make_request(batch=2, prompt=9, steps=0)
        gru = torch.nn.GRU(DIM, 5, batch_first=True, dtype=torch.float64)
        w = {name: torch.tensor(data, dtype=torch.float64) for name, data in made.arrays.items()}
        gru.weight_ih_l0.data, gru.weight_hh_l0.data = w["read"].T, w["state"].T
        gru.bias_ih_l0.data = w["read_bias"]
        gru.bias_hh_l0.data = torch.cat([torch.zeros(10, dtype=torch.float64), w["state_bias"]])
        read = torch.tensor([[features(request.keys[0, b, :, t]) for t in range(9)] for b in range(2)]).double()
        (seen,) = watch(made, request)
        for i, code in enumerate(gru(read)[0].unbind(-1)):
            for h in range(2):
                torch.testing.assert_close(seen.view.columns[f"code{i}"].data[:, h], code.detach())

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_rows_that_left_change_no_code(self, backend: str) -> None:
        """The state goes on from the newest row, whatever was evicted; survivors keep the code that they had."""
        made, request, keep = controller(), make_request(prompt=9, steps=3), [0, 3, 8]
        known = codes(made, request.keys[0, 0])
        for seen in watch(made, request, backend=backend, keep=keep)[1:]:
            now = int(seen.step.seen[0]) - 1
            positions, scores = seen.line(0, 1)
            assert positions == [*keep, *range(9, now + 1)]
            query = request.queries[0, 0, :, now]
            assert scores == pytest.approx([importance(made, known, query, now, row) for row in positions])

    @pytest.mark.parametrize("chunks", CHUNKS)
    def test_a_chunked_prompt_leaves_the_same_table(self, chunks: tuple[int, ...]) -> None:
        request = make_request(layers=2, batch=2, prompt=12, steps=4, padding=(0, 5))
        policy = adore(rows=5, recall=2, controller=controller())
        whole, parts = drive(policy, request, prompt_length=12), drive(policy, request, chunks=chunks)
        for one, other in zip(whole.passes[1:], parts.passes[len(chunks) :], strict=True):
            same_tables(one, other, tolerance=1e-9)

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_an_archived_row_is_worth_what_it_would_be_in_the_table(self, backend: str) -> None:
        """Nothing is fetched: keys and values of an archive may be anywhere."""
        made, request = controller(), make_request(prompt=9, steps=2)
        seen = watch(made, request, backend=backend)[-1]
        old = seen.view.positions < 6
        archive = type(seen.view)(
            keys=None,
            values=None,
            positions=seen.view.xp.where(old, seen.view.positions, -1),
            valid=seen.view.valid & old,
            columns=seen.view.columns,
        )
        scores = seen.step.ops.host(made.score(archive, seen.step))
        np.testing.assert_array_equal(scores[..., :6], seen.scores[..., :6])
        assert np.isfinite(scores[..., :6]).all()

    def test_both_backends_agree(self) -> None:
        """New rows fill the holes that others left, at another place in each head."""
        request = make_request(layers=2, batch=3, heads=3, groups=2, prompt=12, steps=9, padding=(0, 5, 11))
        policy = adore(rows=5, recall=2, controller=controller())
        for chunks in (None, (3, 9)):
            torchs, numpys = (drive(policy, request, backend=name, chunks=chunks) for name in ("torch", "numpy"))
            for one, other in zip(torchs.passes, numpys.passes, strict=True):
                same_tables(one, other, tolerance=1e-9)

    def test_padding_asks_for_nothing(self) -> None:
        made = controller()
        (seen,) = watch(made, make_request(prompt=6, steps=0))
        step = seen.step
        valid = torch.tensor([[True, True, True, True, False, False]])
        padded = made.score(seen.view, replace(step, query_valid=valid))
        queries, positions = step.queries[:, :, :4], step.query_positions[:, :4]
        due = made.score(seen.view, replace(step, queries=queries, query_positions=positions, query_valid=valid[:, :4]))
        assert torch.equal(padded[..., :4], due[..., :4])

    def test_a_row_keeps_its_own_code_when_others_fold_into_it(self) -> None:
        (seen,) = watch(controller(), make_request(steps=0))
        assert [seen.view.columns[name].on_merge for name in controller().columns] == ["keep"] * SIZE

    def test_without_its_columns(self) -> None:
        (seen,) = watch(controller(), make_request(steps=0))
        bare = type(seen.view)(seen.view.keys, seen.view.values, seen.view.positions, seen.view.valid, {})
        with pytest.raises(MissingColumnError, match="GRUController needs column 'code0'"):
            controller().score(bare, seen.step)

    def test_another_models_keys_are_refused(self) -> None:
        with pytest.raises(PolicyError, match="fitted to keys of 6 dimensions, and this model's have 4"):
            watch(controller(dim=6), make_request())


class TestInAPolicy:
    def test_one_controller_scores_table_and_archive(self) -> None:
        pipeline = adore(rows=4, controller=controller()).decode
        assert pipeline is not None
        assert pipeline.score == controller()
        assert pipeline.recall == TopRecall(controller(), rows=8)
        assert controller().columns == ("code0", "code1", "code2")
        with pytest.raises(PolicyError, match="needs the column 'code1'"):
            Pipeline(schedule=FixedRows(4), score=Shared(controller(size=1)), recall=TopRecall(controller()))
        with pytest.raises(PolicyError, match="needs the column 'code0'"):
            Pipeline(schedule=FixedRows(4), score=KeyLength(), recall=TopRecall(controller()))

    def test_shared_it_keeps_the_same_tokens_in_all_layers(self) -> None:
        request = make_request(layers=3, prompt=14, steps=0)
        policy = Policy(prefill=Pipeline(schedule=FixedRows(5), score=Shared(controller())))
        tables = drive(policy, request).passes[0].tables
        kept = {tuple(head.positions) for layer in tables for row in layer for head in row}
        assert len(kept) == 1
        own = drive(Policy(prefill=Pipeline(schedule=FixedRows(5), score=controller())), request).passes[0].tables
        assert len({tuple(layer[0][0].positions) for layer in own}) == 3

    def test_the_newest_row_always_stays(self) -> None:
        policy = Policy(
            prefill=Pipeline(schedule=FixedRows(2), score=controller()),
            decode=Pipeline(schedule=FixedRows(2), score=controller()),
        )
        for seed in range(5):
            trace = drive(policy, make_request(seed=seed, prompt=9, steps=4))
            for number, one in enumerate(trace.passes):
                assert all(head.positions[-1] == 8 + number for head in one.tables[0][0])


class KeyLength:
    def score(self, view: Any, step: Any) -> Any:
        return -view.xp.sum(view.keys**2, axis=-1)


class TestValue:
    def test_equal_weights_make_equal_controllers(self) -> None:
        one, same, other = controller(), controller(), controller(1)
        assert one == same
        assert hash(one) == hash(same)
        assert one != other
        assert pickle.loads(pickle.dumps(one)) == one
        assert adore(rows=4, controller=one) == adore(rows=4, controller=same)
        assert adore(rows=4, controller=one) != adore(rows=4, controller=other)

    def test_its_print_is_short_and_tells_controllers_apart(self) -> None:
        prints = {repr(controller(seed, size=16, dim=128)) for seed in range(8)}
        assert len(prints) == 8
        assert all(text.startswith("GRUController(size=16, fingerprint='") for text in prints)
        assert max(map(len, prints)) < 60

    def test_arrays_are_copies(self) -> None:
        made = controller()
        made.arrays["ask"][:] = 0
        assert made == controller()
        np.testing.assert_array_equal(made.arrays["read"], arrays()["read"])
        assert GRUController.from_arrays(made.arrays) == made

    def test_a_file_keeps_it(self, tmp_path: Path) -> None:
        file = tmp_path / "controller"
        controller().to_file(file)
        assert GRUController.from_file(file) == controller()
        controller(1).to_file(str(file))
        assert GRUController.from_file(str(file)) == controller(1)
        assert [path.name for path in tmp_path.iterdir()] == ["controller"]

    @pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"text", b"\x93NUMPY"])
    def test_what_is_no_file_of_it(self, content: bytes, tmp_path: Path) -> None:
        file = tmp_path / "wrong.npz"
        with pytest.raises(PolicyError, match="no controller can be read from"):
            GRUController.from_file(file)
        file.write_bytes(content)
        with pytest.raises(PolicyError, match="no controller can be read from"):
            GRUController.from_file(file)

    def test_what_is_another_file(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", **arrays())
        np.save(tmp_path / "b.npy", arrays()["ask"])
        np.savez(tmp_path / "c.npz", format=np.array("kvpolicy-gru-controller-1"), ask=arrays()["ask"])
        np.savez(tmp_path / "d.npz", format=np.array([None], dtype=object))
        for name, says in (
            ("a.npz", "is no controller of the format"),
            ("b.npy", "no controller can be read"),
            ("c.npz", "takes read, read_bias"),
            ("d.npz", "no controller can be read"),
        ):
            with pytest.raises(PolicyError, match=says):
                GRUController.from_file(tmp_path / name)

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"ask": np.zeros(3)}, r"ask has shape \(3,\)"),
            ({"read": np.zeros((4, 8))}, r"read has shape \(4, 8\); .* must be \(4, 9\)"),
            ({"age": np.float32(1)}, r"age has shape \(\)"),
            ({"state_bias": np.array([0.0, math.nan, 0.0])}, "NaN"),
            ({"ask_bias": np.array([0.0, math.inf, 0.0])}, "infinite"),
            ({"more": np.zeros(1)}, "takes read, "),
        ],
    )
    def test_refused_arrays(self, changes: dict[str, Any], says: str) -> None:
        with pytest.raises(PolicyError, match=says):
            GRUController.from_arrays({**arrays(), **changes})

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            ((0, 3, b""), "dim=0"),
            ((4, 0, b""), "size=0"),
            ((4, 3, b"1234"), "takes 364 bytes of weights; got 4 bytes"),
            ((4, 3, [0.0] * 91), "got a list"),
        ],
    )
    def test_refused_arguments(self, arguments: Any, says: str) -> None:
        with pytest.raises(PolicyError, match=says):
            GRUController(*arguments)


def test_every_head_scores_a_token_alike() -> None:
    made, request = controller(), make_request(heads=3, prompt=10, steps=2)
    for backend in BACKENDS:
        seen = watch(made, request, backend=backend, keep=[1, 2, 9])[-1]
        np.testing.assert_allclose(seen.scores, seen.scores[:, :1].repeat(3, axis=1))
