"""Several processes that share the work, as `torchrun` starts them; one that is started plainly has it all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from accelerate import PartialState  # type: ignore[import-untyped]

from .errors import EvaluationError
from .folder import folder_at

__all__ = ["Processes"]


class Processes:
    """This process among those that accelerate knows of."""

    def __init__(self) -> None:
        gpus = torch.cuda.device_count()
        here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        # Small models leave a GPU idle, so that several processes may share one. NCCL refuses that, and without the
        # flag processes on CPUs do not meet at all; they only wait for each other, which gloo does anywhere.
        self._state = PartialState(cpu=here > gpus)
        if 0 < gpus < here:
            torch.cuda.set_device(self._state.local_process_index % gpus)

    @property
    def number(self) -> int:
        """Of this process, from 0."""
        return int(self._state.process_index)

    @property
    def count(self) -> int:
        """Processes there are."""
        return int(self._state.num_processes)

    @property
    def first(self) -> bool:
        """Whether this is the one that writes what there is one of."""
        return self.number == 0

    def wait(self) -> None:
        """Until every process has come so far."""
        if self.count > 1:
            torch.distributed.barrier()  # not accelerate's, which names a GPU of the process's own

    @contextmanager
    def folder(self, out: str | Path | None) -> Iterator[Path]:
        """The folder that keeps what was measured; one that goes again where none was named.

        Raises:
            EvaluationError: if several processes have no folder to meet in, or there is a file in its place.
        """
        if out is None:
            if self.count > 1:
                raise EvaluationError(f"{self.count} processes need a folder to meet in. Hint: out='results'.")
            with TemporaryDirectory(prefix="kvpolicy-") as made:
                yield Path(made)
            return
        yield folder_at(out)
