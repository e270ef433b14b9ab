"""Several processes that share a GPU: they meet over gloo, and none asks for a GPU that is not there."""

from __future__ import annotations

import pytest
import torch

from kvpolicy_hf.evaluate import processes


class State:
    """Stands in for accelerate's, which would wait for the other processes."""

    def __init__(self, *, cpu: bool) -> None:
        self.cpu, self.local_process_index, self.process_index, self.num_processes = cpu, 2, 2, 3


@pytest.mark.parametrize(
    ("gpus", "here", "gloo", "chosen"),
    [(1, 3, True, [0]), (2, 3, True, [0]), (4, 3, False, []), (1, 1, False, []), (0, 3, True, []), (0, 1, True, [])],
)
def test_the_gpu_of_a_process(
    monkeypatch: pytest.MonkeyPatch, gpus: int, here: int, gloo: bool, chosen: list[int]
) -> None:
    taken: list[int] = []
    monkeypatch.setattr(processes, "PartialState", State)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(here))
    assert processes.Processes()._state.cpu is gloo
    assert taken == chosen
