"""What the suites of `benchmarks` wrote, put together from the files of all their processes."""

from __future__ import annotations

import json
from pathlib import Path

from scripts.page import DOCS

from .parts import Arm, Found

__all__ = ["RESULTS", "SUITES", "load"]

RESULTS = DOCS / "results" / "performance"
SUITES = ("kernels", "launches", "prefill", "decode", "series", "capacity", "peers", "cpu")


def load(folder: Path = RESULTS) -> Found:
    """What is in the files that are there: SUITE.json, and SUITE-more.json of further processes.

    Every arm was written when it was through, so what a run that was cut off had come to is as good as any. An arm that
    a further process ran again is the further one's; one that it only skipped is not.

    Raises:
        ValueError: if one is of a trial at tiny sizes.
    """
    found: Found = {}
    for suite in SUITES:
        by: dict[str, Arm] = {}
        for file in [*folder.glob(f"{suite}.json"), *sorted(folder.glob(f"{suite}-*.json"))]:
            ran = json.loads(file.read_text(encoding="utf-8"))
            if ran["small"]:
                raise ValueError(f"{file} is no result: it was made with --small.")
            again = {_identity(arm): arm for arm in ran["arms"]}
            again = {key: arm for key, arm in again.items() if "skipped" not in arm or key not in by}
            by = {key: arm for key, arm in by.items() if key not in again} | again
            whole = found.setdefault(suite, {**ran, "processes": []})
            whole["arms"] = list(by.values())
            whole["processes"].append(ran)
    return found


def _identity(arm: Arm) -> str:
    """Its case and its name: what stands before its results."""
    keys = list(arm)
    return json.dumps({key: arm[key] for key in keys[: keys.index("arm") + 1]}, sort_keys=True)
