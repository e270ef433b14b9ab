"""The triton backend: attention mass, the nearest key and compaction as kernels, all else as the torch backend."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, final

import torch
from torch import Tensor

from .._errors import BackendUnavailableError
from .._types import CacheView, KeepMask, Plan, Quota, Rows, Scores, Step
from . import _triton_order as _order
from ._torch_store import StoredTable, TorchStore
from ._torch_vectors import Ragged
from ._triton_columns import fold_columns
from ._triton_decode import decode_attention, storage_of
from ._triton_fold import FOLDING, FOLDINGS, Folding, fold
from ._triton_lists import rank, survey
from ._triton_mass import DEFAULT, INTERPRETED, LOG2_E, TILINGS, Tiles, Tiling, column_sums, horizons, log_sum_exp
from ._triton_nearest import SEARCH, SEARCHES, Search, lengths, nearest
from ._triton_order import best, nearest_arrival, ranks, sums
from ._triton_put import put
from .torch import TorchBackend

__all__ = ["FOLDINGS", "SEARCHES", "TILINGS", "TritonBackend"]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_TINY = torch.finfo(torch.float32).tiny
_FEW = 64  # queries: for no more, the query heads of a key/value head share a tile
_INTERPRETED_PROGRAMS = 64  # what the interpreter is to take for a device's fill, so that it splits rows too
_MOST_SPLITS = 64
_FULL = 8192  # programs of one warp: enough for a device, twice over
# Survivors of a program that folds scalars, chunks that it looks into at once, and its warps.
_COLUMN_BLOCK, _COLUMN_CHUNKS, _COLUMN_WARPS = 16, 1, 1


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
        return TorchStore(layer, num_layers, compact=self.compact, put=_put_one, on_host=on_host)

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
            best[_order_grid(view)](
                *(scores, view.positions, view.valid, rank, quota, ends, keep),
                *(*scores.stride(), *view.positions.stride(), *view.valid.stride()),
                *((0, 0, 0) if rank is None else rank.stride()),
                *(view.shape[2], first, 0 if per_head else last),
                HEADS=view.shape[1],
                BLOCK=_order.BLOCK,
                CHUNK=_order.CHUNK,
            )
        return keep

    def arrival_rank(self, view: CacheView, /) -> Tensor:
        """By comparing every row with all others; long tables go to `TorchBackend`, likewise."""
        if view.known_rank is None and _is_short(view):
            rank = torch.empty(view.shape, dtype=torch.int64, device=view.positions.device)
            with torch.cuda.device(rank.get_device()):
                ranks[_order_grid(view)](
                    *(view.positions, view.valid, rank, *view.positions.stride(), *view.valid.stride(), view.shape[2]),
                    HEADS=view.shape[1],
                    BLOCK=_order.BLOCK,
                    CHUNK=_order.CHUNK,
                )
            vars(view)["_counted"] = rank
        return TorchBackend.arrival_rank(self, view)

    def nearest_position(self, view: CacheView, keep: KeepMask, /) -> Tensor:
        """By comparing every row with all that are kept; long tables go to `TorchBackend`, likewise."""
        if not _is_short(view):
            return TorchBackend.nearest_position(self, view, keep)
        near = torch.empty(view.shape, dtype=torch.int64, device=view.positions.device)
        with torch.cuda.device(near.get_device()):
            nearest_arrival[_order_grid(view)](
                *(view.positions, view.valid, keep, near),
                *(*view.positions.stride(), *view.valid.stride(), *keep.stride(), view.shape[2]),
                HEADS=view.shape[1],
                BLOCK=_order.BLOCK,
                CHUNK=_order.CHUNK,
            )
        return near

    def segment_sum(self, data: Tensor, index: Tensor, /) -> Tensor:
        """In float32, in one order; long tables, and other dtypes than float16 and float32, go to `TorchBackend`."""
        batch, heads, rows, targets = index.shape
        few = 0 < batch * heads * rows * rows * targets <= _order.MOST_COMPARISONS
        if not (few and _reachable(data) and data.dtype in (torch.float16, torch.float32)):
            return TorchBackend.segment_sum(self, data, index)
        out = torch.empty(batch, heads, rows, dtype=data.dtype, device=data.device)
        with torch.cuda.device(data.get_device()):
            sums[_over(rows, _order.BLOCK), batch * heads](
                *(data.contiguous(), index.contiguous(), out, rows * targets, rows),
                BLOCK=_order.BLOCK,
                CHUNK=_order.CHUNK,
            )
        return out

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
        groups = self._groups(batch * heads * rows)
        fold[_over(rows, self.folding.survivors * groups), batch * heads](
            *(view.keys, view.values, stays.order, into, weight, stays.following),
            *(None if data is None else data.contiguous() for data in said),
            *(*stays.ranges, stays.takers, stays.key_sums, stays.value_sums, keys, values),
            *(*view.keys.stride(), *view.values.stride(), total, rows, chunks),
            **self._sizes(view, into, few=1),
            MERGE_KEYS=plan.merge_keys,
            BLOCK=self.folding.survivors,
            GROUPS=groups,
            WIDE=_wide(chunks),
            num_warps=self.folding.warps,
            maxnreg=self._registers(view),
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
                num_warps=_COLUMN_WARPS,
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

    def _groups(self, survivors: int) -> int:
        """How many groups of survivors a program of `fold` takes, so that still every multiprocessor has enough."""
        programs = _over(survivors, self.folding.survivors) // _FULL
        return min(self.folding.groups, 1 << max(0, programs.bit_length() - 1))

    def _registers(self, view: CacheView) -> int | None:
        """Of a thread of `fold`: few, where a row takes few, so that more programs wait for memory side by side."""
        narrow = max(data.shape[-1] * data.element_size() for data in (view.keys, view.values)) <= 256
        return self.folding.registers if narrow else None

    def _sizes(self, view: CacheView, into: Tensor | None, *, few: int = 8) -> dict[str, int]:
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
            "FEW": min(chunk, few),
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
        positions = valid = weight = keys = values = following = takers = key_sums = value_sums = None
        ranges: tuple[Tensor | None, ...] = (None, None, None, None)
        if plan is not None:
            positions, valid = made(room, dtype=torch.int64), made(room, dtype=torch.bool)
        if plan is not None and into is not None:
            weight, keys, values = plan.weight, view.keys if plan.merge_keys else None, view.values
            ranges = tuple(made(chunks) for _ in ranges)
            following = torch.empty(into.shape, dtype=torch.int32, device=mask.device)
            takers = made(sizes["CROWDS"], chunks)
            key_sums, value_sums = (
                None if data is None else made(sizes["CROWDS"], chunks, data.shape[-1], dtype=torch.float32)
                for data in (keys, values)
            )
        lie = (*mask.stride(), *view.positions.stride())
        survey[grid](
            *(mask, view.positions, into, weight, keys, values, marked, earliest, latest, following),
            *(*ranges, takers, key_sums, value_sums, *lie, *view.keys.stride(), *view.values.stride(), rows),
            **sizes,
            num_warps=self.folding.lists,
        )
        rank[grid](
            *(mask, view.positions, marked, earliest, latest, order, positions, valid, total, *lie, rows, room),
            HEADS=heads,
            CHUNK=chunk,
            FEW=min(chunk, 4),
            WIDE=_wide(chunks),
            num_warps=self.folding.lists,
        )
        return _Listed(order, total, positions, valid, following, ranges, takers, key_sums, value_sums)

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
            levels = torch.empty(splits, batch, heads, asking, dtype=torch.float32, device=device)
            log_sum_exp[blocks, batch * heads, splits](
                *(queries, keys, sees, arrival, latest, bias, sinks, levels, *lie, part, step.scale, step.softcap),
                **one,
            )
        else:
            levels, splits = step.log_sums.float().contiguous(), 1
        mass = torch.empty(batch, heads, rows, dtype=torch.float32, device=device)
        column_sums[_over(rows, other["BLOCK_S"]), batch * heads](
            *(queries, keys, sees, arrival, least, bias, weights, levels, mass, *lie, splits, step.scale, step.softcap),
            **other,
            SPLITS=1 << (splits - 1).bit_length(),
            NATURAL=step.log_sums is not None,
        )
        return mass


def _put_one(table: StoredTable, rows: Rows) -> bool:
    """Write one row, unless it brings a column that the table has not, or lies where kernels do not reach."""
    where, names = table.positions, tuple(table.columns)
    vectors = (table.keys.data, table.values.data, rows.keys, rows.values)
    reached = all(data.device == where.device and data.dtype in _DTYPES for data in vectors)
    if not (reached and _reachable(where)) or any(name not in table.columns for name in rows.columns):
        return False
    brought: dict[str, Tensor] = {**rows.columns, "count": rows.valid}
    anything: Tensor = rows.valid
    given = [brought.get(name, anything) for name in names]
    dims = rows.keys.shape[-1], rows.values.shape[-1]
    ragged = table.keys if isinstance(table.keys, Ragged) else None
    with torch.cuda.device(where.get_device()):
        put[where.shape[0] * where.shape[1],](
            *(where, table.valid, tuple(table.columns[name].data for name in names)),
            *(table.keys.data, table.values.data, None if ragged is None else ragged.base),
            *(rows.positions, rows.valid, tuple(data.contiguous() for data in given)),
            *(rows.keys, rows.values, rows.positions.stride(0), rows.valid.stride(0)),
            *(stride for data in vectors[:2] for stride in _lie(data)),
            *(stride for data in vectors[2:] for stride in (*data.stride()[:2], data.stride(-1))),
            *(table.used, table.width),
            HEADS=where.shape[1],
            DIM=dims[0],
            VALUE_DIM=dims[1],
            BLOCK_D=_tile_of(dims[0]),
            BLOCK_V=_tile_of(dims[1]),
            GIVEN=tuple(name in brought for name in names),
            CHUNK=_order.CHUNK,
            num_warps=1,
        )
    return True


def _lie(storage: Tensor) -> tuple[int, int, int]:
    """Strides of batch row, head and slot; of ragged heads, where their base says the rest, of slots alone."""
    return storage.stride()[:3] if storage.ndim == 4 else (0, 0, storage.stride(0))  # type: ignore[return-value]


class _Listed(NamedTuple):
    """Marked rows of each head; see `_triton_lists.survey` and `_triton_lists.rank`."""

    order: Tensor
    total: Tensor
    positions: Tensor | None
    valid: Tensor | None
    following: Tensor | None
    ranges: tuple[Tensor | None, ...]  # least, most, lowest and highest
    takers: Tensor | None
    key_sums: Tensor | None
    value_sums: Tensor | None


def _is_short(view: CacheView) -> bool:
    """Whether all its rows are compared with all; not where torch compiles, which fuses what it sees."""
    batch, heads, rows = view.shape
    positions: Tensor = view.positions
    return 0 < batch * heads * rows * rows <= _order.MOST_COMPARISONS and _reachable(positions)


def _reachable(data: Tensor) -> bool:
    return (INTERPRETED or data.is_cuda) and not torch.compiler.is_compiling()


def _order_grid(view: CacheView) -> tuple[int, int]:
    batch, heads, rows = view.shape
    return _over(rows, _order.BLOCK), batch * heads


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
