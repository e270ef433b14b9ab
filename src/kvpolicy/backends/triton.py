"""The triton backend: attention mass as two kernels, all else as the torch backend does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor

from .._errors import BackendUnavailableError
from .._types import CacheView, Scores, Step
from ._triton_mass import FAR, INTERPRETED, LOG2_E, column_sums, log_sum_exp
from .torch import TorchBackend

__all__ = ["TritonBackend"]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_TINY = torch.finfo(torch.float32).tiny


@final
@dataclass(frozen=True, slots=True)
class TritonBackend(TorchBackend):
    """PyTorch on a CUDA device, with kernels of its own; on any device where TRITON_INTERPRET=1 was set at import.

    Args:
        chunk_elements: as for `TorchBackend`.
        tile_bytes: of queries, and of keys, that a program of a kernel holds at once; a tile is 16 to 128 rows, a power
            of two.

    Raises:
        BackendUnavailableError: without a CUDA device, unless kernels are interpreted.
    """

    tile_bytes: int = 1 << 15

    def __post_init__(self) -> None:
        if not (INTERPRETED or torch.cuda.is_available()):
            raise BackendUnavailableError(
                "backend='triton' needs a CUDA device, and torch finds none. Hint: backend='torch'; or, to try the "
                "kernels without one, set TRITON_INTERPRET=1 before triton is imported."
            )

    @property
    def name(self) -> str:
        """``triton``."""
        return "triton"

    def attention_mass(
        self,
        view: CacheView,
        step: Step,
        /,
        *,
        weights: Tensor | None = None,
        group: Literal["mean", "max"] = "mean",
        above: float | None = None,
    ) -> Scores:
        """Exact column sums, float32 [B, H, S], the same bits every time: no logit leaves the chip.

        Memory beyond the result is one number for each query, and for each row, of each query head. Inputs in float16,
        bfloat16 and float32 are accumulated in float32. Other dtypes, and ``above``, go to `TorchBackend`.

        Raises:
            BackendUnavailableError: for tensors that are not on a CUDA device, unless kernels are interpreted.
        """
        wide = torch.promote_types(step.queries.dtype, view.keys.dtype)
        nothing = 0 in (*view.shape, *step.queries.shape)
        if above is not None or wide not in _DTYPES or nothing:
            # Not super(): a slotted dataclass is another class than the one whose body this is.
            return TorchBackend.attention_mass(self, view, step, weights=weights, group=group, above=above)
        if not (INTERPRETED or step.queries.is_cuda):
            raise BackendUnavailableError(
                f"backend='triton' computes on CUDA devices; the queries are on {step.queries.device}. Hint: "
                "backend='torch'."
            )
        wide = torch.float32 if INTERPRETED else wide  # the interpreter computes in numpy, which has no bfloat16
        with torch.cuda.device(step.queries.get_device()):  # triton launches on the current one; -1 changes nothing
            mass = self._of_each_query_head(view, step, step.queries.to(wide), view.keys.to(wide), weights)
        mass = mass.reshape(*view.shape[:2], -1, view.shape[2])
        return mass.mean(2) if group == "mean" else mass.amax(2)

    def _of_each_query_head(
        self, view: CacheView, step: Step, queries: Tensor, keys: Tensor, weights: Tensor | None
    ) -> Tensor:
        """float32 [B, Hq, S]."""
        batch, heads, total, dim = queries.shape
        rows = keys.shape[2]
        sees = torch.where(step.query_valid, step.asked.sees.clamp(max=FAR - 1), -1).int()
        arrival = torch.where(view.valid, view.positions, FAR).int()
        bias = sinks = None
        if step.count_bias:
            bias = view.columns["count"].data.float().clamp(min=_TINY).log2().contiguous()
        if step.sinks is not None:
            sinks = step.sinks.float() * LOG2_E
        if weights is not None:
            weights = weights.float().contiguous()
        block = self._block(dim, queries.dtype)
        block_q, block_s = min(block, _tile_of(total)), min(block, _tile_of(rows))
        shared: dict[str, Any] = {
            "IN_ORDER": step.whole_pass and total > 1 and step.query_reach is None,
            "HEADS": heads,
            "GROUPS": heads // keys.shape[1],
            "DIM": dim,
            "BLOCK_Q": block_q,
            "BLOCK_S": block_s,
            "BLOCK_D": _tile_of(dim),
            "num_warps": 8 if block_q * block_s > 64 * 64 else 4,
            "num_stages": 2,
        }
        strides = (*queries.stride(), *keys.stride())
        sizes = (total, rows, step.scale, step.softcap)
        sums = torch.empty(batch, heads, total, dtype=torch.float32, device=queries.device)
        mass = torch.empty(batch, heads, rows, dtype=torch.float32, device=queries.device)
        log_sum_exp[-(-total // block_q), batch * heads](
            queries, keys, sees, arrival, bias, sinks, sums, *strides, *sizes, **shared
        )
        column_sums[-(-rows // block_s), batch * heads](
            queries, keys, sees, arrival, bias, weights, sums, mass, *strides, *sizes, **shared
        )
        return mass

    def _block(self, dim: int, dtype: torch.dtype) -> int:
        """Rows of a tile. The matrix units take a float32 in parts, which are held beside it."""
        itemsize = 8 if dtype == torch.float32 else dtype.itemsize
        fitting = max(1, self.tile_bytes // (_tile_of(dim) * itemsize))
        return min(128, max(16, 1 << fitting.bit_length() - 1))


def _tile_of(length: int) -> int:
    """The next power of two, at least the 16 that a matrix product of tiles needs."""
    return max(16, 1 << (length - 1).bit_length())
