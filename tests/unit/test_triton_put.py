"""A new row written by the kernel, against the same row written by torch, in stores that go through the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from storing import arriving, kept_by

pytest.importorskip("triton")

from kvpolicy import Column, Plan, Rows
from kvpolicy.backends import triton as triton_backend
from kvpolicy.backends.torch import TorchBackend
from kvpolicy.backends.triton import TritonBackend

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def on_device(rows: Rows) -> Rows:
    named = {name: getattr(rows, name).to(DEVICE) for name in ("keys", "values", "positions", "valid")}
    return replace(rows, **named, columns={name: data.to(DEVICE) for name, data in rows.columns.items()})


def same(one: Any, other: Any) -> bool:
    """Both stores show the same rows in the same slots."""
    mine, theirs = one.view(), other.view()
    assert set(mine.columns) == set(theirs.columns)
    alike = [torch.equal(mine.positions, theirs.positions), torch.equal(mine.valid, theirs.valid)]
    alike += [torch.equal(c.data, theirs.columns[name].data) for name, c in mine.columns.items()]
    held = mine.positions >= 0
    vectors = ((mine.keys, theirs.keys), (mine.values, theirs.values))
    return all(alike) and all(torch.equal(a[held], b[held]) for a, b in vectors)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("ragged", [False, True])
@settings(max_examples=8)
@given(st.integers(1, 2), st.booleans(), st.integers(0, 2**32 - 1))
def test_it_is_what_torch_writes(dtype: str, ragged: bool, batch: int, segments: bool, seed: int) -> None:
    rng, heads, prompt = np.random.default_rng(seed), 2, 24
    stores = [ops.store(0, 1) for ops in (TritonBackend(), TorchBackend())]

    def rows(start: int, count: int) -> Rows:
        made = on_device(arriving("torch", start, count, batch=batch, heads=heads, dim=5))
        noise = torch.tensor(rng.standard_normal(made.keys.shape)).to(DEVICE, getattr(torch, dtype))
        valid = torch.tensor(rng.random((batch, count)) < 0.8).to(DEVICE)
        columns = {"segment": torch.tensor(rng.integers(0, 4, (batch, 3)), device=DEVICE)[:, -1:].expand(-1, count)}
        # Values have dims of their own, and lie as models lay them.
        values = noise[..., :3].transpose(1, 2).contiguous().transpose(1, 2)
        return Rows(noise, values, made.positions, valid, columns if segments else {})

    first = rows(0, prompt)
    mass = torch.tensor(rng.random((batch, heads, prompt)), device=DEVICE, dtype=torch.float32)
    kept = rng.integers(1, 20, (batch, heads)) if ragged else np.full((batch, heads), 9)
    keep = torch.arange(prompt, device=DEVICE) < torch.tensor(kept, device=DEVICE)[..., None]
    for store in stores:
        store.append(first)
        store.observe({"mass": Column(mass, "sum")})
        store.apply(Plan(keep=keep), kept)
    for step in range(4):
        new = rows(prompt + step, 1)
        for store in stores:
            store.append(new)
        assert same(*stores)
        view = stores[0].view()
        keep = view.valid | (view.positions < 0)
        gone = torch.tensor(rng.integers(0, view.shape[2], (batch, heads, 1)), device=DEVICE)
        keep = keep.scatter(-1, gone, False) & (view.positions >= 0)
        for store in stores:
            store.apply(Plan(keep=keep), kept_by(keep.cpu()))
        assert same(*stores)


def test_what_the_kernel_cannot_write_torch_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_backend, "put", None)
    for dtype, columns in ((np.float64, {}), (np.float32, {"segment": torch.full((1, 1), 2, device=DEVICE)})):
        store = TritonBackend().store(0, 1)
        store.append(on_device(arriving("torch", 0, 5, dtype=dtype)))
        store.apply(Plan(keep=torch.ones(1, 2, 5, dtype=torch.bool, device=DEVICE)), np.full((1, 2), 5))
        view = store.append(replace(on_device(arriving("torch", 5, 1, dtype=dtype)), columns=columns))
        assert view.keys[view.positions == 5][:, 0].tolist() == [5, 1005]
        assert {name: c.data[view.positions == 5].tolist() for name, c in view.columns.items() if name != "count"} == {
            name: [2, 2] for name in columns
        }
