"""What a policy did to a cache, as fields and as a printed table."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import final

from ._policy import Policy
from ._repr import pretty

__all__ = ["LayerReport", "Report", "format_bytes"]

_HEAD = ("layer", "rows", "most", "slots", "evicted", "merged", "K/V", "full")
_WIDTHS = (5, 9, 7, 7, 10, 10, 11, 11)  # of the columns where they are printed


@final
@dataclass(frozen=True, slots=True)
class LayerReport:
    """One layer.

    Attributes:
        rows: valid rows held, mean over batch rows and heads.
        most: rows of the fullest head.
        capacity: physical rows per head, on average.
        evicted: rows dropped so far, summed over batch rows and heads.
        merged: rows folded into another so far, likewise.
        recalled: rows that came back from the archive so far, likewise, also those that left again at once.
        exceeded: rows held above the budget at the last plan because they are protected, likewise.
        kv_bytes: storage of keys and values.
        full_kv_bytes: what keys and values of every token seen (padding included) would take.
        column_bytes: storage of the scalar columns.
        archive_bytes: host memory that holds released rows.
    """

    rows: float
    most: int
    capacity: float
    evicted: int
    merged: int
    recalled: int
    exceeded: int
    kv_bytes: int
    full_kv_bytes: int
    column_bytes: int
    archive_bytes: int


@final
@dataclass(frozen=True, slots=True)
class Report:
    """The whole request.

    Attributes:
        policy: the policy at work.
        backend: which backend carried it out.
        tokens: tokens seen by each batch row, padding not counted.
        layers: one entry for each layer under the policy.
        note: why it was not a faster backend, where one could have been expected.
    """

    policy: Policy
    backend: str
    tokens: tuple[int, ...]
    layers: tuple[LayerReport, ...]
    note: str = ""

    @property
    def kv_bytes(self) -> int:
        """Bytes of storage that keys and values take."""
        return sum(layer.kv_bytes for layer in self.layers)

    @property
    def full_kv_bytes(self) -> int:
        """Bytes that keys and values of all tokens seen would take."""
        return sum(layer.full_kv_bytes for layer in self.layers)

    @property
    def column_bytes(self) -> int:
        """Bytes of the scalar columns (positions, counts, accumulated attention)."""
        return sum(layer.column_bytes for layer in self.layers)

    @property
    def evicted(self) -> int:
        """Rows dropped, over all layers, batch rows and heads."""
        return sum(layer.evicted for layer in self.layers)

    @property
    def merged(self) -> int:
        """Rows folded into another, over all layers, batch rows and heads."""
        return sum(layer.merged for layer in self.layers)

    @property
    def recalled(self) -> int:
        """Rows that came back from the archive, over all layers, batch rows and heads."""
        return sum(layer.recalled for layer in self.layers)

    @property
    def archive_bytes(self) -> int:
        """Bytes of host memory that hold released rows."""
        return sum(layer.archive_bytes for layer in self.layers)

    @property
    def exceeded(self) -> int:
        """Rows held above the budget because they are protected."""
        return sum(layer.exceeded for layer in self.layers)

    def __str__(self) -> str:
        """A table, one line a layer."""
        head, *layers, last = ["".join(map(str.rjust, row, _WIDTHS)) for row in self._table()]
        lines = [pretty(self.policy), "", self._context(), "", head, *layers, f"{last}   {self._share()}"]
        return "\n".join([*lines, *self._remarks()])

    def _repr_html_(self) -> str:
        """The same for a notebook."""
        head, *layers, last = self._table()
        table = [_row("th", head), *(_row("td", row) for row in layers), _row("th", last)]
        said = [self._context(), self._share(), *self._remarks()]
        return (
            f"<pre>{escape(pretty(self.policy))}</pre><table>{''.join(table)}</table>"
            f"<p>{'<br>'.join(escape(line) for line in said)}</p>"
        )

    def _table(self) -> list[tuple[str, ...]]:
        """Names of columns, a row for each layer, and sums."""
        layers = [
            (
                *(f"{number}", f"{layer.rows:.1f}", f"{layer.most}", f"{layer.capacity:.0f}"),
                *(f"{layer.evicted}", f"{layer.merged}"),
                *(format_bytes(layer.kv_bytes), format_bytes(layer.full_kv_bytes)),
            )
            for number, layer in enumerate(self.layers)
        ]
        sums = (f"{self.evicted}", f"{self.merged}", format_bytes(self.kv_bytes), format_bytes(self.full_kv_bytes))
        return [_HEAD, *layers, ("all", "", "", "", *sums)]

    def _context(self) -> str:
        return f"tokens seen {_span(self.tokens)} · backend {self.backend}{self.note and f' ({self.note})'}"

    def _share(self) -> str:
        share = self.kv_bytes / self.full_kv_bytes if self.full_kv_bytes else 1.0
        return f"{share:.1%} of full, columns {format_bytes(self.column_bytes)}"

    def _remarks(self) -> list[str]:
        lines = []
        if self.archive_bytes:
            held = format_bytes(self.archive_bytes)
            lines.append(f"{self.recalled} rows came back from the archive, which holds {held} of host memory.")
        if self.exceeded:
            lines.append(f"{self.exceeded} protected rows are held above the budget.")
        return lines


def _row(tag: str, cells: tuple[str, ...]) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"


def format_bytes(size: float) -> str:
    """``1536`` as ``1.5 KiB``, in the largest unit that it fills once it is rounded.

    Args:
        size: bytes.
    """
    for unit, digits in (("B", 0), ("KiB", 1), ("MiB", 1)):
        if round(size, digits) < 1024:
            return f"{size:.{digits}f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"


def _span(tokens: tuple[int, ...]) -> str:
    if not tokens:
        return "0"
    low, high = min(tokens), max(tokens)
    return str(high) if low == high else f"{low} to {high} ({len(tokens)} batch rows)"
