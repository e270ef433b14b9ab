"""The examples of the kit: what is refused, how they print, what they hold."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given

import kvpolicy as kv
from kvpolicy.testing import Decode, Request, Table, Trace, strategies


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Table(layers=0), "Table(layers=0): layers must be an integer >= 1."),
        (lambda: Table(heads=1.0), "Table(heads=1.0): heads must be an integer >= 1."),
        (lambda: Table(vectors="long"), "Table(vectors='long'): vectors must be one of 'normal', 'axes', 'zeros',"),
        (lambda: Table(scores="high"), "Table(scores='high'): scores must be one of 'normal', '"),
        (lambda: Table(dtype="int8"), "Table(dtype='int8'): dtype must be one of 'float64',"),
        (lambda: Table(phase="turn"), "Table(phase='turn'): phase must be one of 'prefill', 'decode'."),
        (lambda: Table(tokens=3, now=5), "Table(now=5): only 3 tokens have passed. Hint: tokens=5."),
        (lambda: Table(dim=3), "Table(dim=3): dim must be even. Hint: 4."),
        (lambda: Table(padding=(1, 1)), "Table(padding=(1, 1)): one number for each of 1 batch rows, less than the 3"),
        (
            lambda: Table(padding=(3,)),
            "Table(padding=(3,)): one number for each of 1 batch rows, less than the 3 token",
        ),
        (lambda: Table(padding=(-1,)), "Table(padding=(-1,)): one number for each of 1 batch rows"),
        (lambda: Table(padding=[0]), "Table(padding=[0]): padding must be a tuple. Hint: (1,)."),
        (lambda: Table(padding=(True,)), "Table(padding=(True,)): one number for each of 1 batch rows"),
        (lambda: Table(seed=-1), "Table(seed=-1): seed must be an integer >= 0."),
        (lambda: Table(empty=-1), "Table(empty=-1): empty must be an integer >= 0."),
        (lambda: Table(evicted=2.0), "Table(evicted=2.0): evicted is a fraction in [0, 1]"),
        (lambda: Table(evicted=-1.0), "Table(evicted=-1.0): evicted is a fraction in [0, 1]"),
        (lambda: Table(evicted=float("nan")), "Table(evicted=nan): evicted is a fraction in [0, 1]"),
        (lambda: Table(quota=-3), "Table(quota=-3): quota must be an integer >= 0."),
        (lambda: Table(merged=2), "Table(merged=2): merged must be one of False, True."),
        (lambda: Table(shuffled="no"), "Table(shuffled='no'): shuffled must be one of False, True."),
        (lambda: Table(image=(3, 1)), "Table(image=(3, 1)): an image ends before it begins. Hint: (1, 3)."),
        (lambda: Table(image=[0, 1]), "Table(image=[0, 1]): image must be a tuple of two integers >= 0. Hint: (0, 0)"),
        (lambda: Table(image=(-1, 1)), "Table(image=(-1, 1)): image must be a tuple of two integers >= 0."),
        (lambda: Table(image=None), "Table(image=None): image must be a tuple of two integers >= 0."),
        (lambda: Request(seed=0.5), "Request(seed=0.5): seed must be an integer >= 0."),
        (lambda: Request(image=(3, 1)), "Request(image=(3, 1)): an image ends before it begins. Hint: (1, 3)."),
        (lambda: Request(batch=2, padding=[0, 1]), "Request(padding=[0, 1]): padding must be a tuple. Hint: (1, 1)."),
        (lambda: Trace(seed=-1), "Trace(seed=-1): seed must be an integer >= 0."),
        (lambda: Trace(image=(3, 1)), "Trace(image=(3, 1)): an image ends before it begins. Hint: (1, 3)."),
        (lambda: Trace(padding=[1]), "Trace(padding=[1]): padding must be a tuple. Hint: (1,)."),
        (lambda: Trace(ops=[Decode()]), "Trace(ops=[Decode()]): ops must be a tuple of operations. Hint: (Prefill(4),"),
        (lambda: Trace(ops=(3,)), "Trace(ops=(3,)): ops must be a tuple of operations."),
        (lambda: Trace(check=1), "Trace(check=1): check must be one of False, True."),
        (lambda: Request(prompt=0), "Request(prompt=0): prompt must be an integer >= 1."),
        (lambda: Request(steps=-1), "Request(steps=-1): steps must be an integer >= 0."),
        (lambda: Request(turn=True), "Request(turn=True): turn must be an integer >= 0."),
        (lambda: Request(dtype="int8"), "Request(dtype='int8'): dtype must be one of 'float64',"),
        (lambda: Request(dim=5), "Request(dim=5): dim must be even. Hint: 6."),
        (lambda: Request(padding=(3,)), "Request(padding=(3,)): one number for each of 1 batch rows, less than the 3"),
    ],
)
def test_an_example_out_of_range_says_what_is_allowed(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(kv.PolicyError, match=re.escape(said)):
        make()


def test_what_is_at_the_edge_of_its_range_is_allowed() -> None:
    for example in (
        Table(evicted=1, now=3, empty=0, quota=0, image=(2, 2), padding=(2,)),
        Table(quota=None, merged=True, now=1, shuffled=True),
        Request(prompt=1, steps=0, padding=(0,), image=(0, 9)),
    ):
        example.build()
    assert Trace(image=None, padding=(9,), ops=()).image is None  # a trace may have no first prompt to be padded


@given(strategies.tables() | strategies.requests())
def test_examples_print_as_their_constructor_call(example: Table | Request) -> None:
    assert eval(repr(example)) == example
    assert hash(eval(repr(example))) == hash(example)


@given(strategies.tables() | strategies.requests())
def test_examples_are_the_same_every_time(example: Table | Request) -> None:
    one, other = example.build(), example.build()
    assert np.array_equal(one.queries, other.queries)
    if isinstance(example, Table):
        assert [layer.keys.tobytes() for layer in one.layers] == [layer.keys.tobytes() for layer in other.layers]


@given(strategies.tables())
def test_tables_are_what_an_engine_could_hold(table: Table) -> None:
    scene = table.build()
    for layer in scene.layers:
        places = np.where(layer.valid, layer.positions, -1)
        for b, h in np.ndindex(*places.shape[:2]):
            there = places[b, h][places[b, h] >= 0]
            assert len(set(there.tolist())) == len(there)
            assert table.tokens - 1 in there
            assert np.all((there >= scene.padding[b]) & (there < table.tokens))
        assert np.array_equal(layer.columns["count"].data > 0, layer.valid)
        assert not np.any(layer.keep & ~layer.valid)
        if not table.shuffled:
            assert np.all(layer.positions[..., -table.now :] == np.arange(table.tokens)[-table.now :])
    assert np.all(scene.budget >= 1)


def test_what_kinds_of_numbers_are() -> None:
    size = {"tokens": 8, "now": 8, "dim": 4}
    layer = {kind: Table(vectors=kind, **size).build().layers[0] for kind in ("axes", "zeros", "equal", "dominant")}
    assert np.all(np.abs(layer["axes"].keys).sum(-1) == 1)
    assert 0 < (layer["zeros"].keys == 0).all(-1).sum() < 8
    assert 0 < (layer["zeros"].values == 0).all(-1).sum() < 8
    assert np.all(layer["equal"].keys == layer["equal"].keys[:, :, :1])
    assert sorted(np.abs(layer["dominant"].keys).sum(-1).ravel())[-2:] == [0, 400]
    kinds = ("ties", "equal", "infinite", "worthless", "denormal", "dominant")
    scores = {kind: Table(scores=kind, **size).build().layers[0].scores for kind in kinds}
    assert set(scores["ties"].ravel()) <= {-1, 0, 1}
    assert len(set(scores["equal"].ravel())) == 1
    assert {np.inf, -np.inf} < set(scores["infinite"].ravel())
    assert np.all(scores["worthless"] == -np.inf)
    assert 0 < scores["denormal"].max() < 1e-300
    assert sorted(scores["dominant"].ravel())[-2:] == [0, 1e6]
