"""The kernels as a GPU's compiler sees them, which needs no GPU: the interpreter accepts what the compiler refuses.

The compiled program also says whether its registers suffice. One that spills them to memory is not what was tuned.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

PREAMBLE = """
import re
import subprocess
import tempfile

from triton import compile, knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

POINTERS = {
    **dict.fromkeys("sees arrival latest least marked most order total asking anchors asked offered".split(), "*i32"),
    **dict.fromkeys("lowest highest takers following".split(), "*i32"),
    **dict.fromkeys("positions last into earliest arrivals".split(), "*i64"),
    **dict.fromkeys("valid counted mask taken".split(), "*i1"),
    **dict.fromkeys("bias sinks weights sums out inverse similarity weight own key_scale value_scale".split(), "*fp32"),
    **dict.fromkeys("key_sums value_sums".split(), "*fp32"),
    **dict.fromkeys(["scale", "softcap"], "fp32"),
}
VECTORS = ["queries", "keys", "values", "out_keys", "out_values"]
EVEN = "q_batch q_head q_row k_batch k_head k_row v_batch v_head v_row".split()


def check(kernel, dtype="bf16", warps=4, stages=2, numbers=("rows",), spills=0, registers=None, **fixed):
    types = {**POINTERS, **dict.fromkeys(VECTORS, "*" + dtype), **dict.fromkeys(numbers, "i32")}
    fixed = {name: value for name, value in fixed.items() if name in kernel.arg_names}
    signature = {name: "constexpr" if name in fixed else types.get(name, "i32") for name in kernel.arg_names}
    whole = [["tt.divisibility", 16]]
    attributes = {
        (at,): whole for at, name in enumerate(kernel.arg_names) if signature[name][0] == "*" or name in EVEN
    }
    made = compile(
        ASTSource(kernel, signature, fixed, attributes),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": warps, "num_stages": stages, "maxnreg": registers},
    )
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(made.asm["ptx"])
        file.flush()
        command = [knobs.nvidia.ptxas.path, "-v", "--gpu-name", "sm_90a", file.name, "-o", "/dev/null"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spilled = re.search(r"(\\d+) bytes spill stores", said)
    assert spilled is not None and int(spilled[1]) <= spills, f"{kernel.__name__} {fixed}: {said}"
"""

MASS = """
from kvpolicy.backends.triton.kernels.mass import DEFAULT, TILINGS, column_sums, horizons, log_sum_exp

ALONE = dict(HEADS=6, GROUPS=1, STACK=1, SPLITS=1, NATURAL=False, DIM=128, BLOCK_D=128, q_column=1, k_column=1)
PLAIN = dict(bias=None, sinks=None, weights=None, softcap=None, FOLDED=True)
check(horizons, numbers=("total", "rows"), HEADS=6, BLOCK_Q=128, BLOCK_S=64)
for kernel, tiles in zip((log_sum_exp, column_sums), TILINGS[DEFAULT]):
    size = dict(BLOCK_Q=tiles.queries, BLOCK_S=tiles.rows, warps=tiles.warps, stages=tiles.stages)
    check(kernel, numbers=("total", "rows"), **ALONE, **PLAIN, **size, IN_ORDER=True)  # a prompt
    # A decode step; 1 is known to the compiler.
    few = dict(BLOCK_Q=16, BLOCK_S=64, stages=3, IN_ORDER=False, **{**ALONE, "STACK": 3, "SPLITS": 8, "DIM": 80})
    check(kernel, "fp16", **few, **PLAIN, total=1)
own = dict(IN_ORDER=True, FOLDED=False, **{**ALONE, "GROUPS": 3})
# A prompt with all that a model and a policy may ask for.
check(log_sum_exp, "fp32", numbers=("total", "rows"), **own, BLOCK_Q=64, BLOCK_S=32)
check(column_sums, "fp32", numbers=("total", "rows"), **{**own, "NATURAL": True}, BLOCK_Q=32, BLOCK_S=64)
"""

FOLD = """
from kvpolicy.backends.triton.kernels.columns import fold_columns
from kvpolicy.backends.triton.kernels.fold import FOLDING, FOLDINGS, fold
from kvpolicy.backends.triton.kernels.lists import rank, survey

size = FOLDINGS[FOLDING]
lists = dict(numbers=("total", "rows"), HEADS=6, CHUNK=size.chunk, WIDE=64)
check(rank, FEW=4, **{**lists, "numbers": ("rows",)})
check(rank, FEW=4, arrivals=None, taken=None, **{**lists, "numbers": ("rows",)})
shape = dict(DIM=128, BLOCK_D=128, VALUE_DIM=128, BLOCK_V=128, k_column=1, v_column=1, BLOCK=size.survivors, **lists)
nothing = "into weight following own keys values least most lowest highest takers key_sums value_sums".split()
nothing += ["key_scale", "value_scale"]
check(survey, TARGETS=1, CROWD=size.crowd, CROWDS=0, FEW=8, **shape, **dict.fromkeys(nothing))
crowds = dict(TARGETS=1, CROWD=size.crowd, CROWDS=size.chunk // size.crowd, FEW=1, GROUPS=size.groups)
# Where registers are few, numbers that a whole program needs are put aside; what its loops use is not.
few = dict(MERGE_KEYS=True, warps=size.warps, registers=size.registers, spills=64)
for dtype, fewest in (("bf16", few), ("fp32", {**few, "registers": None})):
    check(survey, dtype, **shape, **crowds)
    check(fold, dtype, key_scale=None, value_scale=None, **fewest, **shape, **crowds)
# Here the assembler, which may take 255 registers, puts a few numbers aside so that more programs fit.
for targets in (1, 2):
    other = {**shape, **crowds, "VALUE_DIM": 80, "TARGETS": targets, "CROWDS": targets * crowds["CROWDS"], "spills": 64}
    check(survey, keys=None, key_sums=None, **other)
    check(fold, MERGE_KEYS=True, warps=size.warps, **other)
    check(fold, MERGE_KEYS=False, warps=size.warps, key_sums=None, **other)
nothing = [name for name in nothing if name not in ("keys", "values")]
check(fold, **few, **shape, **crowds, **dict.fromkeys(nothing))
POINTERS.update(data=("*fp32", "*i64"), out=("*fp32", "*i64"))
check(fold_columns, SUMMED=(True, False), TARGETS=2, BLOCK=16, MANY=4, **lists)
check(fold_columns, SUMMED=(False, False), TARGETS=1, BLOCK=16, MANY=4, into=None, **lists)
"""

NEAREST = """
from kvpolicy.backends.triton.kernels.nearest import SEARCH, SEARCHES, lengths, nearest

size = SEARCHES[SEARCH]
head = dict(HEADS=6, DIM=128, BLOCK_D=128, k_column=1)
check(lengths, BLOCK=32, **head)
check(nearest, BLOCK_R=size.rows, BLOCK_A=size.anchors, warps=size.warps, stages=size.stages, **head)
check(nearest, "fp32", BLOCK_R=16, BLOCK_A=32, **head)
"""

ORDER = """
from kvpolicy.backends.triton.kernels.order import BLOCK, CHUNK, best, nearest_arrival, ranks, sums

size = dict(HEADS=6, BLOCK=BLOCK, CHUNK=CHUNK)
POINTERS.update(rank="*i64", quota="*i64", protected="*i64", out="*i1", keep="*i1", scores="*fp32")
check(best, **size)
check(best, rank=None, protected=None, **size)
POINTERS.update(out="*i64")
for kernel in (ranks, nearest_arrival):
    check(kernel, **size)
POINTERS.update(data="*fp32", out="*fp32", index="*i64")
check(sums, numbers=("items", "rows"), **size)
"""

PUT = """
from kvpolicy.backends.triton.kernels.put import put

POINTERS.update(base="*i64", new_position="*i64", new_valid="*i1", new_keys="*bf16", new_values="*bf16")
POINTERS.update(columns=("*fp32", "*i64"), new_columns=("*i1", "*i64"))
shape = dict(HEADS=6, DIM=128, BLOCK_D=128, VALUE_DIM=80, BLOCK_V=128, CHUNK=128, nk_column=1, nv_column=1, warps=1)
check(put, GIVEN=(True, False), **shape)
check(put, GIVEN=(True, True), base=None, **shape)
"""


@pytest.mark.parametrize("kernels", [MASS, FOLD, NEAREST, ORDER, PUT], ids=["mass", "fold", "nearest", "order", "put"])
def test_the_kernels_compile_for_a_gpu_and_spill_nothing(kernels: str, tmp_path: Path) -> None:
    settings = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", PREAMBLE + kernels]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
