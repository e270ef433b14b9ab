"""`decode_attention` against a reference in float64: compiled where there is a GPU, else in Triton's interpreter.

Wherever torch would hand out memory as it finds it, these tests fill it with NaN first, the results included.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tables import representable

pytest.importorskip("triton")

from kvpolicy import CacheView, Plan, Rows
from kvpolicy.backends._torch_vectors import Ragged, Window, laid_out
from kvpolicy.backends.torch import TorchBackend
from kvpolicy.backends.triton import decode as launcher
from kvpolicy.backends.triton.decode import decode_attention, storage_of

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Arr = np.ndarray[Any, np.dtype[Any]]


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)  # fills what `torch.empty` returns
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@dataclass(frozen=True)
class Scene:
    """A table and a query a batch row in numpy, all in numbers that ``dtype`` can hold."""

    queries: Arr  # [B, Hq, D]
    keys: Arr  # [B, H, S, D]
    values: Arr
    dtype: str = "float32"
    visible: Arr | None = None
    length: Arr | None = None
    bias: Arr | None = None
    sinks: Arr | None = None
    softcap: float | None = None
    scale: float = 0.4

    def due(self, group: str) -> tuple[Arr, Arr]:
        """Output [B, Hq, Dv] and shares [B, H, S], a query head at a time."""
        batch, heads, rows, _ = self.keys.shape
        groups = self.queries.shape[1] // heads
        out = np.zeros((*self.queries.shape[:2], self.values.shape[-1]))
        shares = np.zeros((batch, heads, groups, rows))
        for b, h, g in np.ndindex(batch, heads, groups):
            seen = np.ones(rows, dtype=bool) if self.visible is None else self.visible[b, h].copy()
            if self.length is not None:
                seen &= np.arange(rows) < self.length[b, h]
            if not seen.any():
                continue
            logits = self.scale * (self.keys[b, h, seen] @ self.queries[b, h * groups + g])
            if self.softcap is not None:
                logits = self.softcap * np.tanh(logits / self.softcap)
            if self.bias is not None:
                logits = logits + self.bias[b, h, seen]
            most = logits.max()
            whole = np.exp(logits - most).sum()
            if self.sinks is not None:
                whole += np.exp(self.sinks[h * groups + g] - most)
            shares[b, h, g, seen] = np.exp(logits - most) / whole
            out[b, h * groups + g] = shares[b, h, g, seen] @ self.values[b, h, seen]
        return out, shares.mean(2) if group == "mean" else shares.max(2)

    def tensors(self) -> dict[str, Any]:
        """The arguments of `decode_attention`; the vectors in memory as models and stores have them, with strides."""
        dtype = getattr(torch, self.dtype)

        def held(data: Arr | None) -> Any:
            return None if data is None else torch.tensor(data, device=DEVICE)

        def window(data: Arr | None, empty: Any) -> Any:
            """The first rows of a larger storage."""
            if data is None:
                return None
            storage = held(np.full((*data.shape[:2], data.shape[2] + 3, *data.shape[3:]), empty, data.dtype))
            storage[:, :, : data.shape[2]] = held(data)
            return storage

        def first(storage: Any) -> Any:
            return None if storage is None else storage[:, :, : self.keys.shape[2]]

        return {
            "queries": held(self.queries)[:, None].to(dtype).transpose(1, 2),
            "keys": first(window(self.keys, np.nan).to(dtype)),
            "values": first(window(self.values, np.nan).to(dtype)),
            "visible": first(window(self.visible, True)),
            "bias": first(window(None if self.bias is None else self.bias.astype(np.float32), np.nan)),
            "length": held(self.length),
            "sinks": held(self.sinks),
            "scale": self.scale,
            "softcap": self.softcap,
        }

    def flat(self) -> dict[str, Any]:
        """The same with the heads' rows one after another, as `Ragged` keeps them, no more than ``length`` of each."""
        assert self.length is not None
        given, room = self.tensors(), self.length.ravel()
        rows = np.concatenate([head * self.keys.shape[2] + np.arange(count) for head, count in enumerate(room)])
        for name in ("keys", "values"):
            given[name] = given[name].flatten(0, 2)[torch.tensor(rows, device=DEVICE)]
        base = (np.cumsum(room) - room).reshape(self.length.shape)
        return {**given, "base": torch.tensor(base, device=DEVICE)}


def scene(
    *,
    batch: int = 2,
    heads: int = 2,
    groups: int = 1,
    rows: int = 37,
    dim: int = 16,
    value_dim: int | None = None,
    dtype: str = "float32",
    holes: float = 0.0,
    length: bool = False,
    bias: bool = False,
    sinks: bool = False,
    softcap: float | None = None,
) -> Scene:
    rng = np.random.default_rng(0)
    shapes = ((batch, heads * groups, dim), (batch, heads, rows, dim), (batch, heads, rows, value_dim or dim))
    queries, keys, values = (representable(rng.standard_normal(shape), dtype) for shape in shapes)
    table = (batch, heads, rows)
    held = rng.integers(0, rows + 1, table[:2])
    held.flat[-1], held.flat[0] = 0, rows
    return Scene(
        *(2 * queries, keys, values, dtype),
        visible=rng.random(table) >= holes if holes else None,
        length=held if length else None,
        bias=np.log(rng.integers(1, 9, table)) if bias else None,
        sinks=2 * rng.standard_normal(heads * groups) if sinks else None,
        softcap=softcap,
        scale=2 * dim**-0.5,
    )


def check(made: Scene, given: dict[str, Any] | None = None, *, group: Any = "mean") -> None:
    given = made.tensors() if given is None else given
    out, shares = decode_attention(**given, want_shares=True, group=group)
    due, due_shares = made.due(group)
    assert shares is not None
    assert (out.dtype, shares.dtype) == (given["values"].dtype, torch.float32)
    rough = {"float32": 2e-6, "float16": 2e-3, "bfloat16": 1e-2}[made.dtype]
    np.testing.assert_allclose(out[:, :, 0].double().cpu().numpy(), due, rtol=0, atol=rough * np.abs(due).max())
    np.testing.assert_allclose(shares.cpu().numpy(), due_shares, rtol=0, atol=2e-6)
    assert not shares.cpu().numpy()[due_shares == 0].any()


EVERYTHING: dict[str, Any] = {"holes": 0.3, "length": True, "bias": True, "sinks": True, "softcap": 3.0}
SCENES: dict[str, dict[str, Any]] = {
    "a head of its own for every query": {},
    "four query heads a head": {"groups": 4},
    "seven query heads a head": {"groups": 7, "rows": 19},
    "more query heads than a program holds": {"groups": 20, "heads": 1, "batch": 1, "rows": 9},
    "one row": {"rows": 1},
    "exactly two tiles": {"rows": 64, "groups": 2},
    "holes": {"holes": 0.4},
    "holes, grouped": {"holes": 0.4, "groups": 4},
    "heads of different lengths": {"length": True},
    "heads of different lengths, grouped": {"length": True, "groups": 7},
    "a capped logit": {"softcap": 0.7},
    "sinks": {"sinks": True, "groups": 4},
    "log counts": {"bias": True},
    "everything": EVERYTHING,
    "everything, grouped": {**EVERYTHING, "groups": 7, "dtype": "float16"},
    "64 wide": {"dim": 64, "dtype": "float16"},
    "80 wide": {"dim": 80, "dtype": "bfloat16", "groups": 2},
    "128 wide": {"dim": 128, "dtype": "bfloat16"},
    "192 and 128 wide": {"dim": 192, "value_dim": 128, "heads": 1},
    "192 and 128 wide, grouped": {"dim": 192, "value_dim": 128, "heads": 1, "groups": 4},
    "narrow values": {"dim": 40, "value_dim": 5},
}


@pytest.mark.parametrize("group", ["mean", "max"])
@pytest.mark.parametrize("name", SCENES)
def test_it_is_the_references(name: str, group: Any) -> None:
    check(scene(**SCENES[name]), group=group)


@pytest.mark.parametrize(("rows", "groups"), [(1, 1), (1, 4), (41, 1), (41, 4), (64, 1), (18, 20)])
def test_a_head_that_several_programs_share(rows: int, groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "_WORTH", 8)
    monkeypatch.setattr(launcher, "_TILE_BYTES", 1)
    monkeypatch.setattr(launcher, "_RESCALED", 32)
    check(scene(**EVERYTHING, rows=rows, groups=groups, batch=1, heads=1 if groups == 20 else 2))
    check(scene(rows=rows, groups=groups, batch=1, heads=1), group="max")


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("parts", [1, 4])
def test_rows_one_head_after_another(groups: int, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "_WORTH", 41 // parts)
    made = scene(**EVERYTHING, rows=41, groups=groups, batch=2)
    check(made, made.flat())


@pytest.mark.parametrize("kept", [[[30, 4], [11, 20]], [[20, 20], [20, 20]]])
def test_it_reads_the_rows_of_a_store_where_they_lie(kept: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    keys, values, queries = (torch.randn(2, heads, rows, 16) for heads, rows in ((2, 32), (2, 32), (6, 1)))
    positions, counts = torch.arange(32, device=DEVICE).expand(2, 32), np.array(kept)
    store = TorchBackend().store(0, 1)
    store.append(Rows(keys.to(DEVICE), values.to(DEVICE), positions, positions >= 0))
    store.apply(Plan(keep=positions[0] < torch.tensor(kept, device=DEVICE)[..., None]), counts)
    monkeypatch.delattr(Ragged, "gather")
    view = store.view()
    assert isinstance(view.keys, Window) == (counts.min() < counts.max())
    seen: Any = {**storage_of(view), "visible": view.valid}
    out, shares = decode_attention(queries.to(DEVICE), **seen, scale=0.5, want_shares=True)
    assert shares is not None
    arrays = (data.double().numpy() for data in (queries[:, :, 0], keys[:, :, :30], values[:, :, :30]))
    due, due_shares = Scene(*arrays, length=counts, scale=0.5).due("mean")
    np.testing.assert_allclose(out[:, :, 0].cpu(), due, atol=1e-5)
    np.testing.assert_allclose(shares.cpu(), due_shares[..., : view.shape[2]], atol=1e-6)


@pytest.mark.filterwarnings("ignore:invalid value")  # numpy's, of logits that the kernel is about to drop
@pytest.mark.parametrize("groups", [1, 4])
def test_what_is_hidden_may_hold_anything(groups: int) -> None:
    made = scene(**EVERYTHING, groups=groups, rows=21)
    assert made.visible is not None
    assert made.length is not None
    assert made.bias is not None
    hidden = ~made.visible | (np.arange(21) >= made.length[..., None])
    clean = decode_attention(**made.tensors(), want_shares=True)
    for trash, flat in ((np.nan, False), (np.nan, True), (np.inf, False)):
        dirty = replace(made, keys=made.keys.copy(), values=made.values.copy(), bias=made.bias.copy())
        for data in (dirty.keys, dirty.values, dirty.bias):
            data[hidden] = trash
        again = decode_attention(**(dirty.flat() if flat else dirty.tensors()), want_shares=True)
        assert all(torch.equal(one, other) for one, other in zip(clean, again, strict=True))


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("sinks", [False, True])
def test_a_query_that_sees_nothing_gives_zeros(groups: int, sinks: bool) -> None:
    made = scene(heads=1, rows=5, groups=groups, sinks=sinks)
    made = replace(made, visible=np.zeros((2, 1, 5), dtype=bool))
    for result in decode_attention(**made.tensors(), want_shares=True):
        assert not result.any()


def test_logits_that_would_overflow_do_not() -> None:
    made = scene()
    for softcap in (None, 1.0):
        check(replace(made, queries=made.queries * 1000, softcap=softcap))


def test_a_stride_of_any_kind() -> None:
    given = scene(dim=32, groups=2).tensors()
    due = decode_attention(**given, want_shares=True)
    strided = {**given, "visible": torch.ones(37, 2, 2, dtype=torch.bool, device=DEVICE).permute(2, 1, 0)}
    for name in ("queries", "keys", "values"):
        strided[name] = given[name].permute(3, 2, 0, 1).contiguous().permute(2, 3, 1, 0)
    for one, other in zip(decode_attention(**strided, want_shares=True), due, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("worth", [10, 256])
def test_shares_are_there_for_those_who_want_them(groups: int, worth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "_WORTH", worth)
    given = scene(groups=groups, heads=1).tensors()
    out, nothing = decode_attention(**given)
    assert nothing is None
    assert torch.equal(out, decode_attention(**given, want_shares=True)[0])


def test_it_is_deterministic() -> None:
    given = scene(groups=4).tensors()
    once, again = (decode_attention(**given, want_shares=True) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(once, again, strict=True))


@pytest.mark.parametrize(("batch", "rows"), [(0, 4), (2, 0)])
def test_no_table_gives_zeros(batch: int, rows: int) -> None:
    vectors = torch.ones(batch, 3, rows, 16, device=DEVICE)
    out, shares = decode_attention(vectors.new_ones(batch, 3, 1, 16), vectors, vectors, scale=1.0, want_shares=True)
    assert shares is not None
    assert out.tolist() == torch.zeros(batch, 3, 1, 16).tolist()
    assert shares.shape == (batch, 3, rows)


@pytest.mark.parametrize(("backend", "groups"), [("aot_eager", 1), ("eager", 4)])
def test_it_is_one_operator_of_a_compiled_program(backend: str, groups: int) -> None:
    given = scene(**EVERYTHING, groups=groups, rows=9).tensors()

    def program(given: dict[str, Any]) -> Any:
        out, shares = decode_attention(**{**given, "queries": given["queries"] + 0}, want_shares=True)
        assert shares is not None
        return 2 * out, 2 * shares, decode_attention(**given)[0]

    torch.compiler.reset()
    made = torch.compile(program, fullgraph=True, backend=backend)(given)
    assert all(torch.equal(one, other) for one, other in zip(made, program(given), strict=True))


def test_a_compiled_program_reads_ragged_rows_where_they_lie() -> None:
    vectors = torch.randn(2, 2, 9, 16, device=DEVICE)
    ragged = laid_out(vectors, np.array([[9, 2], [1, 3]]))
    slots = torch.arange(9, device=DEVICE).expand(2, 2, 9)

    def program(heads: Ragged) -> Any:
        view = CacheView(heads.window(9), heads.window(9), slots, slots < heads.length[..., None], {})
        return decode_attention(vectors[:, :, :1], **storage_of(view), visible=view.valid, scale=0.5)[0]

    nodes = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        nodes.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    torch.compiler.reset()
    assert torch.equal(torch.compile(program, fullgraph=True, backend=backend)(ragged), program(ragged))
    assert any("decode_attention" in node for node in nodes)
    assert not any("index_select" in node for node in nodes)


def test_the_operator_is_what_it_says() -> None:
    given = scene(heads=1, rows=5).tensors()
    names = ("queries", "keys", "values", "visible", "base", "length", "bias", "scale", "softcap", "sinks")
    for want_shares in (True, False):
        arguments = (*(given.get(name) for name in names), want_shares, True)
        torch.library.opcheck(launcher._operator, arguments)


def test_what_it_does_not_serve_is_refused() -> None:
    given = scene().tensors()
    with pytest.raises(ValueError, match=r"one of float16, bfloat16 and float32.*torch.float64"):
        decode_attention(**{**given, "values": given["values"].double()})
    with pytest.raises(ValueError, match=r"one query a batch row; these are 37"):
        decode_attention(**{**given, "queries": given["keys"]})
    with pytest.raises(ValueError, match=r"base=...\) needs visible="):
        decode_attention(**scene(length=True).flat())


# As a GPU's compiler sees it ---------------------------------------------------------------------------------------

COMPILE = """
import re
import subprocess
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kvpolicy.backends.triton import decode as launcher

OPTIONS = ("num_warps", "num_stages")


class Compiled:
    "A kernel that is compiled for the arguments it is launched with, and not run."

    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        return self.launch

    def launch(self, *args, **kwargs):
        options = {name: kwargs.pop(name) for name in OPTIONS if name in kwargs}
        given = {**dict(zip(self.kernel.arg_names, args)), **kwargs}
        types, fixed, attributes = {}, {}, {}
        for place, (name, value) in enumerate(given.items()):
            if isinstance(value, torch.Tensor):
                types[name] = "*" + triton.runtime.jit.type_canonicalisation_dict[str(value.dtype).split(".")[-1]]
            elif value is None or value == 1 or name.isupper():
                types[name], fixed[name] = "constexpr", value
            else:
                types[name] = "fp32" if isinstance(value, float) else "i32"
            if name not in fixed and (isinstance(value, torch.Tensor) or value % 16 == 0):
                attributes[place,] = [["tt.divisibility", 16]]
        source = ASTSource(self.kernel, types, fixed, attributes)
        made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        ptx = Path("kernel.ptx")
        ptx.write_text(made.asm["ptx"])
        ptxas = [triton.knobs.nvidia.ptxas.path, "-v", "--gpu-name=sm_90a", str(ptx), "-o", "kernel.cubin"]
        told = subprocess.run(ptxas, capture_output=True, text=True, check=True).stderr
        assert "0 bytes spill stores, 0 bytes spill loads" in told, told
        wide = re.findall(r"ld.global[.\\w]*v4.b32|cp.async.cg.shared.global", made.asm["ptx"])
        assert len(wide) >= 2, "keys and values, 16 bytes at a time"
        print(self.kernel.__name__, options, re.search(r"Used \\d+ registers", told)[0])


launcher.attend, launcher.bring_together = Compiled(launcher.attend), Compiled(launcher.bring_together)


def launch(dtype, batch, heads, groups, rows, dim, value_dim, **given):
    flat = torch.empty(batch * heads * 16, max(dim, value_dim), dtype=dtype)
    given = {"base": torch.zeros(batch, heads, dtype=torch.int64), "length": torch.ones(batch, heads).long(), **given}
    visible = torch.ones(batch, heads, rows + 3, dtype=torch.bool)[..., :rows]
    queries = torch.empty(batch, heads * groups, 1, dim, dtype=dtype)
    vectors = flat[:, :dim], flat[:, :value_dim]
    launcher.decode_attention(queries, *vectors, visible=visible, scale=0.1, want_shares=True, **given)


launch(torch.bfloat16, 16, 32, 1, 307, 128, 128)
launch(torch.bfloat16, 16, 4, 7, 307, 128, 128, sinks=torch.ones(28), softcap=30.0, bias=torch.ones(16, 4, 307))
launch(torch.float16, 1, 8, 4, 8192, 64, 64)
"""


def test_the_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    settings = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", COMPILE]
    done = subprocess.run(command, env=settings, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
