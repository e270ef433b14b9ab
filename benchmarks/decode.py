"""Decode steps in one setting: without a policy, with each, and with as few rows from the start; launched in all ways.

    python -m benchmarks.decode result.json

Every arm's logits are first held against those of the same cache run eagerly, for one request alone, and where there is
a policy on the torch backend.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from benchmarks.caches import KEEP, POLICIES, dynamic, policed, static, steady
from benchmarks.decoding import CHECKED, LAUNCHES, Request
from benchmarks.models import LLAVA, SMALL
from benchmarks.stepping import Stepping
from benchmarks.suite import Suite

REQUEST = {False: Request(16, 1024, 224, 64, warm=True), True: Request(2, 60, 14, 4, warm=True)}
NEW = {False: 512, True: 24}


def arms(suite: Suite) -> None:
    """All of them; the steps that are timed are those in the middle of the request."""
    steps, shape, request = Stepping(suite), SMALL if suite.small else LLAVA, REQUEST[suite.small]
    most = request.prompt + NEW[suite.small]
    case = {"case": "table", "model": shape.model, "batch": request.batch, "prompt": request.prompt, "most": most}
    few, left = round(KEEP * most), round(KEEP * request.prompt)
    grown = request.before + request.timed // 2

    steps.arm(case, "DynamicCache, eager", request, dynamic, "eager", shape=shape, rows=request.prompt + grown)
    for launch in LAUNCHES:
        steps.arm(case, f"StaticCache, {launch}", request, static(most), launch, shape=shape, rows=most)
    # Few rows from the start: a prompt as short as a policy leaves it, and steps that end before the slots do.
    ideal = Request(request.batch, left, CHECKED + 2, request.timed, warm=True)
    slots = max(few, ideal.prompt + ideal.before + ideal.timed)
    for launch in LAUNCHES:
        steps.arm(case, f"ideal, {launch}", ideal, static(slots), launch, shape=shape, rows=slots)
    for name, policy in POLICIES.items():
        rows = few if policy.decode is not None else left + grown
        for launch in LAUNCHES:
            make = policed(policy) if launch == "eager" else steady(policy, most)
            steps.arm(case, f"{name}, {launch}", request, make, launch, shape=shape, rows=rows, policy=policy)


def main(arguments: Sequence[str] | None = None) -> int:
    """All arms; the exit status."""
    with torch.no_grad():
        suite = Suite("decode", __doc__, arguments)
        arms(suite)
        return suite.finish()


if __name__ == "__main__":
    sys.exit(main())
