"""One suite: its command line, its arms one after another, their gates, and its JSON, written after every arm."""

from __future__ import annotations

import argparse
import gc
import json
import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

# Batches that only just fit must not fail for holes between blocks. torch reads this when it first allocates.
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

import torch

from benchmarks import turns
from benchmarks.machine import ceilings, machine
from benchmarks.timing import Times, timed

__all__ = ["GateError", "Hold", "Suite"]

T = TypeVar("T")


class GateError(Exception):
    """An arm is not correct here and now, so it is not timed."""


class Hold:
    """The gates of one arm. Called with what is checked, by how much it is off, and what is allowed."""

    def __init__(self) -> None:
        self.gates: list[dict[str, Any]] = []

    def __call__(self, name: str, error: float, allowed: float, **beside: float) -> None:
        """Pass, and be noted, or stop the arm.

        Args:
            name: what is checked.
            error: how far off the arm is.
            allowed: the most that it may be off; NaN is too far.
            beside: what else tells how much the check is worth.

        Raises:
            GateError: if it is further off than allowed.
        """
        passed = error <= allowed
        self.gates.append({"gate": name, "error": error, "allowed": allowed, "passed": passed, **beside})
        if not passed:
            raise GateError(f"{name}: off by {error:.1e}, allowed {allowed:.1e}")


class Suite:
    """The arms of one suite, as they come.

    Args:
        name: the module's.
        about: its docstring, for ``--help``.
        arguments: of the command line; default: those of the process.
        more: adds options of the suite's own.
    """

    def __init__(
        self,
        name: str,
        about: str | None,
        arguments: Sequence[str] | None = None,
        more: Callable[[argparse.ArgumentParser], None] | None = None,
    ) -> None:
        parser = argparse.ArgumentParser(
            prog=f"benchmarks.{name}", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("result", type=Path, help="where the result goes, as JSON")
        parser.add_argument("--small", action="store_true", help="tiny sizes, also on a CPU: tries the suite itself")
        parser.add_argument("--only", nargs="+", default=[""], metavar="TEXT", help="arms whose label contains a text")
        parser.add_argument("--without", nargs="+", default=[], metavar="TEXT", help="arms to leave out, likewise")
        parser.add_argument("--seconds", type=float, default=540, help="no arm begins later than this (%(default)s)")
        parser.add_argument("--turns", type=Path, help="a file: processes that name it take turns on the device")
        parser.add_argument("--device", help="a torch device; default: the GPU")
        if more is not None:
            more(parser)
        self.options = parser.parse_args(arguments)
        cuda = torch.cuda.is_available()
        if not (cuda or self.options.small or self.options.device):
            parser.error("there is no GPU. Hint: --small, which tries the suite at tiny sizes; or --device cpu.")
        self.small: bool = self.options.small
        self.device = torch.device(self.options.device or ("cuda" if cuda else "cpu"))
        if self.options.turns is not None:
            turns.join(self.options.turns)
        self._begun = time.perf_counter()
        self._found: dict[str, Any] = {
            "suite": name,
            "small": self.small,
            "options": {key: value for key, value in vars(self.options).items() if key not in ("result", "turns")},
            "turns": self.options.turns is not None,
            "machine": machine(self.device),
            "ceilings": ceilings(self.device, small=self.small),
            "arms": [],
        }
        print(*(f"{key} {value}" for key, value in self._found["machine"].items()), sep=", ")
        print(*(f"{key} {value:,.0f}" for key, value in self.ceilings.items()), sep=", ", flush=True)
        self._write()

    @property
    def ceilings(self) -> dict[str, float]:
        """What `benchmarks.machine.ceilings` measured in this process."""
        measured: dict[str, float] = self._found["ceilings"]
        return measured

    def timed(self, run: Callable[[T], object], buffers: Sequence[T], **how: Any) -> Times:
        """`benchmarks.timing.timed`; at tiny sizes, where no time means anything, one call."""
        if self.small:
            how |= {"warm_ups": 1, "fewest": 1, "most": 1}
        return timed(run, buffers, self.device, **how)

    def arm(self, case: Mapping[str, Any], arm: str, run: Callable[[Hold], Mapping[str, Any]]) -> None:
        """Run one arm and note what it found: its result, or why there is none.

        Args:
            case: what is measured, the same for all arms that are compared; ``case["case"]`` is its kind.
            arm: with what.
            run: does it, and first holds it to its gates.
        """
        label = ", ".join(f"{value}" for value in case.values()) + f": {arm}"
        wanted = any(text in label for text in self.options.only)
        if not wanted or any(text in label for text in self.options.without):
            return
        hold, begun = Hold(), time.perf_counter()
        found: dict[str, Any] = {**case, "arm": arm}
        if begun - self._begun > self.options.seconds:
            found["skipped"] = f"the suite had run for {self.options.seconds:.0f} s"
        else:
            try:
                found |= _plain(run(hold))
            except GateError as error:
                found["failed"] = str(error)
            except torch.OutOfMemoryError:
                found["out_of_memory"] = True
            except Exception as error:  # the other arms are worth having
                traceback.print_exc()
                found["error"] = f"{type(error).__name__}: {str(error).strip().partition(os.linesep)[0]}"
            found["gates"] = hold.gates
        if self.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
        found["seconds"] = time.perf_counter() - begun
        self._found["arms"].append(found)
        self._write()
        print(f"{label}: {_told(found)}", flush=True)

    def finish(self) -> int:
        """Close the file. The exit status: 1 if a gate failed or an arm broke."""
        turns.leave()
        self._found["complete"] = True
        self._write()
        return int(any("failed" in arm or "error" in arm for arm in self._found["arms"]))

    def _write(self) -> None:
        self._found["seconds"] = time.perf_counter() - self._begun
        self._found["machine"] |= machine(self.device)  # the suite has loaded more since
        path: Path = self.options.result
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps(self._found, indent=1) + "\n", encoding="utf-8")
        part.replace(path)


def _plain(found: Mapping[str, Any]) -> dict[str, Any]:
    """What JSON can hold."""
    return {
        key: asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
        for key, value in found.items()
    }


def _told(found: Mapping[str, Any]) -> str:
    """One line for people."""
    for key in ("skipped", "failed", "error"):
        if key in found:
            return f"{key}: {found[key]}"
    if "out_of_memory" in found:
        return "out of memory"
    words = []
    for key, value in found.items():
        if isinstance(value, dict) and "median" in value:
            words.append(f"{key} {value['median']:.3f} ({value['least']:.3f} to {value['most']:.3f})")
        elif isinstance(value, float):
            words.append(f"{key} {value:,.3f}")
    return ", ".join(words)
