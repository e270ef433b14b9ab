"""The page: its head, and its sections in order."""

from __future__ import annotations

from scripts.page import DOCS

from .batches import capacity, throughput
from .cpu import cpu
from .decoding import decoding
from .kernels import kernels
from .launches import launches
from .machines import machines
from .not_measured import not_measured
from .parts import Found
from .peers import peers
from .prompts import prompts
from .shapes import shapes
from .targets import targets

__all__ = ["PAGE", "rendered"]

PAGE = DOCS / "performance.md"

HEAD = """\
---
hide: [navigation]
---

# Performance

<!-- All of this page is written by: python -m scripts.performance -->

What a policy costs and what it saves. The model of the tables is a Llama with the sizes named and random weights in
bfloat16: what it says means nothing, what it costs is real. Budgets keep 0.2 of the tokens seen. Every arm was first
held, in the process that timed it, against a reference (its *gate*); an arm that failed would not be timed. Times are
medians of CUDA events after at least three calls that do not count, with the fastest and the slowest in brackets. The
floor of a decode step is the time of reading the weights and the rows at the speed of a copy, measured in the same
process.
"""


def rendered(found: Found) -> str:
    """The page."""
    parts = [HEAD, targets(found)]
    sections = (decoding, prompts, launches, throughput, shapes, capacity, peers, kernels, cpu)
    parts += [section(found) for section in sections]
    parts += [machines(found), not_measured(found)]
    return "\n".join(part for part in parts if part)
