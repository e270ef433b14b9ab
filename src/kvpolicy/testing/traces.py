"""Whole requests as short values, played on the engine and on the slow model side by side."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, final

import numpy as np

from .._check import check_choice, check_count
from .._errors import CacheError, PolicyError
from .._pass import Pass
from .._policy import Policy
from .._protocols import Backend
from .._repr import constructor_repr
from .._session import Session
from .._types import IMAGE, TEXT
from ._numbers import Arr, rounded
from ._ops import Crop, Decode, Op, Prefill, Reorder, Reset, Turn, passes_of
from ._outcome import BrokenLawError, Place, fail
from ._places import place_of
from ._rotary import rotary
from ._rows import attend
from ._side_by_side import compare_layer, compare_outputs
from ._sizes import check_image, check_sizes
from .model import SlowCache

__all__ = [
    "BrokenTraceError",
    "Crop",
    "Decode",
    "Op",
    "Prefill",
    "Reorder",
    "Replay",
    "Reset",
    "Trace",
    "Turn",
    "replay",
]

GARBAGE = 1e3  # what padding holds: large, so that whoever reads it is off by far


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A request as a list of operations, with all its numbers.

    Args:
        ops: what happens; any order can be played.
        seed: of all random numbers.
        layers: how many.
        batch: batch rows, at the start and after each `Reset`.
        heads: key/value heads.
        groups: query heads for each of them.
        dim: of keys, even.
        value_dim: of values.
        padding: left padding of each batch row; none if empty.
        image: first and behind-the-last token of an image in each batch row (its own tokens, without padding); None:
            nothing says which tokens are image.
        dtype: of keys, values and queries.
        kind: ``"normal"``: numbers such that nothing ties by accident. ``"flat"``: queries of zero, keys along the axes
            and values of small integers, so that almost everything ties; only for policies whose arithmetic is exact
            on such numbers.
        prompt_length: what the session is told of the first prompt's length; 0: nothing.
        check: whether the session verifies every stage's answer.

    Raises:
        PolicyError: if an argument is out of range.
    """

    ops: tuple[Op, ...] = (Prefill(4), Decode(2))
    seed: int = 0
    layers: int = 1
    batch: int = 1
    heads: int = 1
    groups: int = 1
    dim: int = 2
    value_dim: int = 1
    padding: tuple[int, ...] = ()
    image: tuple[int, int] | None = (0, 0)
    dtype: str = "float64"
    kind: Literal["normal", "flat"] = "normal"
    prompt_length: int = 0
    check: bool = True

    __repr__ = constructor_repr

    def __post_init__(self) -> None:
        ops: Any = self.ops
        if not isinstance(ops, tuple) or not all(isinstance(op, Op) for op in ops):
            raise PolicyError(f"Trace(ops={ops!r}): ops must be a tuple of operations. Hint: (Prefill(4), Decode(2)).")
        check_sizes(self)
        if self.image is not None:
            check_image("Trace", self.image)
        check_choice("Trace", "kind", self.kind, ("normal", "flat"))
        check_count("Trace", "prompt_length", self.prompt_length)
        check_choice("Trace", "check", self.check, (False, True))

    @property
    def scale(self) -> float:
        """Softmax scale; sharper than a model's, so that few rows get most of the attention."""
        return float(2.0 * self.dim**-0.5)


class BrokenTraceError(BrokenLawError):
    """Engine and model disagree.

    Attributes:
        trace: what was played, up to the operation after which they do.
        example: the same.
    """

    def __init__(self, place: Place, detail: str, trace: Trace) -> None:
        super().__init__(place, detail)
        self.trace = self.example = trace


def replay(policy: Policy, trace: Trace, *, backend: str | Backend = "torch") -> None:
    """Play a trace on a `Session` and on a `SlowCache`, and compare all that they hold after every pass.

    Args:
        policy: under test.
        trace: what happens.
        backend: of the session, and of what stages are given: by name, ``"torch:cuda"``, or itself.

    Raises:
        BrokenTraceError: at the first difference; ``place.when`` is the pass.
    """
    playing = Replay(policy, replace(trace, ops=()), backend=backend)
    for op in trace.ops:
        playing.play(op)


@final
class Replay:
    """Plays operations one after another.

    Args:
        policy: under test.
        trace: the sizes; its own operations are not played.
        backend: of the session, and of what stages are given: ``"torch"``, ``"numpy"``, ``"torch:cuda"``, or itself.
        order: seed of the model's slots; None: rows in order of arrival.
    """

    def __init__(
        self, policy: Policy, trace: Trace, *, backend: str | Backend = "torch", order: int | None = None
    ) -> None:
        ops, device = place_of(backend)
        told: dict[str, Any] = {"prompt_length": trace.prompt_length, "rotate": rotary(ops)}
        slots = None if order is None else np.random.default_rng(order)
        self.session = Session(policy, ops, trace.layers, check=trace.check, **told)
        self.slow = SlowCache(
            policy, layers=trace.layers, ops=ops, device=device, dtype=trace.dtype, order=slots, **told
        )
        self.policy, self.trace, self.passes = policy, replace(trace, ops=()), -1
        self._ops, self._backend, self._device, self._order = ops, backend, device, order
        self._undecided = False
        self._start()

    @property
    def length(self) -> int:
        """Tokens that have passed, padding included."""
        return self.slow.length

    @property
    def batch(self) -> int:
        """Batch rows at present."""
        return len(self._padding)

    def play(self, op: Op) -> None:
        """One operation, and all comparisons after it.

        Raises:
            BrokenTraceError: if engine and model differ.
        """
        if self._undecided:
            return
        self.trace = replace(self.trace, ops=(*self.trace.ops, op))
        try:
            self._play(op)
        except BrokenLawError as broken:
            if self._order is None and self._is_undecided():
                self._undecided = True
                return
            raise BrokenTraceError(broken.place, broken.detail, self.trace) from None

    def _is_undecided(self) -> bool:
        """Whether the model agrees with the engine once its rows lie in other slots.

        In float64 two rows are never so close that the order of a sum decides between them. In a narrower dtype they
        may be, and then each order of the slots is as right as another.
        """
        if self.trace.dtype == "float64":
            return False
        for order in range(8):
            other = Replay(self.policy, self.trace, backend=self._backend, order=order)
            try:
                for op in self.trace.ops:
                    other.play(op)
            except BrokenLawError:
                continue
            return True
        return False

    def _start(self) -> None:
        given = (*self.trace.padding, *(0,) * self.trace.batch)
        self._padding = np.array(given[: self.trace.batch], np.int64)

    def _play(self, op: Op) -> None:
        match op:
            case Prefill() | Turn() | Decode():
                for count in passes_of(op):
                    self._pass(count, op)
                return
            case Reorder():
                index = np.array([number % self.batch for number in op.index], np.int64)
                self.session.select_batch(self._ops.from_host(index, device=self._device))
                self.slow.reorder(index.tolist())
                self._padding = self._padding[index]
            case Crop():
                self._crop(self.length - op.tokens)
            case Reset():
                self.session.clear()
                self.slow.reset()
        if self.length == 0:
            self._start()
        self._compare(op)

    def _crop(self, length: int) -> None:
        said = [_refusal(cache.crop, length) for cache in (self.session, self.slow)]
        if said[0] and not said[1]:
            fail(Place(self.passes), f"crop({length}) is refused ({said[0]}); in the slow model it is exact.")
        if said[1] and not said[0]:
            fail(Place(self.passes), f"crop({length}) was done; in the slow model it is not exact ({said[1]})")

    def _pass(self, count: int, op: Op) -> None:
        """One pass of both; what attention gives is compared first, and then what they hold."""
        start, self.passes = self.length, self.passes + 1
        keys, values, queries = self._drawn(count)
        places = np.broadcast_to(np.arange(start, start + count), (self.batch, count)).copy()
        valid = places >= self._padding[:, None]
        columns = {}
        if self.trace.image is not None:
            token, (first, stop) = places - self._padding[:, None], self.trace.image
            columns["segment"] = np.where((token >= first) & (token < stop), IMAGE, TEXT)
        trash = np.where(valid, 1.0, GARBAGE)[None, :, None, :, None]
        outputs = self._engine(keys * trash, values * trash, queries * trash, places, valid, columns)
        due = self.slow.forward(keys, values, queries, valid, scale=self.trace.scale, columns=columns)
        what = f"the slow model in {op!r}"
        compare_outputs(
            outputs, due, valid, self.trace.heads, Place(self.passes), places - self._padding[:, None], what
        )
        self._compare(op)

    def _engine(self, keys: Arr, values: Arr, queries: Arr, places: Arr, valid: Arr, columns: dict[str, Arr]) -> Arr:
        """One pass of the session, float64 [L, B, Hq, Q, Dv]."""

        def given(data: Arr) -> Any:
            return self._ops.from_host(data, dtype=self.trace.dtype, device=self._device)

        def scalars(data: Arr) -> Any:
            return self._ops.from_host(data, device=self._device)

        known = {name: scalars(data) for name, data in columns.items()}
        now = Pass(self.length, scalars(places), scalars(valid), valid.sum(axis=1), known)
        outputs, bias = [], self.policy.count_bias
        for layer in range(self.trace.layers):
            view = self.session.append(layer, given(keys[layer]), given(values[layer]), now)
            asking = self.session.turned(layer, given(queries[layer]), now)
            heard = np.asarray(self._ops.host(asking), np.float64)
            outputs.append(attend(view, heard, places, self.trace.scale, self._ops, count_bias=bias))
            self.session.advance(layer, asking, self.trace.scale, now)
        return np.stack(outputs)

    def _drawn(self, count: int) -> tuple[Arr, Arr, Arr]:
        """Keys, values and queries of a pass, [L, B, heads, Q, dim]: numbers that the dtype can hold."""
        trace, rng = self.trace, np.random.default_rng([self.trace.seed, self.passes])
        shapes = [
            (trace.layers, self.batch, heads, count, dim)
            for heads, dim in (
                (trace.heads, trace.dim),
                (trace.heads, trace.value_dim),
                (trace.heads * trace.groups, trace.dim),
            )
        ]
        if trace.kind == "flat":
            keys = np.eye(trace.dim)[rng.integers(0, trace.dim, shapes[0][:-1])]
            return keys, rng.integers(-1, 2, shapes[1]).astype(np.float64), np.zeros(shapes[2])
        keys, values, queries = (rounded(rng.standard_normal(shape), trace.dtype) for shape in shapes)
        return keys, values, queries

    def _compare(self, op: Op) -> None:
        if self.session.length() != self.length:
            detail = f"{self.session.length()} tokens have passed; in the slow model after {op!r} it is {self.length}."
            fail(Place(self.passes), detail)
        for number in range(self.trace.layers):
            compare_layer(
                self.session, self.slow, number, self._padding, Place(self.passes), f"the slow model after {op!r}"
            )


def _refusal(crop: Any, length: int) -> str:
    try:
        crop(length)
    except CacheError as error:
        return str(error)
    return ""
