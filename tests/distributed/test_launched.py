"""The examples for several processes, started as their docstrings say."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def alone(
    example: str, *options: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> list[str]:
    """What it prints on one process, this one."""
    monkeypatch.setattr(sys, "argv", [example, *options])
    runpy.run_path(str(EXAMPLES / example), run_name="__main__")
    return capsys.readouterr().out.splitlines()


def launched(launch: tuple[str, ...], example: str, *options: str) -> list[str]:
    """What it prints on two."""
    done = subprocess.run(
        [sys.executable, *launch, str(EXAMPLES / example), *options],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},  # two processes of the CPU
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_tensor_parallel(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    one = alone("08_tensor_parallel.py", monkeypatch=monkeypatch, capsys=capsys)
    two = launched(TORCHRUN, "08_tensor_parallel.py")
    assert two[:2] == one[:2]
    assert [line.split()[0] for line in (one[2], two[2])] == ["1", "2"]


def test_data_parallel(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    one = alone("10_data_parallel.py", "--questions", "3", monkeypatch=monkeypatch, capsys=capsys)
    assert len(one) == 4
    assert launched(TORCHRUN, "10_data_parallel.py", "--questions", "3") == one
