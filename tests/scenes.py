"""What a single stage is given: a table of any shape, a step, scores and rows to keep; in numpy and in torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from kvpolicy import CacheView, Column, Phase, Scored, Selection, Step, backend_by_name

__all__ = [
    "PLACES",
    "ROUNDING",
    "Arr",
    "LargestTensor",
    "Place",
    "Scene",
    "by_arrival",
    "cosine",
    "leaving",
    "make_scene",
    "scenes",
]

Arr = np.ndarray[Any, np.dtype[Any]]

# What a result of a few operations may be off by, where keys and values have this dtype.
ROUNDING = {"float64": 1e-12, "float32": 1e-5, "float16": 1e-5, "bfloat16": 1e-5}


@dataclass(frozen=True)
class Place:
    """A backend and the dtype of keys and values there."""

    backend: str
    dtype: str

    @property
    def rounding(self) -> float:
        return ROUNDING[self.dtype]

    def __repr__(self) -> str:
        return f"{self.backend}-{self.dtype}"

    def array(self, data: Arr, *, vectors: bool = False) -> Any:
        """As this place holds it; ``vectors`` take its dtype."""
        if self.backend == "numpy":
            return np.array(data, dtype=self.dtype) if vectors else np.array(data)
        made = torch.tensor(np.asarray(data))
        return made.to(getattr(torch, self.dtype)) if vectors else made


PLACES = [Place("numpy", name) for name in ("float64", "float32", "float16")]
PLACES += [Place("torch", name) for name in ("float64", "float32", "float16", "bfloat16")]


@dataclass(frozen=True)
class Scene:
    """Everything in numpy; keys, values and queries in float64, of values that the dtype of ``place`` can hold."""

    view: CacheView
    step: Step
    scores: Arr
    quota: Arr  # [B, H]
    keep: Arr
    place: Place

    @property
    def scored(self) -> Scored:
        """For the stage under test."""
        place, view = self.place, self.view
        columns = {name: replace(c, data=place.array(c.data)) for name, c in view.columns.items()}
        return Scored(
            replace(
                view,
                keys=place.array(view.keys, vectors=True),
                values=place.array(view.values, vectors=True),
                positions=place.array(view.positions),
                valid=place.array(view.valid),
                columns=columns,
                registers={name: place.array(data) for name, data in view.registers.items()},
            ),
            place.array(self.scores),
        )

    @property
    def selection(self) -> Selection:
        return Selection(self.place.array(self.keep))

    @property
    def asked(self) -> Step:
        """The step for the stage under test."""
        return replace(
            self.step,
            queries=self.place.array(self.step.queries, vectors=True),
            query_positions=self.place.array(self.step.query_positions),
            query_valid=self.place.array(self.step.query_valid),
            ops=backend_by_name(self.place.backend),
        )

    def host(self, data: Any) -> Arr:
        made = self.asked.ops.host(data)
        return made.astype(np.float64) if np.issubdtype(made.dtype, np.floating) else made


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(made, torch.Tensor):
                self.elements = max(self.elements, made.numel())
        return out


def by_arrival(view: CacheView, b: int, h: int) -> list[int]:
    """The valid rows of a head, oldest first."""
    return [n for n in np.argsort(view.positions[b, h]).tolist() if view.valid[b, h, n]]


def leaving(scene: Scene, b: int, h: int) -> list[int]:
    return [n for n in by_arrival(scene.view, b, h) if not scene.keep[b, h, n]]


def cosine(one: Arr, other: Arr) -> float:
    length = float(np.sqrt(one @ one) * np.sqrt(other @ other))
    return float(one @ other) / length if length > 0 else 0.0


def make_scene(
    *,
    seed: int = 0,
    place: Place = PLACES[0],
    batch: int = 2,
    heads: int = 2,
    groups: int = 1,
    rows: int = 9,
    empty: int = 0,
    dim: int = 4,
    quota: int | None = None,
    padding: tuple[int, ...] = (),
    keys: str = "random",
    scores: str = "random",
    counts: bool = False,
) -> Scene:
    """A table whose rows lie in any order, with left ``padding`` and ``empty`` slots.

    ``keys``: ``random``; ``axes``, plus or minus a unit vector, so that similarities tie exactly; ``zero``, some of
    them zero; ``equal``; ``dominant``, one very long and all others zero. ``scores``: ``random`` of either sign;
    ``ties``; ``equal``; ``infinite``, some plus and some minus infinity; ``worthless``, all minus infinity;
    ``dominant``, one row has everything. ``counts``: rows stand for several tokens. ``quota`` None: random, 0 included.
    """
    rng = np.random.default_rng(seed)
    shape = (batch, heads, rows + empty)
    arrival = np.concatenate([np.arange(rows), np.full(empty, -1)])
    positions = np.stack([rng.permutation(arrival) for _ in range(batch * heads)]).reshape(shape)
    left = np.array(padding or (0,) * batch)
    valid = (positions >= 0) & (positions >= left[:, None, None])

    def held(data: Arr) -> Arr:
        return np.asarray(torch.tensor(data).to(getattr(torch, place.dtype)).double().numpy())

    vectors = rng.standard_normal((*shape, dim))
    axes = np.eye(dim)[rng.integers(0, dim, shape)] * rng.choice([-1.0, 1.0], shape)[..., None]
    alone = positions == rng.integers(left, rows)[:, None, None]  # one row of each head
    made = {
        "random": vectors,
        "axes": axes,
        "zero": np.where(rng.random(shape)[..., None] < 0.5, vectors, 0.0),
        "equal": np.broadcast_to(3 * np.eye(dim)[0], vectors.shape),
        "dominant": np.where(alone[..., None], 1e4 * np.ones(dim), 0.0),
    }[keys]
    drawn = rng.standard_normal(shape)
    scored = {
        "random": drawn,
        "ties": rng.integers(-1, 2, shape).astype(np.float64),
        "equal": np.full(shape, 0.25),
        "infinite": np.where(drawn > 0.8, np.inf, np.where(drawn < -0.8, -np.inf, drawn)),
        "worthless": np.full(shape, -np.inf),
        "dominant": np.where(alone, 1e6, 0.0),
    }[scores]
    kept = rng.integers(0, rows + 2, (batch, heads)) if quota is None else np.full((batch, heads), quota)
    count = np.where(valid, rng.integers(1, 5, shape) if counts else 1, 0).astype(np.float32)
    view = CacheView(
        keys=held(made),
        values=held(rng.standard_normal((*shape, dim + 1))),
        positions=positions,
        valid=valid,
        columns={"count": Column(count, "sum")},
        layer=3,
        num_layers=5,
    )
    seen = (rows - left).astype(np.int64)
    step = Step(
        phase=Phase.PREFILL,
        seen=seen,
        prompt=seen,
        prompt_kept=np.zeros((batch, heads), np.int64),
        queries=held(rng.standard_normal((batch, heads * groups, rows, dim))),
        query_positions=np.broadcast_to(np.arange(rows), (batch, rows)).copy(),
        query_valid=np.arange(rows) >= left[:, None],
        scale=dim**-0.5,
        ops=backend_by_name("numpy"),
        length=rows,
        held=(valid.sum(-1),) * 5,
    )
    keep = step.ops.top_k(rng.standard_normal(shape), kept, view)
    return Scene(view, step, scored, kept, keep, place)


KEYS = ["random", "random", "axes", "zero", "equal", "dominant"]
SCORES = ["random", "ties", "equal", "infinite", "worthless", "dominant"]


@st.composite
def scenes(draw: st.DrawFn, *, places: tuple[Place, ...] = tuple(PLACES), **fixed: Any) -> Scene:
    """Scenes of every shape and kind, apart from what is ``fixed``."""
    rows = fixed.pop("rows", None) or draw(st.sampled_from([1, 2, 3, 5, 8, 13]), label="rows")
    batch = draw(st.integers(1, 2), label="batch")
    drawn: dict[str, Any] = {
        "seed": draw(st.integers(0, 2**32 - 1), label="seed"),
        "place": draw(st.sampled_from(places), label="place"),
        "heads": draw(st.integers(1, 3), label="heads"),
        "groups": draw(st.integers(1, 2), label="groups"),
        "dim": draw(st.integers(1, 5), label="dim"),
        "empty": draw(st.integers(0, 2), label="empty"),
        "quota": draw(st.one_of(st.none(), st.integers(1, rows)), label="quota"),
        "padding": draw(st.tuples(*[st.integers(0, rows - 1)] * batch), label="padding"),
        "keys": draw(st.sampled_from(KEYS), label="keys"),
        "scores": draw(st.sampled_from(SCORES), label="scores"),
        "counts": draw(st.booleans(), label="counts"),
    }
    return make_scene(rows=rows, batch=batch, **{**drawn, **fixed})
