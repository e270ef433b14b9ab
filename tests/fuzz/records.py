"""A record of few bytes, its files, and what a record must be to be read."""

from __future__ import annotations

import json
import struct
from math import isfinite
from pathlib import Path
from typing import Any

import torch

from kvpolicy_hf.simulate import Record, RecordError, load_record
from kvpolicy_hf.simulate.storage import PER_LAYER

PROMPT, STEPS, LAYERS = 4, 2, 2
NAMES = ["tokens", "segments", "inv_freq", *(f"layers.{n}.{kind}" for n in range(LAYERS) for kind in PER_LAYER)]
METADATA = {"format": "kvpolicy-record", "version": "1", "model": "tiny", "prompt": "4", "scales": "[0.5, 0.7]"}
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def tiny(seed: int = 0) -> Record:
    """Two layers of one key/value head for two query heads, four prompt tokens, the second an image's."""
    rng = torch.Generator().manual_seed(seed)
    count = PROMPT + STEPS

    def draw(heads: int, dim: int) -> list[torch.Tensor]:
        return [torch.randn(1, heads, count, dim, generator=rng) for _ in range(LAYERS)]

    return Record(
        model="tiny",
        prompt=PROMPT,
        scales=[0.5, 0.7],
        tokens=torch.arange(count)[None],
        segments=(torch.arange(count) == 1).long()[None],
        queries=draw(2, 4),
        keys=draw(1, 4),
        values=draw(1, 3),
        inv_freq=torch.tensor([1.0, 0.1]),
    )


def tensors_of(record: Record) -> dict[str, torch.Tensor]:
    assert record.inv_freq is not None
    made = {"tokens": record.tokens, "segments": record.segments, "inv_freq": record.inv_freq}
    for layer in range(LAYERS):
        made |= {f"layers.{layer}.{kind}": getattr(record, kind)[layer] for kind in PER_LAYER}
    return made


def read(path: Path, content: bytes) -> Record | None:
    """A sound record, or None where the file is refused."""
    path.write_bytes(content)
    try:
        record = load_record(path)
    except RecordError as error:
        said = str(error)
    else:
        assert_sound(record)
        return record
    assert repr(str(path)) in said
    assert "Hint: " in said
    assert len(said) < 1500
    assert "frame #" not in said
    return None


def assert_sound(record: Record) -> None:
    """What the documentation of `Record` promises, from its sentences."""
    count, keys = record.length, record.keys
    assert record.model.isprintable()
    assert 1 <= record.prompt < count
    assert all(type(scale) is float and isfinite(scale) and scale > 0 for scale in record.scales)
    assert len(record.scales) == len(record.queries) == len(keys) == len(record.values) == record.layers > 0
    for data in (record.tokens, record.segments):
        assert data.dtype is torch.int64
        assert list(data.shape) == [1, count]
    assert int(record.tokens.min()) >= 0
    assert set(record.segments.ravel().tolist()) <= {0, 1}
    for queries, keys, values in zip(record.queries, record.keys, record.values, strict=True):
        heads, dim = keys.shape[1], keys.shape[3]
        assert list(keys.shape) == [1, heads, count, dim]
        assert list(values.shape[:3]) == [1, heads, count]
        assert list(queries.shape) == [1, queries.shape[1], count, dim]
        assert queries.shape[1] % heads == 0
        for data in (queries, keys, values):
            assert data.dtype is record.keys[0].dtype
            assert data.dtype in FLOATS
            assert data.numel() > 0
            assert bool(data.isfinite().all())
        if record.inv_freq is not None:
            assert record.inv_freq.dtype is torch.float32
            assert record.inv_freq.ndim == 1
            assert 1 <= len(record.inv_freq) <= dim // 2
            assert bool(record.inv_freq.isfinite().all())


def header_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data
