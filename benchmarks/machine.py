"""Where and with what a suite runs, and what this machine can do at most."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from datetime import UTC, datetime

import torch

from benchmarks.timing import timed

__all__ = ["ceilings", "machine"]

PACKAGES = ("torch", "triton", "transformers", "kvpolicy", "kvpress")


def machine(device: torch.device) -> dict[str, str]:
    """The device, the versions of what is loaded, and the time."""
    found = {"device": torch.cuda.get_device_name() if device.type == "cuda" else _processor()}
    if device.type == "cuda":
        found["cuda"] = str(torch.version.cuda)
    found["python"] = platform.python_version()
    found |= {name: _version(name) for name in PACKAGES if name in sys.modules}
    found["date"] = datetime.now(UTC).isoformat(timespec="seconds")
    return found


def ceilings(device: torch.device, *, small: bool) -> dict[str, float]:
    """Bandwidth of a copy, read and written bytes counted, in GB/s; rate of a bfloat16 matrix product in TFLOP/s.

    Both on random data; on a CPU the product is of float32.
    """
    cuda = device.type == "cuda"
    size = 1 << 24 if small or not cuda else 1 << 31
    sources = [torch.randint(0, 255, (size,), dtype=torch.uint8, device=device) for _ in range(2)]
    target = torch.empty_like(sources[0])
    copying = timed(target.copy_, sources, device)
    side = 256 if small or not cuda else 8192
    dtype = torch.bfloat16 if cuda else torch.float32
    factors = [torch.randn(side, side, device=device, dtype=dtype) for _ in range(2)]
    multiplying = timed(lambda factor: factor @ factors[0], factors, device)
    return {
        "copy_gb_s": 2 * size / copying.median / 1e6,
        "matrix_tflop_s": 2 * side**3 / multiplying.median / 1e9,
    }


def _processor() -> str:
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass  # no such file but on Linux
    return f"{name}, {os.cpu_count()} cores"


def _version(name: str) -> str:
    version = getattr(sys.modules[name], "__version__", None)
    return str(version or importlib.metadata.version(name))
