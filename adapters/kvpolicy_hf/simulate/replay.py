"""Replay: a recorded request goes through a policy's tables, and what attention loses by it is measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from kvpolicy import CacheView, Listener, Pass, Policy, Report, Session, backend_by_name

from .attention import output, shares
from .record import Record
from .rotary import rotation

__all__ = ["Replay", "feed", "open_session", "replay"]

PerStep: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]  # [T, L]

TINY = 1e-300  # keeps a division by an output of zeros defined


@dataclass(frozen=True, slots=True, eq=False)
class Replay:
    """What a policy's tables still give the T decode steps of a record, in each of its L layers.

    Each step's own query is held against full attention: the softmax of the same query over every token so far.

    Attributes:
        mass: [T, L], the share of full attention on tokens whose row is still in the table, mean over query heads. A
            token that was merged into another row is not in the table, whatever is left of it there.
        error: [T, L], ``||o - o_full|| / ||o_full||`` of the attention outputs of all heads together.
        recall: [T, L], of the k tokens with the most full attention, the share whose row is still in the table; k is
            the number of rows held, for each query head; mean over query heads.
        rows: [T, L], rows held when the query attends, its own included; mean over heads.
        report: the session's report after the last step.
    """

    mass: PerStep
    error: PerStep
    recall: PerStep
    rows: PerStep
    report: Report


def replay(record: Record, policy: Policy, *, listen: Listener | None = None) -> Replay:
    """Run a policy over a record, open loop.

    Open loop: queries, keys and values are those of the full cache's run, whatever the policy does. So every number is
    the loss of one layer at one step by itself; that losses add up through layers and tokens is left out. The prompt's
    own outputs are exact under every policy; the decode steps are measured.

    Args:
        record: what a model computed.
        policy: what to replay.
        listen: called with every plan, as by `kvpolicy.Session`.

    Raises:
        KVPolicyError: if the policy needs what a record does not have.
    """
    session = open_session(record, policy, listen=listen)
    for _ in feed(session, record, 0, record.prompt):
        pass
    measured = [
        [_measure(record, view, asked, policy.count_bias) for view, asked in feed(session, record, end - 1, end)]
        for end in range(record.prompt + 1, record.length + 1)
    ]
    mass, error, recall, rows = np.moveaxis(np.asarray(measured, dtype=np.float64), -1, 0)
    return Replay(mass, error, recall, rows, session.report())


def open_session(record: Record, policy: Policy, *, listen: Listener | None = None) -> Session:
    """An empty session for this record."""
    return Session(
        policy,
        backend_by_name("torch"),
        record.layers,
        prompt_length=record.prompt,
        listen=listen,
        rotate=None if record.inv_freq is None else rotation(record.inv_freq),
    )


def feed(session: Session, record: Record, start: int, end: int) -> Iterator[tuple[CacheView, Tensor]]:
    """One forward pass over the tokens from ``start`` to ``end``: for each layer its table, and what it is asked."""
    positions = torch.arange(start, end)[None]
    now = Pass(
        start,
        positions,
        torch.ones_like(positions, dtype=torch.bool),
        np.array([end - start], dtype=np.int64),
        {"segment": record.segments[:, start:end]},
    )
    for layer, scale in enumerate(record.scales):
        queries, keys, values = (data[layer][:, :, start:end] for data in (record.queries, record.keys, record.values))
        view = session.append(layer, keys, values, now)
        asked = session.turned(layer, queries, now)
        yield view, asked
        session.advance(layer, asked, scale, now)


def _measure(record: Record, view: CacheView, asked: Tensor, count_bias: bool) -> tuple[float, float, float, float]:
    """Mass, error, recall and rows of the step whose query is ``asked`` of the table."""
    layer, end = view.layer, int(view.positions.max()) + 1
    query, scale = record.queries[layer][:, :, end - 1 : end], record.scales[layer]
    full = shares(query, record.keys[layer][:, :, :end], scale)
    wanted = output(full, record.values[layer][:, :, :end])

    bias = torch.where(view.valid, 0.0, -torch.inf).double()
    if count_bias:
        bias = bias + view.columns["count"].data.double().clamp(min=1).log()
    given = output(shares(asked, view.keys, scale, bias=bias[:, :, None, None]), view.values)
    error = (given - wanted).norm() / wanted.norm().clamp(min=TINY)

    full = full[..., 0, :]  # [1, H, G, N]
    here = _in_table(view, end)[:, :, None]
    held = view.valid.sum(-1)[:, :, None, None]
    least = full.sort(dim=-1, descending=True).values.gather(-1, (held - 1).expand(*full.shape[:3], 1))
    recall = ((full >= least) & here).sum(-1).double() / held[..., 0]
    mass = torch.where(here, full, 0.0).sum(-1)
    return float(mass.mean()), float(error), float(recall.mean()), float(held.double().mean())


def _in_table(view: CacheView, tokens: int) -> Tensor:
    """bool [1, H, N]: tokens whose own row is in the table."""
    present = torch.zeros(*view.shape[:2], tokens + 1, dtype=torch.bool)
    present.scatter_(-1, torch.where(view.valid, view.positions, tokens), True)
    return present[..., :tokens]
