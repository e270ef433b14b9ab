"""What was measured so far, on disk: a run that was killed goes on where it stopped.

One file a process, only ever appended to. A unit of work (the samples of one batch under one arm) is one line: it is
there whole or not at all. A line that a kill cut short is no JSON; it is dropped, and done again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import EvaluationError

__all__ = ["Ledger", "Unit"]


@dataclass(frozen=True, slots=True)
class Unit:
    """The samples from ``start`` to ``stop`` of a task under one arm.

    Attributes:
        task: name of the task, its constructor and, if it is a user's own, its code as `code_of` tells it apart.
        start: the first sample.
        stop: the one after the last.
        arm: label, budget and constructor of the policy; likewise its code.
    """

    task: str
    start: int
    stop: int
    arm: str


@dataclass(eq=False)
class Ledger:
    """The units that are done.

    Args:
        folder: where the files are; those of every process are read.
        process: number of this process, whose file is written.
    """

    folder: Path
    process: int = 0
    done: dict[Unit, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.read()

    @property
    def file(self) -> Path:
        """This process's file."""
        return self.folder / f"units-{self.process:03d}.jsonl"

    def read(self) -> None:
        """Take in what every process has written."""
        for path in sorted(self.folder.glob("units-*.jsonl")):
            lines = path.read_bytes().split(b"\n")
            if lines[-1] and path == self.file:  # cut short by a kill: what follows goes on a line of its own
                os.truncate(path, path.stat().st_size - len(lines[-1]))
            for number, line in enumerate(lines[:-1], 1):
                try:
                    record = json.loads(line)
                    self.done[Unit(**record.pop("unit"))] = record
                except (ValueError, TypeError, KeyError) as error:
                    raise EvaluationError(
                        f"line {number} of {str(path)!r} is no unit of an evaluation: {error}. "
                        f"Hint: evaluate into another folder, or remove this file."
                    ) from error

    def add(self, unit: Unit, rows: Sequence[Mapping[str, Any]] = (), **more: Any) -> None:
        """Write a unit: its rows, and whatever else is to be known of it when the run goes on."""
        record = {"rows": list(rows), **more}
        line = json.dumps({"unit": {name: getattr(unit, name) for name in Unit.__slots__}, **record}) + "\n"
        with self.file.open("ab", buffering=0) as file:
            file.write(line.encode())
            os.fsync(file.fileno())
        self.done[unit] = json.loads(json.dumps(record))
