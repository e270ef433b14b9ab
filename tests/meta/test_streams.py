"""What may be done to the arrays of a request."""

from __future__ import annotations

import numpy as np
import pytest

from kvpolicy.testing import Request
from kvpolicy.testing.requests import Stream

STREAM = Request(batch=2, heads=2, groups=2, prompt=4, steps=1, turn=2, padding=(0, 2), image=(0, 1)).build()


class TestStream:
    def test_its_passes(self) -> None:
        assert STREAM.passes == (4, 1, 2, 1)
        assert STREAM.tokens == 8
        assert STREAM.segment.tolist() == [[1, 0, 0, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0, 0, 0]]

    def test_alone(self) -> None:
        one = STREAM.alone(1)
        assert (one.passes, one.prompt, one.padding.tolist()) == ((2, 1, 2, 1), 2, [0])
        assert np.array_equal(one.keys, STREAM.keys[:, 1:, :, 2:])
        assert one.segment.tolist() == [[1, 0, 0, 0, 0, 0]]

    def test_padded(self) -> None:
        more = STREAM.padded(3, seed=1)
        assert (more.passes, more.prompt, more.padding.tolist()) == ((7, 1, 2, 1), 7, [3, 5])
        assert np.array_equal(more.values[..., 3:, :], STREAM.values)
        assert np.abs(more.keys[..., :3, :]).max() > 5

    def test_heads(self) -> None:
        other = STREAM.with_heads([1, 0])
        assert np.array_equal(other.values, STREAM.values[:, :, ::-1])
        assert np.array_equal(other.queries, STREAM.queries[:, :, [2, 3, 0, 1]])

    @pytest.mark.parametrize(("size", "passes"), [(1, (1, 1, 1, 1)), (3, (3, 1)), (4, (4,)), (9, (4,))])
    def test_chunks(self, size: int, passes: tuple[int, ...]) -> None:
        cut: Stream = STREAM.chunked(size)
        assert cut.passes == (*passes, 1, 2, 1)
        assert cut.prompt == 4
