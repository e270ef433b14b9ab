"""Where every token of a request is: in a table or in an archive, with what."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from driving import Request, feed, table_of

from kvpolicy import CacheView, Plan, Policy, Session, Step, backend_by_name

__all__ = ["Ledger", "run", "session_of"]


@dataclass
class Ledger:
    """Everything that each row carried when it was last seen in a table, bit for bit."""

    session: Session
    known: dict[tuple[int, int, int, int], Any] = field(default_factory=dict)

    def listen(self, layer: int, view: CacheView, plan: Plan, step: Step) -> None:
        self.note(layer, view)

    def note(self, layer: int, view: CacheView) -> None:
        for at, entry in self.entries(layer, view).items():
            self.known[at] = entry

    def entries(self, layer: int, view: CacheView) -> dict[tuple[int, int, int, int], Any]:
        found = {}
        for b, h in np.ndindex(*view.shape[:2]):
            table = table_of(view, b, h, self.session.ops.host)
            for n, position in enumerate(table.positions):
                columns = {name: data[n].item() for name, data in table.columns.items()}
                found[layer, b, h, position] = (table.keys[n].tobytes(), table.values[n].tobytes(), columns)
        return found

    def check(self, request: Request, tokens: int) -> tuple[int, int]:
        """Table and archive of each layer together hold each token once; returns how many rows each holds."""
        rows = [0, 0]
        for layer, state in enumerate(self.session._layers):
            table, archive = self.entries(layer, state.store.view()), {}
            if state.archive is not None and state.archive.slots:
                archive = self.entries(layer, state.archive.view())
            assert not table.keys() & archive.keys()
            batch, heads = request.keys.shape[1:3]
            due = {(layer, b, h, p) for b in range(batch) for h in range(heads) for p in range(request.left[b], tokens)}
            assert table.keys() | archive.keys() == due
            assert all(self.known[at] == entry for at, entry in archive.items())
            self.note(layer, state.store.view())
            counts = np.zeros_like(state.archived)
            for _, b, h, _ in archive:
                counts[b, h] += 1
            assert state.archived.tolist() == counts.tolist()
            rows = [rows[0] + len(table), rows[1] + len(archive)]
        return rows[0], rows[1]


def session_of(policy: Policy, backend: str, layers: int, **settings: Any) -> tuple[Session, Ledger]:
    ledger: Any = Ledger(None)  # type: ignore[arg-type]
    session = Session(policy, backend_by_name(backend), layers, listen=ledger.listen, **settings)
    ledger.session = session
    return session, ledger


def run(policy: Policy, request: Request, backend: str, **settings: Any) -> tuple[Session, list[tuple[int, int]]]:
    """The whole request, the accounts checked after every pass."""
    session, ledger = session_of(policy, backend, len(request.keys), **settings)
    counts, start = [], 0
    for length in (request.prompt, *(1,) * (request.tokens - request.prompt)):
        feed(session, request, start, length)
        start += length
        counts.append(ledger.check(request, start))
    return session, counts
