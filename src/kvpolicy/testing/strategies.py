"""Hypothesis strategies for caches, steps, scores, segments, budgets and whole requests, down to one of everything.

`tables` and `requests` give examples that print as their own constructor call; the others are their parts, and arrays
made from them, for tests of your own.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from hypothesis import strategies as st

from .._plan import Scored
from .._step import Step
from .._types import CacheView
from ._numbers import DTYPES
from ._places import place_of
from .requests import Request
from .tables import SCORES, VECTORS, Table

__all__ = ["budgets", "caches", "dtypes", "requests", "scores", "segments", "steps", "tables", "vectors"]

_NONE: Mapping[str, int] = MappingProxyType({})
_SEEDS = st.integers(0, 2**16 - 1)


def dtypes() -> st.SearchStrategy[str]:
    """Of keys and values: ``"float64"``, ``"float32"``, ``"float16"``, ``"bfloat16"`` (which numpy does not have)."""
    return st.sampled_from(DTYPES)


def vectors() -> st.SearchStrategy[str]:
    """Kinds of keys and values, see `Table`."""
    return st.sampled_from(VECTORS)


def scores() -> st.SearchStrategy[str]:
    """Kinds of scores, see `Table`: ties, ±inf, all equal, denormals, ..."""
    return st.sampled_from(SCORES)


def budgets(tokens: int) -> st.SearchStrategy[int | None]:
    """Rows for each head: where some stay and others leave, and at every edge; None: each its own.

    The edges are 0, 1, one less than there are, all, one too many.
    """
    some = sorted({max(1, tokens // 3), max(1, tokens // 2), max(1, tokens - 1)})
    edges = sorted({0, 1, tokens, tokens + 1})
    return st.sampled_from(some) | st.sampled_from([None, *edges]) | st.integers(0, tokens + 1)


def segments(tokens: int) -> st.SearchStrategy[tuple[int, int]]:
    """An image among so many tokens: its first token and the one behind its last; (0, 0): there is none."""
    return st.just((0, 0)) | st.tuples(st.integers(0, tokens), st.integers(0, tokens)).map(
        lambda ends: (min(ends), max(ends))
    )


class _Choices:
    """Arguments of an example: those that are fixed, and those that are drawn."""

    def __init__(self, draw: st.DrawFn, least: Mapping[str, int], fixed: Mapping[str, Any]) -> None:
        self._draw, self._least = draw, least
        self.made: dict[str, Any] = dict(fixed)

    def choose(self, name: str, strategy: st.SearchStrategy[Any]) -> Any:
        """The argument, drawn unless it is fixed."""
        if name not in self.made:
            self.made[name] = self._draw(strategy)
        return self.made[name]

    def size(self, name: str, most: int) -> int:
        """A size of at least what is asked for, and else up to ``most``."""
        low = self._least.get(name, 1)
        return int(self.choose(name, st.integers(low, max(low, most))))


@st.composite
def tables(draw: st.DrawFn, /, *, least: Mapping[str, int] = _NONE, most_tokens: int = 10, **fixed: Any) -> Table:
    """Tables in every state that a request can be in: a prompt, a chunk, a further turn, decoding for a while.

    Args:
        draw: given by hypothesis.
        least: lower bounds of sizes, such as ``{"heads": 2}``.
        most_tokens: upper bound of ``tokens``.
        fixed: arguments of `Table` that are not drawn.
    """
    chosen = _Choices(draw, least, fixed)
    choose, size = chosen.choose, chosen.size
    tokens = size("tokens", most_tokens)
    batch = size("batch", 2)
    size("layers", 3)
    size("heads", 3)
    size("groups", 2)
    size("value_dim", 2)
    choose("dim", st.sampled_from([2, 4]))
    choose("seed", _SEEDS)
    state = draw(st.sampled_from(["prompt", "decoding", "turn"]))
    now = choose("now", st.just({"prompt": tokens, "decoding": 1}.get(state, (tokens + 1) // 2)))
    choose("phase", st.just("decode" if state == "decoding" and now == 1 and tokens > 1 else "prefill"))
    choose("padding", st.just(()) | st.tuples(*(st.integers(0, tokens - 1) for _ in range(batch))))
    choose("evicted", st.sampled_from([0.0, 0.3, 0.7]) if now < tokens else st.just(0.0))
    choose("empty", st.integers(0, 2) if now < tokens else st.just(0))
    choose("shuffled", st.booleans() if now == 1 < tokens else st.just(False))
    choose("merged", st.booleans())
    choose("image", segments(tokens))
    choose("vectors", vectors())
    choose("scores", scores())
    choose("quota", budgets(tokens))
    return Table(**chosen.made)


@st.composite
def requests(
    draw: st.DrawFn,
    /,
    *,
    least: Mapping[str, int] = _NONE,
    most_tokens: int = 8,
    most_steps: int = 3,
    **fixed: Any,
) -> Request:
    """Whole requests: a prompt, some decode steps, perhaps a second turn.

    Args:
        draw: given by hypothesis.
        least: lower bounds of sizes, such as ``{"batch": 2}``.
        most_tokens: upper bound of ``prompt``.
        most_steps: upper bound of ``steps``.
        fixed: arguments of `Request` that are not drawn.
    """
    chosen = _Choices(draw, least, fixed)
    choose, size = chosen.choose, chosen.size
    prompt = size("prompt", most_tokens)
    batch = size("batch", 2)
    for name, most in (("layers", 2), ("heads", 2), ("groups", 2), ("value_dim", 2)):
        size(name, most)
    choose("dim", st.sampled_from([2, 4]))
    choose("seed", _SEEDS)
    choose("steps", st.integers(least.get("steps", 0), most_steps))
    choose("turn", st.sampled_from([0, 0, 2]))
    choose("padding", st.just(()) | st.tuples(*(st.integers(0, prompt - 1) for _ in range(batch))))
    choose("image", segments(prompt))
    return Request(**chosen.made)


def caches(*, backend: str = "numpy", **fixed: Any) -> st.SearchStrategy[CacheView]:
    """One layer's table as a stage sees it, on a backend; ``fixed`` as for `tables`."""
    return steps(backend=backend, **fixed).map(lambda found: found[0].view)


def steps(*, backend: str = "numpy", **fixed: Any) -> st.SearchStrategy[tuple[Scored, Step]]:
    """One layer's table with scores, and the step (prefill, chunked prefill, decode) that led to it."""
    ops, device = place_of(backend)

    def handed(table: Table) -> tuple[Scored, Step]:
        staged = table.build().on(ops, device)
        return staged.scored[0], staged.steps[0]

    allowed = {"dtype": "float64", **fixed}
    return tables(**{"layers": 1, **allowed}).map(handed)
