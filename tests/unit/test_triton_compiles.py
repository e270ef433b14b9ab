"""The kernels as a GPU's compiler sees them, which needs no GPU: the interpreter accepts what the compiler refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

COMPILE = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kvpolicy.backends._triton_mass import column_sums, log_sum_exp

FIXED = {"HEADS": 6, "GROUPS": 3, "DIM": 80, "BLOCK_S": 32, "BLOCK_D": 128, "q_column": 1, "k_column": 1}
TYPES = {"sees": "*i32", "arrival": "*i32", "scale": "fp32", "softcap": "fp32"}
TYPES |= dict.fromkeys(["bias", "sinks", "weights", "sums", "out"], "*fp32")
PLAIN = dict.fromkeys(["bias", "sinks", "weights", "softcap"])
WAYS = [
    ("bf16", {**PLAIN, "IN_ORDER": True, "BLOCK_Q": 32}),  # a prompt
    ("fp16", {**PLAIN, "IN_ORDER": False, "BLOCK_Q": 16, "total": 1}),  # a decode step; 1 is known to the compiler
    ("fp32", {"IN_ORDER": True, "BLOCK_Q": 32}),  # a prompt with all that a model and a policy may ask for
]
for kernel in (log_sum_exp, column_sums):
    for dtype, way in WAYS:
        types = {**TYPES, "queries": "*" + dtype, "keys": "*" + dtype}
        fixed = {name: value for name, value in {**FIXED, **way}.items() if name in kernel.arg_names}
        signature = {name: "constexpr" if name in fixed else types.get(name, "i32") for name in kernel.arg_names}
        made = compile(ASTSource(kernel, signature, fixed), target=GPUTarget("cuda", 90, 32))
        assert made.asm["ptx"]
"""


def test_the_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    settings = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
