"""What may be done to the arrays of a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from kvpolicy.backends.numpy import NumpyBackend
from kvpolicy.testing import Table

SCENE = Table(batch=2, heads=2, groups=2, tokens=4, now=4, padding=(0, 2), image=(0, 1)).build()
LATER = Table(batch=2, heads=2, tokens=5, padding=(0, 2), empty=1, merged=True).build()  # one token of five is new


def rows_of(layer: Any, b: int, h: int, padding: int) -> Mapping[int, tuple[float, ...]]:
    """What each token of a head holds."""
    return {
        int(layer.positions[b, h, n]) - padding: (
            *layer.keys[b, h, n].tolist(),
            *layer.values[b, h, n].tolist(),
            *(float(column.data[b, h, n]) for column in layer.columns.values()),
            float(layer.scores[b, h, n]),
            bool(layer.keep[b, h, n]),
        )
        for n in np.flatnonzero(layer.valid[b, h])
    }


class TestScene:
    @pytest.mark.parametrize("scene", [SCENE, LATER], ids=["prompt", "later"])
    def test_alone_is_a_batch_row_without_its_padding(self, scene: Any) -> None:
        one = scene.alone(1)
        assert (one.tokens, one.padding.tolist(), one.seen.tolist()) == (scene.tokens - 2, [0], [scene.tokens - 2])
        assert one.now == min(scene.now, one.tokens)
        assert np.array_equal(one.queries, scene.queries[:, 1:, :, 2:])
        layer = one.layers[0]
        assert layer.positions.max() == one.tokens - 1
        assert np.all(layer.valid | (layer.positions == -1))
        for h in range(2):
            assert rows_of(layer, 0, h, 0) == rows_of(scene.layers[0], 1, h, 2)

    @pytest.mark.parametrize("scene", [SCENE, LATER], ids=["prompt", "later"])
    def test_padded_has_more_garbage_on_the_left(self, scene: Any) -> None:
        more = scene.padded(3, seed=1)
        assert more.padding.tolist() == [3, 5]
        assert (more.tokens, more.seen.tolist()) == (scene.tokens + 3, scene.seen.tolist())
        assert more.now == scene.now + (3 if scene is SCENE else 0)  # a whole prompt gets longer
        assert np.array_equal(more.queries[..., 3:, :], scene.queries)
        before, after = scene.layers[0], more.layers[0]
        assert after.valid.sum() == before.valid.sum()
        assert np.abs(after.keys[~after.valid]).min() >= 50
        assert not after.columns["count"].data[~after.valid].any()
        for b, h in np.ndindex(2, 2):
            assert rows_of(after, b, h, more.padding[b]) == rows_of(before, b, h, scene.padding[b])

    def test_heads_bring_their_query_heads(self) -> None:
        other = SCENE.with_heads([1, 0])
        assert np.array_equal(other.layers[0].keys, SCENE.layers[0].keys[:, ::-1])
        assert np.array_equal(other.layers[0].quota, SCENE.layers[0].quota[:, ::-1])
        assert np.array_equal(other.queries, SCENE.queries[:, :, [2, 3, 0, 1]])
        assert np.array_equal(SCENE.with_heads([1]).queries, SCENE.queries[:, :, 2:])

    def test_the_budget_is_no_matter_of_heads(self) -> None:
        scene = Table(heads=3, tokens=6, now=6, quota=None, seed=3).build()
        assert scene.with_heads([2, 0, 1]).budget.tolist() == scene.budget.tolist()

    def test_other_slots_hold_the_same_rows(self) -> None:
        moved = [LATER.reslotted(seed).layers[0] for seed in range(5)]
        before = LATER.layers[0]
        assert any(not np.array_equal(after.positions, before.positions) for after in moved)
        for after in moved:
            assert np.array_equal(after.positions[..., -1], before.positions[..., -1])  # the row of this pass stays
            for b, h in np.ndindex(2, 2):
                assert rows_of(after, b, h, LATER.padding[b]) == rows_of(before, b, h, LATER.padding[b])

    def test_rows_of_a_prompt_stay_and_those_of_a_shuffled_table_do_not(self) -> None:
        assert np.array_equal(SCENE.reslotted(1).layers[0].keys, SCENE.layers[0].keys)
        shuffled = Table(tokens=6, shuffled=True).build()
        last = {int(np.argmax(shuffled.reslotted(seed).layers[0].positions)) for seed in range(10)}
        assert len(last) > 1

    def test_columns_that_are_needed_go_by_token(self) -> None:
        known = LATER.needing(["mass", "count"])
        assert set(known.layers[0].columns) == {"count", "segment", "mass"}
        assert known.layers[0].columns["count"] is LATER.layers[0].columns["count"]
        other = LATER.reslotted(3).needing(["mass"])
        for b, h in np.ndindex(2, 2):
            padding = LATER.padding[b]
            assert rows_of(other.layers[0], b, h, padding) == rows_of(known.layers[0], b, h, padding)

    def test_it_is_handed_over_as_a_pass_of_the_engine(self) -> None:
        staged = LATER.on(NumpyBackend())
        step, view = staged.steps[0], staged.scored[0].view
        assert (view.layer, view.num_layers, view.shape) == (0, 1, LATER.layers[0].valid.shape)
        assert step.seen.tolist() == [5, 3]
        assert step.padding.tolist() == [0, 2]
        assert step.held[0].tolist() == LATER.layers[0].valid.sum(-1).tolist()
        assert step.query_positions.tolist() == [[4], [4]]
        assert step.latest(2).query_positions.tolist() == [[3, 4], [3, 4]]
        assert step.whole_pass
