"""What a policy does to one layer, verb by verb: milliseconds, bytes a second against a copy, operations a second.

    python -m benchmarks.kernels result.json

Every backend is first held against the numpy oracle on a table small enough for loops, then, at the size that is timed,
against the torch backend. Times are the device's alone: launches are hidden behind a wait. Bytes are the fewest that
the verb has to move: each input read once, each output written once.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.caches import KEEP
from benchmarks.decode_attention import decode_attention_arms
from benchmarks.decoding import distance
from benchmarks.models import LLAMA, LLAVA, QWEN, SMALL, Shape
from benchmarks.profiled import launched, most
from benchmarks.suite import Hold, Suite
from benchmarks.tables import in_numpy, plan, prompted
from kvpolicy import Backend, CacheView, Plan, Step, backend_by_name

LENGTHS: Mapping[bool, Mapping[Shape, Sequence[int]]] = {
    False: {LLAVA: (1024, 4096, 16384, 32768), LLAMA: (4096, 32768), QWEN: (4096, 32768)},
    True: {SMALL: (40,)},
}
BACKENDS = {
    "torch": 4096,
    "triton": 1 << 20,
}  # and the rows up to which each is timed: a call takes seconds then
ORACLE_TOKENS = 37
AGAINST_ORACLE = 1e-4  # relative, float32 against float64
AGAINST_TORCH = 5e-3  # relative, of what is rounded to bfloat16 in the end; attention mass stays in float32
SHOWN = 4  # kernels of a verb
SPREAD_BYTES = 256 << 20  # of the buffers together: more than any cache of the device holds

Table: TypeAlias = tuple[CacheView, Step, Plan]


@dataclass(frozen=True)
class Verb:
    """One thing that a backend does to a table.

    Attributes:
        run: does it; returns what is to be compared.
        table: makes the table for it of a view and a step; a plan goes with it.
        bytes: the fewest to move for a shape and a length, two bytes an element of keys and values.
        flops: of the products of queries or keys with keys, 0 where moving is all.
    """

    run: Callable[[Backend, Table], Any]
    table: Callable[[CacheView, Step], Table]
    bytes: Callable[[Shape, int], int]
    flops: Callable[[Shape, int], int]


def _mass(queries: int | None) -> Verb:
    """Column sums of the attention of all queries, or of the last ones."""

    def table(view: CacheView, step: Step) -> Table:
        return view, step if queries is None else step.latest(queries), Plan(keep=view.valid)

    def flops(shape: Shape, length: int) -> int:
        pairs = length * (length + 1) // 2 if queries is None else min(queries, length) * length
        return 2 * pairs * shape.query_heads * shape.dim

    return Verb(
        run=lambda backend, given: backend.attention_mass(given[0], given[1]),
        table=table,
        bytes=lambda shape, n: 2 * shape.dim * (shape.heads * n + shape.query_heads * min(queries or n, n)),
        flops=flops,
    )


def _compact(*, merge: bool) -> Verb:
    """Survivors move; with ``merge`` every row is read, for it goes somewhere."""

    def run(backend: Backend, given: Table) -> Any:
        view, _, made = given
        after = backend.compact(view, made, round(KEEP * view.shape[2]))
        return after.keys, after.values

    def moved(shape: Shape, length: int) -> int:
        kept = round(KEEP * length)
        return 2 * 2 * shape.dim * shape.heads * ((length if merge else kept) + kept)

    def table(view: CacheView, step: Step) -> Table:
        return view, step, plan(view, step, merge=merge)

    return Verb(run, table, moved, lambda shape, length: 0)


def _similar() -> Verb:
    """The nearest kept key of every row that leaves."""

    def run(backend: Backend, given: Table) -> Any:
        view, _, made = given
        return backend.most_similar(view, view.valid & ~made.keep, made.keep)[1]

    def flops(shape: Shape, length: int) -> int:
        kept = round(KEEP * length)
        return 2 * (length - kept) * kept * shape.heads * shape.dim

    def table(view: CacheView, step: Step) -> Table:
        return view, step, plan(view, step, merge=False)

    return Verb(run, table, lambda shape, n: 2 * shape.dim * shape.heads * n, flops)


VERBS: Mapping[str, Verb] = {
    "attention mass, all queries": _mass(None),
    "attention mass, last 32 queries": _mass(32),
    "attention mass, last query": _mass(1),
    "compaction": _compact(merge=False),
    "compaction with merge": _compact(merge=True),
    "nearest key": _similar(),
}


def attention(given: Table) -> Tensor:
    """The layer's own attention, to compare with."""
    view, step, _ = given
    grouped = step.queries.shape[1] != view.keys.shape[1]
    return scaled_dot_product_attention(
        step.queries, view.keys, view.values, is_causal=True, scale=step.scale, enable_gqa=grouped
    )


class Kernels:
    """The suite's arms."""

    def __init__(self, suite: Suite) -> None:
        self.suite = suite
        self.dtype = torch.bfloat16 if suite.device.type == "cuda" else torch.float32
        self.off = lru_cache(None)(self._off)

    def arms(self) -> None:
        """Every verb at every shape and length, on each backend."""
        for shape, lengths in LENGTHS[self.suite.small].items():
            for length in lengths:
                case = {"case": "attention", "model": shape.model, "rows": length}
                self.suite.arm(case, "sdpa", lambda hold, s=shape, n=length: self.plain(s, n))
                for name in VERBS:
                    case = {"case": name, "model": shape.model, "rows": length}
                    for backend in (each for each, longest in BACKENDS.items() if length <= longest):
                        self.suite.arm(
                            case,
                            backend,
                            lambda hold, s=shape, n=length, v=name, b=backend: self.verb(hold, s, n, v, b),
                        )

    def buffers(self, shape: Shape, length: int, verb: Verb) -> list[Table]:
        """Enough tables that none is in the device's cache when its turn comes; three at least."""
        each = 2 * shape.dim * (shape.query_heads + 2 * shape.heads) * length
        count = 3 if self.suite.small else max(3, min(16, math.ceil(SPREAD_BYTES / each)))
        tables = (prompted(shape, length, self.suite.device, self.dtype, seed) for seed in range(count))
        return [verb.table(*made) for made in tables]

    def plain(self, shape: Shape, length: int) -> dict[str, Any]:
        """Attention itself."""
        whole = _mass(None)
        buffers = self.buffers(shape, length, whole)
        times = self.suite.timed(attention, buffers, queued=True)
        return {"ms": times, "tflop_s": 2 * whole.flops(shape, length) / times.median / 1e9}

    def verb(self, hold: Hold, shape: Shape, length: int, name: str, backend: str) -> dict[str, Any]:
        """One verb on one backend, after its gates."""
        verb, ops = VERBS[name], backend_by_name(backend)
        hold(f"numpy oracle, {ORACLE_TOKENS} tokens in float32", self.off(name, backend), AGAINST_ORACLE)
        buffers = self.buffers(shape, length, verb)
        if backend != "torch":
            got, due = verb.run(ops, buffers[0]), verb.run(backend_by_name("torch"), buffers[0])
            hold("torch backend at this size", _distance(got, due), AGAINST_TORCH)
            again = verb.run(ops, buffers[0])
            hold("bits that two runs share", float(not _equal(got, again)), 0.0)
        times = self.suite.timed(lambda given: verb.run(ops, given), buffers, queued=True)
        by_launch = self.suite.timed(lambda given: verb.run(ops, given), buffers)
        parts = launched(lambda: verb.run(ops, buffers[0]), self.suite.device)
        moved, flops = verb.bytes(shape, length), verb.flops(shape, length)
        gb_s = moved / times.median / 1e6
        return {
            "ms": times,
            "launched_ms": by_launch,
            "most": most(parts, SHOWN),
            "gb_s": gb_s,
            "of_copy": gb_s / self.suite.ceilings["copy_gb_s"],
            "tflop_s": flops / times.median / 1e9,
        }

    def _off(self, name: str, backend: str) -> float:
        """How far a backend is off the oracle, on a table small enough for it."""
        verb = VERBS[name]
        shape = replace(SMALL, dim=16)
        table = verb.table(*prompted(shape, ORACLE_TOKENS, self.suite.device, torch.float32, 0))
        due = verb.run(backend_by_name("numpy"), tuple(in_numpy(part) for part in table))
        return _distance(verb.run(backend_by_name(backend), table), due)


def _distance(got: Any, due: Any) -> float:
    """The relative distance of tensors, all of them together; NaN if any is."""
    if isinstance(got, tuple):
        return math.hypot(*(_distance(*pair) for pair in zip(got, due, strict=True)))
    return distance(got.cpu().double(), torch.as_tensor(due).cpu().double())


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, tuple):
        return all(_equal(*pair) for pair in zip(one, other, strict=True))
    return torch.equal(one, other)


def main(arguments: Sequence[str] | None = None) -> int:
    """All verbs; the exit status."""
    with torch.no_grad():
        suite = Suite("kernels", __doc__, arguments)
        decode_attention_arms(suite)
        Kernels(suite).arms()
        return suite.finish()


if __name__ == "__main__":
    sys.exit(main())
