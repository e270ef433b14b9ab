"""The launch that writes a single new row."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._types import Rows
from .._torch_table import StoredTable
from .._torch_vectors import Ragged
from .kernels import order
from .kernels.put import put
from .launch import DTYPES, reachable, tile_of

__all__ = ["put_one"]


def put_one(table: StoredTable, rows: Rows) -> bool:
    """Write one row, unless it brings a column that the table has not, or lies where kernels do not reach."""
    where, names = table.positions, tuple(table.columns)
    vectors = (table.keys.data, table.values.data, rows.keys, rows.values)
    reached = all(data.device == where.device and data.dtype in DTYPES for data in vectors)
    if not (reached and reachable(where)) or any(name not in table.columns for name in rows.columns):
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
            BLOCK_D=tile_of(dims[0]),
            BLOCK_V=tile_of(dims[1]),
            GIVEN=tuple(name in brought for name in names),
            CHUNK=order.CHUNK,
            num_warps=1,
        )
    return True


def _lie(storage: Tensor) -> tuple[int, int, int]:
    """Strides of batch row, head and slot; of ragged heads, where their base says the rest, of slots alone."""
    return storage.stride()[:3] if storage.ndim == 4 else (0, 0, storage.stride(0))  # type: ignore[return-value]
