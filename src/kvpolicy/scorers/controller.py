"""Scores from a small trained network, the controller of ADORE."""

from __future__ import annotations

import hashlib
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, final

import numpy as np

from .._check import check_count
from .._errors import PolicyError
from .._namespace import along
from .._protocols import ImportanceScorer, Observer
from .._step import Step
from .._types import Array, CacheView, Column, Scores
from ._common import unit, wide

__all__ = ["GRUController"]

_Numbers: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]

FORMAT = "kvpolicy-gru-controller-1"  # of the files


@final
@dataclass(frozen=True, slots=True)
class GRUController(ImportanceScorer, Observer):
    """What a token is to the current one, as a small recurrent network guesses: ``s_j = u.c_j + a * log(1 + t - j)``.

    As tokens arrive, a GRU of r = ``size`` units reads their keys x (mean over the key/value heads after the rotary
    embedding, brought to root mean square 1), and its state becomes the token's code: ``c_j = GRU(x_j, c_{j-1})``. Its
    gates, as in torch: ``[g, z] = sigmoid(W x + b + U c)``, ``n = tanh(V x + d + g * (T c + e))``,
    ``c' = (1 - z) * n + z * c``. The current token t asks by its query: ``u = P q_t + p``, with q made of the query
    heads as x is of the keys. The newest token's score is +inf: its code is the state that the next one goes on from.

    A code moves with its row (columns ``code0``, ``code1``, …), so that rows in an archive are scored by what is on the
    device. The weights serve all layers; all heads of a layer get the same scores, and
    ``Shared(GRUController.from_file(...))`` lets all layers keep the same rows. A prompt is read token by token.

    Source: after ADORE (arXiv 2407.02328, section 3.2). There the network reads token embeddings and is trained
    together with the model; here it reads keys and is fitted to a model as it is, `kvpolicy_hf.train_controller`.

    Equal weights make equal controllers. Printed is a fingerprint of the weights; `to_file` keeps them.

    Args:
        dim: D, the key dim of the model that it was fitted to.
        size: r, numbers in a code.
        weights: float32, little-endian: W and V side by side [D, 3r], b and d [3r], U and T [r, 3r], e [r], P [D, r],
            p [r], a [1], one after another, matrices by rows. `from_arrays` makes them.

    Raises:
        PolicyError: if the weights do not have that size, or are not finite.
    """

    dim: int
    size: int
    weights: bytes

    reads_vectors: ClassVar[bool] = False

    def __repr__(self) -> str:
        return f"GRUController(size={self.size}, fingerprint={hashlib.sha256(self.weights).hexdigest()[:8]!r})"

    def __post_init__(self) -> None:
        check_count("GRUController", "dim", self.dim, least=1)
        check_count("GRUController", "size", self.size, least=1)
        weights: Any = self.weights
        due = 4 * sum(math.prod(shape) for shape in _shapes(self.dim, self.size).values())
        if not isinstance(weights, bytes) or len(weights) != due:
            got = f"{len(weights)} bytes" if isinstance(weights, bytes) else f"a {type(weights).__name__}"
            raise PolicyError(
                f"GRUController(dim={self.dim}, size={self.size}) takes {due} bytes of weights; got {got}. "
                f"Hint: GRUController.from_arrays or from_file."
            )
        if not np.isfinite(np.frombuffer(self.weights, "<f4")).all():
            raise PolicyError("GRUController(weights=...) holds NaN or infinite numbers.")

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> GRUController:
        """From the weights by name, as `arrays` gives them.

        Raises:
            PolicyError: if one is missing or its shape does not fit the others.
        """
        names = tuple(_shapes(1, 1))
        if set(arrays) != set(names):
            raise PolicyError(f"GRUController.from_arrays() takes {', '.join(names)}; got {', '.join(arrays)}.")
        known = {name: np.asarray(arrays[name], dtype="<f4") for name in names}
        if known["ask"].ndim != 2:
            raise PolicyError(f"GRUController: ask has shape {known['ask'].shape}; it must be [dim, size].")
        dim, size = known["ask"].shape
        for name, shape in _shapes(dim, size).items():
            if known[name].shape != shape:
                raise PolicyError(
                    f"GRUController: {name} has shape {known[name].shape}; beside ask of shape {(dim, size)} it must "
                    f"be {shape}."
                )
        return cls(dim, size, b"".join(known[name].tobytes() for name in names))

    @property
    def arrays(self) -> dict[str, _Numbers]:
        """The weights by name, copies.

        ``read`` [D, 3r] and ``read_bias`` [3r] (columns: g, z, n), ``state`` [r, 3r], ``state_bias`` [r], ``ask``
        [D, r], ``ask_bias`` [r], ``age`` [1].
        """
        numbers, out, start = np.frombuffer(self.weights, "<f4"), {}, 0
        for name, shape in _shapes(self.dim, self.size).items():
            stop = start + math.prod(shape)
            out[name] = np.array(numbers[start:stop].reshape(shape), dtype=np.float32)
            start = stop
        return out

    def to_file(self, path: str | Path) -> None:
        """Write the weights as a ``.npz`` file; a file of that name is replaced."""
        with Path(path).open("wb") as file:
            np.savez(file, format=np.array(FORMAT), **self.arrays)  # type: ignore[arg-type]

    @classmethod
    def from_file(cls, path: str | Path) -> GRUController:
        """Read what `to_file` wrote.

        Raises:
            PolicyError: if there is no such file, or it holds something else.
        """
        try:
            with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as archive:
                arrays = dict(archive)
        except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
            raise PolicyError(f"no controller can be read from {str(path)!r}: {error}. Hint: to_file().") from error
        if str(arrays.pop("format", None)) != FORMAT:
            raise PolicyError(f"{str(path)!r} is no controller of the format {FORMAT!r}. Hint: to_file() writes one.")
        return cls.from_arrays(arrays)

    @property
    def columns(self) -> tuple[str, ...]:
        """The code of each row."""
        return tuple(f"code{i}" for i in range(self.size))

    def observe(self, view: CacheView, step: Step, /) -> Mapping[str, Column]:
        """Read the tokens of this pass.

        Raises:
            PolicyError: if the controller was fitted to keys of another size.
        """
        if view.keys.shape[-1] != self.dim:
            raise PolicyError(
                f"{self!r} was fitted to keys of {self.dim} dimensions, and this model's have {view.keys.shape[-1]}. "
                f"Hint: kvpolicy_hf.train_controller on records of this model."
            )
        xp, count = view.xp, step.query_positions.shape[1]
        new = view.positions == step.query_positions[:, None, -1:]  # the row of a single token lies anywhere
        if count == 1:
            slot = xp.argmax(xp.astype(new, xp.int8), axis=-1)[..., None]
            keys = along(view.keys, slot[..., None], axis=2)
        else:  # those of several end the table, in order
            keys = view.keys[:, :, view.shape[2] - count :]
        read = _features(xp, keys, step)
        known = [view.columns[name].data if name in view.columns else None for name in self.columns]
        codes = self._read(xp, read, step.query_valid, self._state(view, step, known, like=read))
        columns = {}
        for i, (name, old) in enumerate(zip(self.columns, known, strict=True)):
            data = xp.zeros(view.shape, dtype=codes.dtype, device=codes.device) if old is None else old
            code = codes[:, None, :, i]
            if count == 1:
                data = xp.where(new, code, data)
            else:
                code = xp.broadcast_to(code, (*view.shape[:2], count))
                data = xp.concat([data[..., : view.shape[2] - count], code], axis=-1)
            columns[name] = Column(data)
        return columns

    def score(self, view: CacheView, step: Step, /) -> Scores:
        """By the codes, the positions and the latest query alone: the table may be an archive."""
        xp, asked = view.xp, step.latest(1)
        query = _features(xp, asked.queries, step)[:, -1]
        weights = _placed(self, xp, query.dtype, query.device)
        wanted = xp.matmul(query, weights["ask"]) + weights["ask_bias"]
        codes = xp.stack([view.column(name, needed_by="GRUController") for name in self.columns], axis=-1)
        fit = xp.matmul(codes, xp.astype(wanted, codes.dtype)[:, None, :, None])[..., 0]
        now = asked.query_positions[:, None, -1:]
        age = xp.where(view.valid, now - view.positions, xp.zeros_like(view.positions))
        scores = fit + xp.astype(weights["age"], fit.dtype) * xp.log1p(xp.astype(age, fit.dtype))
        return xp.where(age == 0, xp.full_like(scores, float("inf")), scores)

    def _state(self, view: CacheView, step: Step, known: list[Array | None], like: Array) -> Array:
        """The code of the newest row that was there before this pass, [B, r]; zeros where no token came before."""
        xp = view.xp
        earlier = view.valid & (view.positions < step.query_positions[:, None, :1])
        places = xp.where(earlier, view.positions, xp.full_like(view.positions, -1))
        newest = xp.argmax(places, axis=-1)[..., None]  # with padding alone, a piece of that: its code is zero
        nothing = xp.zeros(newest.shape, dtype=like.dtype, device=like.device)
        parts = [nothing if data is None else along(data, newest, axis=-1) for data in known]
        codes = step.heads.all(xp.concat(parts, axis=-1))
        head = xp.argmax(step.heads.all(along(places, newest, axis=-1)), axis=1)[:, None]
        head = xp.broadcast_to(head, (head.shape[0], 1, codes.shape[-1]))
        return along(codes, head, axis=1)[:, 0]

    def _read(self, xp: Any, read: Array, valid: Array, state: Array) -> Array:
        """The codes [B, Q, r] of tokens with features [B, Q, D], from the state before them."""
        size, weights = self.size, _placed(self, xp, read.dtype, read.device)
        pushed = xp.matmul(read, weights["read"]) + weights["read_bias"]
        endless = xp.full_like(pushed[..., :size], float("inf"))
        keep = xp.where(valid[..., None], pushed[..., size : 2 * size], endless)  # z = 1: padding changes nothing
        gates, news = xp.concat([pushed[..., :size], keep], axis=-1), pushed[..., 2 * size :]
        codes = []
        for t in range(read.shape[1]):
            pulled = xp.matmul(state, weights["state"])
            gate = 0.5 + 0.5 * xp.tanh(0.5 * (gates[:, t] + pulled[:, : 2 * size]))
            new = xp.tanh(news[:, t] + gate[:, :size] * (pulled[:, 2 * size :] + weights["state_bias"]))
            state = (1 - gate[:, size:]) * new + gate[:, size:] * state
            codes.append(state)
        return xp.stack(codes, axis=1)


def _shapes(dim: int, size: int) -> dict[str, tuple[int, ...]]:
    """Weights by name, in the order of the bytes."""
    return {
        "read": (dim, 3 * size),
        "read_bias": (3 * size,),
        "state": (size, 3 * size),
        "state_bias": (size,),
        "ask": (dim, size),
        "ask_bias": (size,),
        "age": (1,),
    }


def _features(xp: Any, vectors: Array, step: Step) -> Array:
    """Mean over all heads of [B, H, Q, D], at a root mean square of 1: [B, Q, D] in float32 or wider."""
    mean = xp.mean(step.heads.all(xp.mean(wide(xp, vectors), axis=1, keepdims=True)), axis=1)
    return unit(xp, mean) * vectors.shape[-1] ** 0.5


@lru_cache(maxsize=16)
def _placed(controller: GRUController, xp: Any, dtype: Any, device: Any) -> dict[str, Array]:
    """The weights where the rows are; a few thousand numbers that every layer of every step asks for."""
    return {name: xp.asarray(data, dtype=dtype, device=device) for name, data in controller.arrays.items()}
