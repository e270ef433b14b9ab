"""The triton backend's kernels against the oracle: compiled where there is a GPU, else in Triton's interpreter.

tests/conftest.py chooses the interpreter. It is slow, so tables are small and tiles the smallest there are, 16 rows:
a table of 37 rows already has whole tiles, a rest, and tiles on both sides of the diagonal.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from driving import Request, drive, make_request, same_tables
from hypothesis import given
from hypothesis import strategies as st
from scenes import LargestTensor
from tables import ORACLE, Case, cases, in_torch, representable

from kvpolicy import BackendUnavailableError, CacheView, Column, Phase, Step, backend_by_name, h2o
from kvpolicy.backends.torch import TorchBackend

pytest.importorskip("triton")

from kvpolicy.backends.triton import TILINGS, TritonBackend, mass
from kvpolicy.backends.triton import backend as launcher
from kvpolicy.backends.triton.kernels.mass import Tiles, Tiling

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL = TritonBackend(tiling=Tiling(Tiles(16, 16, 4, 2), Tiles(16, 16, 4, 2)))
Arr = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Scene:
    """A table and a step in numpy, keys and queries in float64 that ``dtype`` can hold."""

    view: CacheView
    step: Step
    dtype: str = "float32"
    weights: Arr | None = None

    @property
    def on_device(self) -> tuple[CacheView, Step, torch.Tensor | None]:
        """The same as tensors; keys and queries in memory as models and stores have them, with strides."""

        def held(data: Arr | None) -> Any:
            return None if data is None else in_torch(np.array(data)).to(DEVICE)

        def strided(data: Arr) -> Any:
            return held(data).to(getattr(torch, self.dtype)).transpose(1, 2).contiguous().transpose(1, 2)

        view, step = self.view, self.step
        view = replace(
            view,
            keys=strided(view.keys),
            positions=held(view.positions),
            valid=held(view.valid),
            columns={name: replace(column, data=held(column.data)) for name, column in view.columns.items()},
        )
        step = replace(
            step,
            queries=strided(step.queries),
            query_positions=held(step.query_positions),
            query_valid=held(step.query_valid),
            query_reach=held(step.query_reach),
            sinks=held(step.sinks),
            ops=SMALL,
        )
        return view, step, held(self.weights)

    def mass(self, backend: TorchBackend = SMALL, **given: Any) -> torch.Tensor:
        view, step, weights = self.on_device
        made: torch.Tensor = backend.attention_mass(view, step, weights=weights, **given)
        return made.cpu()

    def due(self, **given: Any) -> Arr:
        made: Arr = ORACLE.attention_mass(self.view, self.step, weights=self.weights, **given)
        return made


def scene(
    *,
    rows: int = 37,
    queries: int | None = None,
    groups: int = 2,
    dim: int = 5,
    dtype: str = "float32",
    order: str = "whole",
    padding: tuple[int, ...] = (0, 3),
    weights: bool = False,
    reach: bool = False,
    sinks: bool = False,
    count_bias: bool = False,
    softcap: float | None = None,
) -> Scene:
    """A prompt (``whole``), its last part (``chunk``: the rows before it lie in any order, between empty slots), or
    queries whose rows are ``anywhere``, or have left.
    """
    rng, batch, heads = np.random.default_rng(0), len(padding), 2
    queries = rows if queries is None else queries
    shape, asking = (batch, heads, rows), (batch, queries)
    past = rows - queries
    gap = rows if order == "chunk" else 0  # tokens whose rows have left
    positions = np.broadcast_to(np.arange(rows) + gap, shape).copy()
    valid = positions >= gap + np.array(padding)[:, None, None]
    where = np.broadcast_to(np.arange(past, rows) + gap, asking)
    real = where >= gap + np.array(padding)[:, None]
    if order != "whole":
        free = past if order == "chunk" else rows
        for b, h in np.ndindex(batch, heads):
            positions[b, h, :free] = rng.permutation(gap + past if order == "chunk" else 2 * rows)[:free]
        empty = (np.arange(rows) < free) & (rng.random(shape) < 0.3)
        valid = valid & ~empty
        positions[empty] = -1
    if order == "anywhere":
        where = rng.integers(-1, 2 * rows, asking)
        real = rng.random(asking) < 0.8
    keys, vectors = (
        representable(2 * rng.standard_normal((batch, n, m, dim)), dtype)
        for n, m in ((heads, rows), (heads * groups, queries))
    )
    count = np.where(valid, rng.integers(1, 5, shape), 0).astype(np.float32)
    seen = np.full(batch, rows)
    step = Step(
        *(Phase.PREFILL, seen, seen, np.zeros((batch, heads), np.int64), vectors, where, real, 0.4, ORACLE),
        count_bias=count_bias,
        whole_pass=order != "anywhere",
        query_reach=np.maximum(where, rng.integers(0, 2**40, asking) % (2 * rows)) if reach else None,
        softcap=softcap,
        sinks=2 * rng.standard_normal(heads * groups) if sinks else None,
    )
    view = CacheView(keys, keys, positions, valid, {"count": Column(count, "sum")})
    return Scene(view, step, dtype, rng.random(asking) if weights else None)


SCENES: dict[str, dict[str, Any]] = {
    "a prompt": {},
    "one token": {"rows": 1, "padding": (0,)},
    "two tokens": {"rows": 2, "padding": (0, 1)},
    "exactly two tiles": {"rows": 32, "groups": 1},
    "a wide head": {"dim": 40, "groups": 1},
    "three query heads a head": {"groups": 3, "rows": 19},
    "float16": {"dtype": "float16"},
    "bfloat16": {"dtype": "bfloat16"},
    "padding and nothing else": {"rows": 5, "padding": (5, 2)},
    "padding of several tiles": {"padding": (35, 17), "groups": 1},
    "a chunk": {"order": "chunk", "queries": 18},
    "a chunk of two": {"order": "chunk", "queries": 2},
    "a decode step": {"order": "anywhere", "queries": 1},
    "rows anywhere": {"order": "anywhere"},
    "more queries than rows": {"order": "anywhere", "rows": 7, "queries": 35},
    "an image that sees itself": {"reach": True},
    "weights": {"weights": True},
    "a capped logit": {"softcap": 0.7},
    "sinks": {"sinks": True},
    "counts": {"count_bias": True, "order": "chunk", "queries": 21},
    "everything at once": {
        **{"weights": True, "reach": True, "sinks": True, "count_bias": True, "softcap": 3.0},
        **{"order": "anywhere", "dtype": "bfloat16", "queries": 23},
    },
}


@pytest.mark.parametrize("group", ["mean", "max"])
@pytest.mark.parametrize("name", SCENES)
def test_it_is_the_oracles(name: str, group: Any) -> None:
    made = scene(**SCENES[name])
    got = made.mass(group=group)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), made.due(group=group), rtol=0, atol=2e-5)
    assert not got.numpy()[~made.view.valid].any()


@given(cases(dtypes=st.sampled_from(["float16", "bfloat16", "float32"])), st.integers(1, 20), st.booleans())
def test_it_is_the_oracles_on_any_table(case: Case, queries: int, bias: bool) -> None:
    batch, heads, rows = case.numpy.shape
    dtype = str(case.torch.keys.dtype).removeprefix("torch.")
    vectors = representable(2 * case.rng.standard_normal((batch, heads, queries, case.numpy.keys.shape[-1])), dtype)
    where = case.rng.integers(0, 3 * rows, (batch, queries))
    seen, kept = np.full(batch, 9), np.zeros((batch, heads), np.int64)
    real = case.rng.random((batch, queries)) < 0.7
    step = Step(Phase.DECODE, seen, seen, kept, vectors, where, real, 0.7, ORACLE, count_bias=bias, whole_pass=False)
    made = Scene(case.numpy, step, dtype)
    np.testing.assert_allclose(made.mass().numpy(), made.due(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("window", [0, 1, 5])
def test_a_window_of_the_latest_queries(window: int) -> None:
    made = scene(padding=(2, 9))
    made = replace(made, step=made.step.latest(window))
    np.testing.assert_allclose(made.mass().numpy(), made.due(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("order", ["whole", "anywhere"])
def test_what_does_not_count_may_hold_anything(order: str) -> None:
    made = scene(order=order, weights=True, count_bias=True, groups=1)
    clean = made.mass()
    absent, unasked = ~made.view.valid, ~made.step.query_valid
    assert absent.any()
    assert unasked.any()
    assert made.weights is not None
    made.view.keys[absent] = np.nan
    made.view.columns["count"].data[absent] = np.nan
    made.step.queries.swapaxes(1, 2)[unasked] = np.nan
    made.weights[unasked] = np.nan
    assert torch.equal(made.mass(), clean)


def test_a_query_that_sees_nothing_pays_nothing() -> None:
    made = scene(order="anywhere", sinks=True)
    made = replace(made, step=replace(made.step, query_positions=np.full_like(made.step.query_positions, -1)))
    assert not made.mass().any()


@pytest.mark.parametrize("tiling", [None, *TILINGS.values(), Tiling(Tiles(32, 16, 4, 2), Tiles(16, 32, 4, 2))])
def test_every_tile_gives_the_same(tiling: Tiling | None) -> None:
    made = scene(groups=1, padding=(2,), rows=67, queries=66, dtype="bfloat16")
    np.testing.assert_allclose(made.mass(TritonBackend(tiling=tiling)).numpy(), made.due(), atol=2e-5)


@pytest.mark.parametrize("name", ["a prompt", "counts", "weights"])
def test_query_heads_that_share_no_tile(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = scene(**SCENES[name])
    monkeypatch.setattr(launcher, "FEW", 0)
    np.testing.assert_allclose(made.mass().numpy(), made.due(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("programs", [1, 1000])
def test_rows_that_are_split_among_programs_or_not(programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = scene(order="anywhere", queries=3, sinks=True, rows=70)
    monkeypatch.setattr(mass, "programs", lambda device: programs)
    np.testing.assert_allclose(made.mass().numpy(), made.due(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("scale", [0.0, -0.3])
def test_a_scale_that_is_not_positive(scale: float) -> None:
    made = scene(rows=19, groups=1)
    made = replace(made, step=replace(made.step, scale=scale))
    np.testing.assert_allclose(made.mass().numpy(), made.due(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("group", ["mean", "max"])
def test_log_sums_that_the_attention_gave(group: Any) -> None:
    made = scene(order="anywhere", padding=(0, 3))
    view, step, _ = made.on_device
    keys = view.keys.repeat_interleave(2, 1)
    hidden = (view.positions[:, :, None] > step.query_positions[:, None, :, None]) | ~view.valid[:, :, None]
    logits = (step.queries @ keys.mT * step.scale).masked_fill(hidden.repeat_interleave(2, 1), -torch.inf)
    log_sums = logits.logsumexp(-1).masked_fill(~step.query_valid[:, None], torch.nan)
    assert (log_sums == -torch.inf).any()  # a query that counts and sees nothing
    got = SMALL.attention_mass(view, replace(step, log_sums=log_sums), group=group)
    np.testing.assert_allclose(got.cpu().numpy(), made.due(group=group), rtol=0, atol=2e-5)


def test_it_is_deterministic() -> None:
    made = scene(groups=1)
    assert torch.equal(made.mass(), made.mass())


def test_its_memory_is_linear_in_the_prompt() -> None:
    view, step, _ = scene(rows=100, padding=(0,), groups=1).on_device
    with LargestTensor() as largest:
        SMALL.attention_mass(view, step)
    assert 0 < largest.elements <= view.keys.nbytes  # the interpreter copies what it is given, byte by byte


@pytest.mark.parametrize(("dtype", "above"), [("float64", None), ("float32", 0.3)])
def test_what_the_kernels_do_not_serve_is_the_torch_backends(dtype: str, above: float | None) -> None:
    made = scene(rows=9, dtype=dtype, weights=True)
    assert torch.equal(made.mass(above=above), made.mass(TorchBackend(), above=above))


def test_no_queries_ask_for_nothing() -> None:
    made = scene(rows=4, queries=0)
    assert made.mass().tolist() == np.zeros(made.view.shape).tolist()


def test_a_policy_keeps_the_rows_that_it_keeps_on_torch() -> None:
    request: Request = make_request(seed=0, prompt=19, steps=4, padding=(0, 3), batch=2)
    on_torch = drive(h2o(keep=0.5), request, dtype="float32")
    on_triton = drive(h2o(keep=0.5), request, dtype="float32", backend="triton")
    for one, other in zip(on_triton.passes, on_torch.passes, strict=True):
        same_tables(one, other, tolerance=1e-5)


# Where it is, and where it is not ----------------------------------------------------------------------------------


def test_it_is_found_by_name_and_prints_as_its_constructor() -> None:
    made = backend_by_name("triton")
    assert made == TritonBackend()
    assert made.name == "triton"
    assert repr(SMALL).startswith(f"TritonBackend(chunk_elements={1 << 22}, tiling=Tiling(sums=Tiles(queries=16, ")


def test_nobody_imports_it_unasked() -> None:
    asked = "import sys, kvpolicy.testing, kvpolicy.backends.torch; sys.exit('kvpolicy.backends.triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", asked], check=False).returncode == 0


def test_without_triton_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("kvpolicy.backends.triton")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(BackendUnavailableError, match=r"needs triton.*pip install .kvpolicy\[triton\]"):
        backend_by_name("triton")


def test_without_a_gpu_it_says_what_to_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendUnavailableError, match=r"needs a CUDA device.*TRITON_INTERPRET=1"):
        backend_by_name("triton")


def test_tensors_elsewhere_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "INTERPRETED", False)
    view, step, _ = scene(rows=2).on_device
    with pytest.raises(BackendUnavailableError, match="the queries are on cpu"):
        SMALL.attention_mass(view, replace(step, queries=step.queries.cpu()))
