"""Files that were cut, flipped, or given another header: a `RecordError`, or a record in which all belongs together."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from records import NAMES, header_of, joined, read


class TestBytes:
    def test_cut_anywhere(self, path: Path, whole: bytes) -> None:
        (header,) = struct.unpack("<Q", whole[:8])
        edges = {8, 8 + header} | {8 + header + end for entry in entries(whole) for end in entry["data_offsets"]}
        near = {place + step for place in edges for step in (-1, 0, 1)} | set(range(0, len(whole), 29))
        for stop in sorted(near & set(range(len(whole)))):
            assert read(path, whole[:stop]) is None, stop

    @given(st.data())
    def test_flipped(self, path: Path, whole: bytes, data: st.DataObject) -> None:
        content = bytearray(whole)
        (header,) = struct.unpack("<Q", whole[:8])
        for _ in range(data.draw(st.integers(1, 3))):
            place = data.draw(st.integers(0, 7 + header) | st.integers(0, len(whole) - 1))
            content[place] = data.draw(st.integers(0, 255))
        read(path, bytes(content))

    @given(st.binary(max_size=64), st.integers(0, 2**64 - 1) | st.integers(0, 64))
    @example(b"{}", 2)
    @example(b"", 2**63)
    def test_other_bytes(self, path: Path, content: bytes, length: int) -> None:
        assert read(path, content) is None
        assert read(path, struct.pack("<Q", length) + content) is None

    def test_more_than_a_file(self, path: Path, whole: bytes) -> None:
        for more in (b"\0", b"\0" * 8, whole):
            assert read(path, whole + more) is None


def entries(content: bytes) -> list[dict[str, Any]]:
    return [entry for name, entry in header_of(content)[0].items() if name != "__metadata__"]


odd = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2**70),
    st.floats(),
    st.text(max_size=9),
    st.lists(st.integers(-1, 2**65), max_size=5),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
shapes = st.lists(st.integers(0, 8) | st.sampled_from([2**31, 2**62, 2**63 - 1, 2**63, 2**64 - 1]), max_size=5)
codes = st.sampled_from("F64 F32 F16 BF16 F8_E4M3 F8_E5M2 F4 I64 I32 U8 U64 BOOL C64 F6_E2M3 X".split())


class TestHeader:
    @given(st.data())
    def test_edited(self, path: Path, whole: bytes, data: st.DataObject) -> None:
        header, tensors = header_of(whole)
        name = data.draw(st.sampled_from([*NAMES, "__metadata__"]))
        act = data.draw(st.sampled_from(["drop", "rename", "swap", "replace", "dtype", "shape", "offsets", "key"]))
        if act in ("dtype", "shape", "offsets") and name != "__metadata__":
            key, value = {"dtype": ("dtype", codes), "shape": ("shape", shapes)}.get(act, ("data_offsets", shapes))
            header[name][key] = data.draw(value | odd)
        elif act == "drop":
            del header[name]
        elif act == "rename":
            header[data.draw(st.sampled_from(["layers.2.keys", "layers.01.keys", "x"]) | st.text())] = header.pop(name)
        elif act == "swap":
            other = data.draw(st.sampled_from(NAMES))
            header[name], header[other] = header[other], header[name]
        elif act == "key":
            header[name][data.draw(st.sampled_from(["dtype", "shape", "model"]) | st.text())] = data.draw(odd)
        else:
            header[name] = data.draw(odd)
        read(path, joined(header, tensors))

    @given(shapes, codes)
    @example([2**63, 0], "F32")  # torch's own error, with its C++ stack, came through
    @example([1] * 70, "F32")
    def test_a_tensor_of_nothing(self, path: Path, whole: bytes, shape: list[int], code: str) -> None:
        header, tensors = header_of(whole)
        header["inv_freq"] = {"dtype": code, "shape": [*shape, 0], "data_offsets": [0, 0]}
        assert read(path, joined(header, tensors)) is None

    def test_no_json(self, path: Path, whole: bytes) -> None:
        _, tensors = header_of(whole)
        for text in (b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 50_000, b'{"a":' * 50_000, b"{" + b" " * 9000):
            assert read(path, joined(text, tensors)) is None
