"""The triton backend: attention mass, the nearest key and compaction as kernels, all else as the torch backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor

from ..._errors import BackendUnavailableError
from ..._plan import Plan
from ..._step import Step
from ..._types import CacheView, KeepMask, Quota, Scores
from .._torch_store import TorchStore
from ..torch import TorchBackend
from .compaction import compacted, listed
from .decode import decode_attention, storage_of
from .kernels import order
from .kernels.fold import FOLDING, FOLDINGS, Folding
from .kernels.mass import INTERPRETED, Tiling
from .kernels.nearest import SEARCH, SEARCHES, Search, lengths, nearest
from .launch import DTYPES, over, reachable, serves, tile_of, warps_for, widened
from .mass import FEW, column_mass
from .put import put_one

__all__ = ["TritonBackend"]


@final
@dataclass(frozen=True, slots=True)
class TritonBackend(TorchBackend):
    """PyTorch on a CUDA device, with kernels of its own; on any device where TRITON_INTERPRET=1 was set at import.

    Args:
        chunk_elements: as for `TorchBackend`.
        tiling: tiles of `attention_mass`, such as one of `TILINGS`; None: by the shape. Never larger than the data.
        folding: blocks of `compact`, such as one of `FOLDINGS`.
        search: tiles of `most_similar`, such as one of `SEARCHES`; None: by the shape. Never larger than the data.

    Raises:
        BackendUnavailableError: without a CUDA device, unless kernels are interpreted.
    """

    tiling: Tiling | None = None
    folding: Folding = FOLDINGS[FOLDING]
    search: Search | None = None

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

    def store(self, layer: int, num_layers: int, /, *, on_host: bool = False) -> TorchStore:
        """As `TorchBackend`; a single new row is written in one launch."""
        return TorchStore(layer, num_layers, compact=self.compact, put=put_one, on_host=on_host)

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
        bfloat16 and float32 are accumulated in float32. Other dtypes, ``above``, and shares that the attention has told
        already (`Step.shares`), go to `TorchBackend`.
        Where the attention has told `Step.log_sums`, the first of two products of queries and keys is saved.

        Raises:
            BackendUnavailableError: for tensors that are not on a CUDA device, unless kernels are interpreted.
        """
        wide = torch.promote_types(step.queries.dtype, view.keys.dtype)
        nothing = 0 in (*view.shape, *step.queries.shape)
        told = step.shares is not None and group == "mean"
        if above is not None or told or wide not in DTYPES or nothing:
            # Not super(): a slotted dataclass is another class than the one whose body this is.
            return TorchBackend.attention_mass(self, view, step, weights=weights, group=group, above=above)
        if not (INTERPRETED or step.queries.is_cuda):
            raise BackendUnavailableError(
                f"backend='triton' computes on CUDA devices; the queries are on {step.queries.device}. Hint: "
                "backend='torch'."
            )
        groups = step.queries.shape[1] // view.shape[1]
        stack = groups if group == "mean" and step.queries.shape[2] <= FEW else 1
        queries, keys = widened(step.queries, wide), widened(view.keys, wide)
        with torch.cuda.device(queries.get_device()):  # triton launches on the current one; -1 changes nothing
            mass = column_mass(view, step, queries, keys, weights, stack, self.tiling)
        if stack == groups:
            return mass
        # One more launch, but over S numbers a head, and programs of one query head fill a device more evenly.
        mass = mass.reshape(*view.shape[:2], groups, view.shape[2])
        return mass.mean(2) if group == "mean" else mass.amax(2)

    def attend(
        self,
        view: CacheView,
        queries: Tensor,
        /,
        *,
        scale: float,
        softcap: float | None,
        sinks: Tensor | None,
        count_bias: bool,
        want_shares: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention of one query a batch row, see `decode_attention`: each key and value is read once for its group.

        Raises:
            ValueError: for dtypes that the kernels do not serve, such as float64.
        """
        told: dict[str, Any] = {"scale": scale, "softcap": softcap, "sinks": sinks, "want_shares": want_shares}
        bias = view.columns["count"].data.float().clamp(min=1).log() if count_bias else None
        return decode_attention(queries, **storage_of(view), visible=view.valid, bias=bias, **told)

    def most_similar(self, view: CacheView, rows: KeepMask, anchors: KeepMask, /) -> tuple[Tensor, Tensor]:
        """Cosines tile by tile, in float32 [B, H, S]; memory is linear in S, and nothing waits for the device.

        Equals are equal to the last bit if one key is the other, or a power of two times it; otherwise rounding
        decides. Keys in other dtypes than float16, bfloat16 and float32, or not on the device, go to `TorchBackend`.
        """
        if not serves(view, view.keys):
            return TorchBackend.most_similar(self, view, rows, anchors)
        shape, device = view.shape, view.positions.device
        into = torch.full(shape, -1, dtype=torch.int64, device=device)
        similarity = torch.zeros(shape, dtype=torch.float32, device=device)
        keys = widened(view.keys, view.keys.dtype)
        dim = keys.shape[-1]
        tiles = self.search or _search(keys.dtype)
        block_r, block_a = (min(block, tile_of(shape[2])) for block in (tiles.rows, tiles.anchors))
        fixed = {"HEADS": shape[1], "DIM": dim, "BLOCK_D": tile_of(dim)}
        heads = shape[0] * shape[1]
        with torch.cuda.device(keys.get_device()):
            asking, offered = (listed(view, mask & view.valid, shape[2], self.folding) for mask in (rows, anchors))
            inverse = torch.empty(shape, dtype=torch.float32, device=device)
            lengths[over(shape[2], 32), heads](keys, inverse, *keys.stride(), shape[2], **fixed, BLOCK=32)
            nearest[over(shape[2], block_r), heads](
                *(keys, inverse, asking.order, offered.order, asking.total, offered.total, into, similarity),
                *(*keys.stride(), shape[2]),
                **fixed,
                BLOCK_R=block_r,
                BLOCK_A=block_a,
                num_warps=warps_for(tiles.warps, block_r, block_a),
                num_stages=tiles.stages,
            )
        return into, similarity

    def top_k(
        self,
        scores: Scores,
        quota: Quota,
        view: CacheView,
        /,
        *,
        surplus: int | None = None,
        first: int = 0,
        last: Any = 0,
    ) -> KeepMask:
        """Every row is compared with all others, in one launch.

        Long tables, scores in other dtypes than float16 and float32, and passes that torch compiles, go to
        `TorchBackend`.
        """
        few = _is_short(view) and scores.dtype in (torch.float16, torch.float32)
        if not few or surplus == 0:
            return TorchBackend.top_k(self, scores, quota, view, surplus=surplus, first=first, last=last)
        device, per_head = scores.device, not isinstance(last, int)
        quota = torch.as_tensor(quota, device=device).contiguous()
        ends: Tensor | None = torch.as_tensor(last, device=device).contiguous() if per_head else None
        rank = self.arrival_rank(view) if first or per_head or last else None
        keep = torch.empty(view.shape, dtype=torch.bool, device=device)
        with torch.cuda.device(scores.get_device()):
            order.best[_order_grid(view)](
                *(scores, view.positions, view.valid, rank, quota, ends, keep),
                *(*scores.stride(), *view.positions.stride(), *view.valid.stride()),
                *((0, 0, 0) if rank is None else rank.stride()),
                *(view.shape[2], first, 0 if per_head else last),
                HEADS=view.shape[1],
                BLOCK=order.BLOCK,
                CHUNK=order.CHUNK,
            )
        return keep

    def arrival_rank(self, view: CacheView, /) -> Tensor:
        """By comparing every row with all others; long tables go to `TorchBackend`, likewise."""
        if view.known_rank is None and _is_short(view):
            rank = torch.empty(view.shape, dtype=torch.int64, device=view.positions.device)
            with torch.cuda.device(rank.get_device()):
                order.ranks[_order_grid(view)](
                    *(view.positions, view.valid, rank, *view.positions.stride(), *view.valid.stride(), view.shape[2]),
                    HEADS=view.shape[1],
                    BLOCK=order.BLOCK,
                    CHUNK=order.CHUNK,
                )
            vars(view)["_counted"] = rank
        return TorchBackend.arrival_rank(self, view)

    def nearest_position(self, view: CacheView, keep: KeepMask, /) -> Tensor:
        """By comparing every row with all that are kept; long tables go to `TorchBackend`, likewise."""
        if not _is_short(view):
            return TorchBackend.nearest_position(self, view, keep)
        near = torch.empty(view.shape, dtype=torch.int64, device=view.positions.device)
        with torch.cuda.device(near.get_device()):
            order.nearest_arrival[_order_grid(view)](
                *(view.positions, view.valid, keep, near),
                *(*view.positions.stride(), *view.valid.stride(), *keep.stride(), view.shape[2]),
                HEADS=view.shape[1],
                BLOCK=order.BLOCK,
                CHUNK=order.CHUNK,
            )
        return near

    def segment_sum(self, data: Tensor, index: Tensor, /) -> Tensor:
        """In float32, in one order; long tables, and other dtypes than float16 and float32, go to `TorchBackend`."""
        batch, heads, rows, targets = index.shape
        few = 0 < batch * heads * rows * rows * targets <= order.MOST_COMPARISONS
        if not (few and reachable(data) and data.dtype in (torch.float16, torch.float32)):
            return TorchBackend.segment_sum(self, data, index)
        out = torch.empty(batch, heads, rows, dtype=data.dtype, device=data.device)
        with torch.cuda.device(data.get_device()):
            order.sums[over(rows, order.BLOCK), batch * heads](
                *(data.contiguous(), index.contiguous(), out, rows * targets, rows),
                BLOCK=order.BLOCK,
                CHUNK=order.CHUNK,
            )
        return out

    def compact(self, view: CacheView, plan: Plan, rows: int, /) -> CacheView:
        """Read each row that stays or folds once, write each survivor once; the same bits every time.

        Sums are formed in float32: of the rows of a chunk that fold into the same survivor together where they are
        many, else one after another. Beside keys and values it reads ``into`` about once where rows fold into near
        ones and lie in order of arrival, and compares more where they do not: `kernels.lists` says what, and what room
        it takes. Keys or values in other dtypes than float16, bfloat16 and float32, or not on the device, go to
        `TorchBackend`.
        """
        if not (serves(view, view.keys, view.values) and 0 < rows <= view.shape[2]):
            return TorchBackend.compact(self, view, plan, rows)
        with torch.cuda.device(view.positions.get_device()):
            return compacted(view, plan, rows, self.folding)


def _is_short(view: CacheView) -> bool:
    """Whether all its rows are compared with all; not where torch compiles, which fuses what it sees."""
    batch, heads, rows = view.shape
    positions: Tensor = view.positions
    return 0 < batch * heads * rows * rows <= order.MOST_COMPARISONS and reachable(positions)


def _order_grid(view: CacheView) -> tuple[int, int]:
    batch, heads, rows = view.shape
    return over(rows, order.BLOCK), batch * heads


def _search(dtype: torch.dtype) -> Search:
    """Likewise."""
    if dtype == torch.float32:
        return Search(16, 32, 4, 2)
    return SEARCHES[SEARCH]
