"""Files that are no sound record: a `RecordError` with the path and a fix, never another error, never half a record."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from records import FLOATS, LAYERS, METADATA, NAMES, PROMPT, STEPS, read, tensors_of, tiny
from safetensors.torch import save

from kvpolicy import PolicyError, h2o
from kvpolicy_hf.simulate import RecordError, load_record, replay, save_record
from kvpolicy_hf.simulate.storage import PER_LAYER


def about(**changes: str | None) -> bytes:
    """The file of `tiny` with other metadata; None leaves an entry out."""
    known = {**METADATA, **changes}
    return save(tensors_of(tiny()), {key: value for key, value in known.items() if value is not None})


numbers = st.floats() | st.integers(-2, 2**70) | st.just(10**400)
nonsense = st.none() | st.booleans() | numbers | st.text(max_size=5) | st.dictionaries(st.text(max_size=3), numbers)
scales = st.lists(nonsense, min_size=1, max_size=3).map(json.dumps) | nonsense.map(json.dumps) | st.text(max_size=20)


class TestMetadata:
    def test_what_is_sound(self, path: Path) -> None:
        for content in (about(), about(prompt="1"), about(prompt="5"), about(scales="[1, 2e3]"), about(extra="x")):
            record = read(path, content)
            assert record is not None
            assert replay(record, h2o(keep=0.5)).mass.shape == (PROMPT + STEPS - record.prompt, LAYERS)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            *(({"prompt": text}, "not a number of tokens") for text in ("-3", "4.0", " 4", "+4", "", "1_0", "4\n")),
            *(({"prompt": text}, "prompt is .*not a number of tokens") for text in ("\uff14", "\u00b2", "NaN", "many")),
            *(({"prompt": text}, "there is no decode step") for text in ("0", "6", "7", "9" * 30)),
            ({"prompt": "9" * 5000}, "is damaged: Exceeds the limit"),
            *(({name: None}, f"lacks '{name}'") for name in ("prompt", "model", "scales")),
            *(({"scales": text}, "not a list of numbers") for text in ("7", '"12"', '{"1": 1, "2": 2}', "null")),
            *(({"scales": text}, "not a list of numbers") for text in ('["0.5", "0.7"]', "[[0.5], 1]", "[true, 1]")),
            ({"scales": "[]"}, "0 layers have a scale"),
            ({"scales": "[0.5]"}, r"a record of 1 layers has no tensor 'layers\.1\.keys'"),
            ({"scales": "[0.5, 0.7, 0.9]"}, r"lacks 'layers\.2\.queries'"),
            ({"scales": "[" + "0.5, " * 200_000 + "1]"}, r"lacks 'layers\.2\.queries'"),
            *(({"scales": f"[0.5, {text}]"}, r"scales\[1\] is ") for text in ("NaN", "Infinity", "-0.7", "0", "1e999")),
            ({"scales": "[" * 100_000}, "is damaged: maximum recursion"),
            ({"scales": "[1" + "0" * 400 + ", 1]"}, "is damaged: int too large"),
            ({"scales": "[1" + "0" * 5000 + ", 1]"}, "is damaged: Exceeds the limit"),
            ({"format": "other"}, "is a safetensors file, but no record"),
            ({"version": "1.0"}, "is a record of version '1.0'"),
            ({"model": "a\nb"}, r"the model's name 'a\\nb' is no line of text"),
            ({"model": "\x1b[2J"}, "the model's name .* is no line of text"),
        ],
    )  # fmt: skip
    def test_damage_is_named(self, path: Path, changes: dict[str, str | None], words: str) -> None:
        content = about(**changes)
        assert read(path, content) is None
        with pytest.raises(RecordError, match=words):
            load_record(path)

    @given(
        st.fixed_dictionaries(
            {},
            optional={
                "prompt": st.text(max_size=5) | st.integers(-2, 9).map(str),
                "scales": scales,
                "model": st.text(max_size=5),
                "version": st.sampled_from(["1", "01", "2", ""]),
            },
        )
    )
    def test_nonsense(self, path: Path, changes: dict[str, str]) -> None:
        record = read(path, about(**changes))
        assert record is None or changes.get("version", "1") == "1"


OTHERS = "float8_e4m3fn float8_e5m2 int64 int32 uint8 uint16 bool complex64".split()
TYPES = [*FLOATS, *(getattr(torch, name) for name in OTHERS)]
CHANGES: list[Callable[[torch.Tensor], torch.Tensor]] = [
    lambda data: data,
    lambda data: data[..., :-1],
    lambda data: data[..., :0],
    lambda data: data.movedim(-1, 0)[:1].movedim(0, -1),
    lambda data: data[None],
    lambda data: data.flatten(),
    lambda data: data.flatten()[:1].reshape(()) if data.numel() else data,
    lambda data: data.transpose(0, -1),
    lambda data: torch.cat([data, data], dim=-1),
    lambda data: torch.cat([data, data], dim=0),
    lambda data: data * -1,
    lambda data: data * 1000,
    lambda data: data * float("nan"),
]


class TestTensors:
    @given(st.data())
    def test_changed(self, path: Path, data: st.DataObject) -> None:
        tensors = tensors_of(tiny())
        for name in data.draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=2, unique=True)):
            tensors[name] = data.draw(st.sampled_from(CHANGES))(tensors[name]).contiguous()
            if data.draw(st.booleans()):
                tensors[name] = tensors[name].to(data.draw(st.sampled_from(TYPES)))
            if data.draw(st.integers(0, 5)) == 0:
                tensors[data.draw(st.sampled_from(["layers.2.keys", "layers.0.scales", "x"]))] = tensors.pop(name)
        read(path, save(tensors, METADATA))

    @pytest.mark.parametrize("name", NAMES)
    def test_each_is_needed(self, path: Path, name: str) -> None:
        tensors = tensors_of(tiny())
        del tensors[name]
        record = read(path, save(tensors, METADATA))
        assert (record is not None) == (name == "inv_freq")

    @pytest.mark.parametrize("name", ["layers.2.keys", "layers.-1.keys", "layers.00.keys", "inv_freqs", ""])
    def test_a_tensor_too_many(self, path: Path, name: str) -> None:
        assert read(path, save({**tensors_of(tiny()), name: torch.zeros(1)}, METADATA)) is None
        with pytest.raises(RecordError, match=f"a record of 2 layers has no tensor '{name}'"):
            load_record(path)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize("name", [name for name in NAMES if name not in ("tokens", "segments")])
    def test_numbers_that_are_not_finite(self, path: Path, name: str, value: float) -> None:
        tensors = tensors_of(tiny())
        tensors[name].view(-1)[-1] = value
        assert read(path, save(tensors, METADATA)) is None

    @pytest.mark.parametrize(
        ("name", "change", "words"),
        [
            ("tokens", lambda data: data - 3, "tokens holds -3; a token id is at least 0"),
            ("segments", lambda data: data * 7, r"segments holds other numbers than 0 \(text\) to 3 \(audio\)"),
            ("inv_freq", lambda data: data[:0], r"inv_freq has shape \[0\]"),
            ("inv_freq", lambda data: data.half(), "inv_freq is torch.float16"),
            ("inv_freq", lambda data: data.long(), "inv_freq is torch.int64"),
            ("layers.1.queries", lambda data: data[:, :0], "of layer 1 are .*belong together"),
            ("layers.1.values", lambda data: data[..., :0], "of layer 1 are .*belong together"),
        ],
    )
    def test_damage_is_named(self, path: Path, name: str, change: Callable[..., Any], words: str) -> None:
        tensors = tensors_of(tiny())
        tensors[name] = change(tensors[name]).contiguous()
        assert read(path, save(tensors, METADATA)) is None
        with pytest.raises(RecordError, match=words):
            load_record(path)

    @pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int64, torch.complex64])
    def test_types_that_attention_is_not_computed_in(self, path: Path, dtype: torch.dtype) -> None:
        tensors = {name: d.to(dtype) if "layers" in name else d for name, d in tensors_of(tiny()).items()}
        assert read(path, save(tensors, METADATA)) is None
        with pytest.raises(RecordError, match=f"of layer 0 are {dtype}"):
            load_record(path)

    def test_layers_of_two_types(self, path: Path) -> None:
        tensors = {name: data.double() if "layers.1" in name else data for name, data in tensors_of(tiny()).items()}
        assert read(path, save(tensors, METADATA)) is None
        with pytest.raises(RecordError, match=r"layer 1 is torch\.float64, and layer 0 is torch\.float32"):
            load_record(path)

    def test_layers_of_other_heads_are_sound(self, path: Path) -> None:
        """Models have them."""
        tensors = tensors_of(tiny())
        for kind in PER_LAYER:
            tensors[f"layers.1.{kind}"] = tensors[f"layers.1.{kind}"].repeat(1, 2, 1, 1)
        record = read(path, save(tensors, METADATA))
        assert record is not None
        assert replay(record, h2o(keep=0.5)).mass.shape == (STEPS, LAYERS)


class TestPaths:
    @pytest.mark.parametrize("name", ["", ".", "/", "none", "x" * 300, "x" * 300 + "/y", "a\0b", "\udcff", "\n"])
    def test_no_record_there(self, tmp_path: Path, name: str) -> None:
        for place in (str(tmp_path / name), name):
            with pytest.raises(RecordError, match="Hint: `kvpolicy simulate --record"):
                load_record(place)

    @pytest.mark.parametrize("name", ["", "x" * 300, "a\0b", "no/such"])
    def test_nowhere_to_write(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(PolicyError, match="cannot write the record"):
            save_record(tiny(), tmp_path / name)

    def test_a_file_that_may_not_be_read_as_text(self, tmp_path: Path) -> None:
        place = tmp_path / "\udcff.safetensors"
        place.write_bytes(b"x")
        with pytest.raises(RecordError, match=r"udcff\.safetensors.*Hint"):
            load_record(place)
