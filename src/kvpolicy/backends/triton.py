"""The triton backend: attention mass, the nearest key and compaction as kernels, all else as the torch backend."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, final

import torch
from torch import Tensor

from .._errors import BackendUnavailableError
from .._types import CacheView, KeepMask, Plan, Scores, Step
from ._triton_decode import decode_attention, storage_of
from ._triton_fold import FOLDING, FOLDINGS, Folding, fold, fold_columns, rank, survey
from ._triton_mass import DEFAULT, INTERPRETED, LOG2_E, TILINGS, Tiles, Tiling, column_sums, horizons, log_sum_exp
from ._triton_nearest import SEARCH, SEARCHES, Search, lengths, nearest
from .torch import TorchBackend

__all__ = ["FOLDINGS", "SEARCHES", "TILINGS", "TritonBackend"]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_TINY = torch.finfo(torch.float32).tiny
_FEW = 64  # queries: for no more, the query heads of a key/value head share a tile
_INTERPRETED_PROGRAMS = 64  # what the interpreter is to take for a device's fill, so that it splits rows too
_MOST_SPLITS = 64
_COLUMN_BLOCK, _COLUMN_CHUNKS = 16, 4  # survivors of a program that folds scalars, chunks that it looks into at once


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
        if above is not None or told or wide not in _DTYPES or nothing:
            # Not super(): a slotted dataclass is another class than the one whose body this is.
            return TorchBackend.attention_mass(self, view, step, weights=weights, group=group, above=above)
        if not (INTERPRETED or step.queries.is_cuda):
            raise BackendUnavailableError(
                f"backend='triton' computes on CUDA devices; the queries are on {step.queries.device}. Hint: "
                "backend='torch'."
            )
        groups = step.queries.shape[1] // view.shape[1]
        stack = groups if group == "mean" and step.queries.shape[2] <= _FEW else 1
        queries, keys = _widened(step.queries, wide), _widened(view.keys, wide)
        with torch.cuda.device(queries.get_device()):  # triton launches on the current one; -1 changes nothing
            mass = self._column_sums(view, step, queries, keys, weights, stack)
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
        if not _serves(view, view.keys):
            return TorchBackend.most_similar(self, view, rows, anchors)
        shape, device = view.shape, view.positions.device
        into = torch.full(shape, -1, dtype=torch.int64, device=device)
        similarity = torch.zeros(shape, dtype=torch.float32, device=device)
        keys = _widened(view.keys, view.keys.dtype)
        dim = keys.shape[-1]
        tiles = self.search or _search(keys.dtype)
        block_r, block_a = (min(block, _tile_of(shape[2])) for block in (tiles.rows, tiles.anchors))
        fixed = {"HEADS": shape[1], "DIM": dim, "BLOCK_D": _tile_of(dim)}
        heads = shape[0] * shape[1]
        with torch.cuda.device(keys.get_device()):
            asking, offered = (self._listed(view, mask & view.valid, shape[2]) for mask in (rows, anchors))
            inverse = torch.empty(shape, dtype=torch.float32, device=device)
            lengths[_over(shape[2], 32), heads](keys, inverse, *keys.stride(), shape[2], **fixed, BLOCK=32)
            nearest[_over(shape[2], block_r), heads](
                *(keys, inverse, asking.order, offered.order, asking.total, offered.total, into, similarity),
                *(*keys.stride(), shape[2]),
                **fixed,
                BLOCK_R=block_r,
                BLOCK_A=block_a,
                num_warps=_warps(tiles.warps, block_r, block_a),
                num_stages=tiles.stages,
            )
        return into, similarity

    def compact(self, view: CacheView, plan: Plan, rows: int, /) -> CacheView:
        """Read each row that stays or folds once, write each survivor once; the same bits every time.

        Sums are formed in float32: of the rows of a chunk that fold into the same survivor together where they are
        many, else one after another. Beside keys and values it reads ``into`` about once where rows fold into near
        ones and lie in order of arrival, and compares more where they do not: `_triton_fold` says what, and what room
        it takes. Keys or values in other dtypes than float16, bfloat16 and float32, or not on the device, go to
        `TorchBackend`.
        """
        if not (_serves(view, view.keys, view.values) and 0 < rows <= view.shape[2]):
            return TorchBackend.compact(self, view, plan, rows)
        with torch.cuda.device(view.positions.get_device()):
            return self._compacted(view, plan, rows)

    def _compacted(self, view: CacheView, plan: Plan, rows: int) -> CacheView:
        batch, heads, total = view.shape
        into, weight = (None if data is None else data.contiguous() for data in (plan.into, plan.weight))
        stays = self._listed(view, plan.keep, rows, plan=replace(plan, into=into, weight=weight))
        chunks = _over(total, self.folding.chunk)
        keys, values = (
            torch.empty(batch, heads, rows, data.shape[-1], dtype=data.dtype, device=data.device)
            for data in (view.keys, view.values)
        )
        said = (plan.self_weight, plan.key_scale, plan.value_scale)
        fold[_over(rows, self.folding.survivors), batch * heads, 2](
            *(view.keys, view.values, stays.order, into, weight),
            *(None if data is None else data.contiguous() for data in said),
            *(*stays.ranges, stays.takers, stays.key_sums, stays.value_sums, keys, values),
            *(*view.keys.stride(), *view.values.stride(), total, rows, chunks),
            **self._sizes(view, into),
            MERGE_KEYS=plan.merge_keys,
            BLOCK=self.folding.survivors,
            WIDE=_wide(chunks),
            num_warps=self.folding.warps,
        )
        whole = tuple(column.data.contiguous() for column in view.columns.values())
        data = tuple(torch.empty(batch, heads, rows, dtype=each.dtype, device=each.device) for each in whole)
        if data:
            fold_columns[_over(rows, _COLUMN_BLOCK), batch * heads, len(data)](
                *(whole, stays.order, into, *stays.ranges, data, total, rows, chunks),
                SUMMED=tuple(into is not None and column.on_merge == "sum" for column in view.columns.values()),
                TARGETS=1 if into is None else into.shape[-1],
                BLOCK=_COLUMN_BLOCK,
                CHUNK=self.folding.chunk,
                MANY=_COLUMN_CHUNKS,
                WIDE=_wide(chunks),
            )
        columns = {n: replace(column, data=out) for (n, column), out in zip(view.columns.items(), data, strict=True)}
        return CacheView(
            keys=keys,
            values=values,
            positions=stays.positions,
            valid=stays.valid,
            columns=columns,
            registers={**view.registers, **plan.registers},
            layer=view.layer,
            num_layers=view.num_layers,
        )

    def _sizes(self, view: CacheView, into: Tensor | None) -> dict[str, int]:
        """What the compiler is to know of a table, and of what folds in it."""
        chunk, crowd = self.folding.chunk, self.folding.crowd
        targets = 1 if into is None else into.shape[-1]
        dims = view.keys.shape[-1], view.values.shape[-1]
        return {
            "HEADS": view.shape[1],
            "TARGETS": targets,
            "DIM": dims[0],
            "VALUE_DIM": dims[1],
            "BLOCK_D": _tile_of(dims[0]),
            "BLOCK_V": _tile_of(dims[1]),
            "CHUNK": chunk,
            "FEW": min(chunk, 8),
            "CROWD": crowd,
            "CROWDS": targets * (chunk // crowd),
        }

    def _listed(self, view: CacheView, mask: Tensor, room: int, *, plan: Plan | None = None) -> _Listed:
        """The marked rows of each head in order of arrival; for a ``plan``, with arrivals, what is taken, and crowds.

        The plan's ``into`` and ``weight`` are contiguous.
        """
        batch, heads, rows = view.shape
        chunk = self.folding.chunk
        grid = (chunks := _over(rows, chunk), batch * heads)
        into = None if plan is None else plan.into
        sizes = self._sizes(view, into)

        def made(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.empty(batch, heads, *shape, dtype=dtype, device=mask.device)

        marked, order, total = made(chunks), made(room), made(1)
        earliest, latest = (made(chunks, dtype=torch.int64) for _ in range(2))
        positions = valid = weight = keys = values = takers = key_sums = value_sums = None
        ranges: tuple[Tensor | None, ...] = (None, None, None, None)
        if plan is not None:
            positions, valid = made(room, dtype=torch.int64), made(room, dtype=torch.bool)
        if plan is not None and into is not None:
            weight, keys, values = plan.weight, view.keys if plan.merge_keys else None, view.values
            ranges = tuple(made(chunks) for _ in ranges)
            takers = made(sizes["CROWDS"], chunks)
            key_sums, value_sums = (
                None if data is None else made(sizes["CROWDS"], chunks, data.shape[-1], dtype=torch.float32)
                for data in (keys, values)
            )
        lie = (*mask.stride(), *view.positions.stride())
        survey[grid](
            *(mask, view.positions, into, weight, keys, values, marked, earliest, latest),
            *(*ranges, takers, key_sums, value_sums, *lie, *view.keys.stride(), *view.values.stride(), rows),
            **sizes,
        )
        rank[grid](
            *(mask, view.positions, marked, earliest, latest, order, positions, valid, total, *lie, rows, room),
            HEADS=heads,
            CHUNK=chunk,
            FEW=min(chunk, 16),
            WIDE=_wide(chunks),
        )
        return _Listed(order, total, positions, valid, ranges, takers, key_sums, value_sums)

    def _column_sums(
        self,
        view: CacheView,
        step: Step,
        queries: Tensor,
        keys: Tensor,
        weights: Tensor | None,
        stack: int,
    ) -> Tensor:
        """float32 [B, Hq / stack, S]."""
        batch, query_heads, total, dim = queries.shape
        tables, rows = keys.shape[1:3]
        heads, asking, device = query_heads // stack, total * stack, queries.device
        first, second = self.tiling or _tiling(dim, queries.dtype, asking)
        bias = sinks = None
        if step.count_bias:
            bias = view.columns["count"].data.float().clamp(min=_TINY).log2().contiguous()
        if step.sinks is not None:
            sinks = step.sinks.float() * LOG2_E
        if weights is not None:
            weights = weights.float().contiguous()

        def shared(tiles: Tiles) -> dict[str, Any]:
            block_q, block_s = min(tiles.queries, _tile_of(asking)), min(tiles.rows, _tile_of(rows))
            return {
                # A scale that is not positive would turn the largest product into the smallest logit.
                "FOLDED": bias is None and step.softcap is None and step.scale > 0,
                "IN_ORDER": step.whole_pass and total > 1 and step.query_reach is None and stack == 1,
                "HEADS": heads,
                "GROUPS": heads // tables,
                "STACK": stack,
                "DIM": dim,
                "BLOCK_Q": block_q,
                "BLOCK_S": block_s,
                "BLOCK_D": _tile_of(dim),
                "num_warps": _warps(tiles.warps, block_q, block_s),
                "num_stages": tiles.stages,
            }

        one, other = shared(first), shared(second)
        block_q, block_s = other["BLOCK_Q"], one["BLOCK_S"]  # of the tiles that the passes run over
        arrival = torch.empty(batch, tables, rows, dtype=torch.int32, device=device)
        latest = torch.empty(batch, tables, _over(rows, block_s), dtype=torch.int32, device=device)
        sees = torch.empty(batch, total, dtype=torch.int32, device=device)
        least = torch.empty(batch, _over(total, block_q), dtype=torch.int32, device=device)
        last = step.asked.sees
        horizons[max(latest.shape[2], least.shape[1]), batch * tables](
            *(view.positions, view.valid, last, step.query_valid, arrival, sees, latest, least),
            *(*view.positions.stride(), *view.valid.stride(), *last.stride(), *step.query_valid.stride()),
            *(total, rows),
            HEADS=tables,
            BLOCK_Q=block_q,
            BLOCK_S=block_s,
        )
        lie = (*queries.stride(), *keys.stride(), total, rows)
        if step.log_sums is None:
            blocks = _over(asking, one["BLOCK_Q"])
            splits = min(_over(_programs(device), blocks * batch * heads), _over(rows, block_s), _MOST_SPLITS)
            part = _over(_over(rows, block_s), splits) * block_s
            splits = _over(rows, part)
            sums = torch.empty(splits, batch, heads, asking, dtype=torch.float32, device=device)
            log_sum_exp[blocks, batch * heads, splits](
                *(queries, keys, sees, arrival, latest, bias, sinks, sums, *lie, part, step.scale, step.softcap), **one
            )
        else:
            sums = (step.log_sums.float() * LOG2_E).masked_fill(~step.query_valid[:, None], torch.inf).contiguous()
            splits = 1
        mass = torch.empty(batch, heads, rows, dtype=torch.float32, device=device)
        column_sums[_over(rows, other["BLOCK_S"]), batch * heads](
            *(queries, keys, sees, arrival, least, bias, weights, sums, mass, *lie, splits, step.scale, step.softcap),
            **other,
            SPLITS=1 << (splits - 1).bit_length(),
        )
        return mass


class _Listed(NamedTuple):
    """Marked rows of each head; see `_triton_fold.survey` and `_triton_fold.rank`."""

    order: Tensor
    total: Tensor
    positions: Tensor | None
    valid: Tensor | None
    ranges: tuple[Tensor | None, ...]  # least, most, lowest and highest
    takers: Tensor | None
    key_sums: Tensor | None
    value_sums: Tensor | None


def _serves(view: CacheView, *data: Tensor) -> bool:
    """Whether the kernels take these keys or values, which a store may hold on the host."""
    device = view.positions.device
    known = all(vectors.dtype in _DTYPES and vectors.device == device for vectors in data)
    return known and 0 not in view.shape and (INTERPRETED or device.type == "cuda")


def _widened(data: Tensor, dtype: torch.dtype) -> Tensor:
    """For a matrix product: the interpreter computes in numpy, which has no bfloat16."""
    return data.to(torch.float32 if INTERPRETED else dtype)


def _programs(device: torch.device) -> int:
    """Two for each multiprocessor."""
    if device.type != "cuda":
        return _INTERPRETED_PROGRAMS
    return 2 * torch.cuda.get_device_properties(device).multi_processor_count


def _tiling(dim: int, dtype: torch.dtype, asking: int) -> Tiling:
    """Wide heads fill a tile as well, and the matrix units take a float32 in parts, which are held beside it."""
    if dtype == torch.float32:
        own = 64 if dim <= 128 else 16
        return Tiling(Tiles(own, 32, 4, 2), Tiles(32, own, 4, 2))
    if dim > 128:
        return Tiling(Tiles(64, 64, 4, 2), Tiles(64, 64, 4, 2))
    return TILINGS["64x64, 4 warps" if asking <= _FEW else DEFAULT]


def _search(dtype: torch.dtype) -> Search:
    """Likewise."""
    if dtype == torch.float32:
        return Search(16, 32, 4, 2)
    return SEARCHES[SEARCH]


def _warps(warps: int, *tile: int) -> int:
    """Fewer where a tile was cut to a small table."""
    return warps if tile[0] * tile[1] > 64 * 64 else min(warps, 4)


def _wide(chunks: int) -> int:
    """How many chunks are looked at together."""
    return min(256, _tile_of(chunks))


def _over(count: int, block: int) -> int:
    return -(-count // block)


def _tile_of(length: int) -> int:
    """The next power of two, at least the 16 that a matrix product of tiles needs."""
    return max(16, 1 << (length - 1).bit_length())
