"""What ran on the device, launch by launch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

__all__ = ["launched", "most"]

OF_TORCH = ("aten::", "Memcpy", "Memset")
LETTERS = 80  # of a kernel's name


def launched(run: Callable[[], object], device: torch.device) -> list[tuple[str, float]]:
    """Names of the kernels that it launches, and the microseconds of each; on a CPU, of torch's operators."""
    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as seen:
        run()
        if cuda:
            torch.cuda.synchronize()
    kind = torch.autograd.DeviceType.CUDA if cuda else torch.autograd.DeviceType.CPU
    return [
        (event.name[:LETTERS], float(event.device_time if cuda else event.self_cpu_time_total))
        for event in seen.events()
        if event.device_type == kind and (cuda or event.name.startswith(OF_TORCH))
    ]


def most(kernels: list[tuple[str, float]], count: int) -> list[tuple[str, float]]:
    """Those that take most of the time in all, each with its milliseconds."""
    taken: Counter[str] = Counter()
    for name, microseconds in kernels:
        taken[name] += microseconds
    return [(name, microseconds / 1000) for name, microseconds in taken.most_common(count)]
