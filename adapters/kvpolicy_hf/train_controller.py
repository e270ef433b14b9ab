"""Fit ADORE's controller to a model, from records of its attention."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kvpolicy import TEXT, GRUController, PolicyError

from .simulate import Record, load_record

__all__ = ["train_controller"]

QUERIES = 32  # of each layer in one training step
RATE = 0.02  # of Adam, brought down to zero along a cosine


def train_controller(
    records: Iterable[Record | str | Path],
    *,
    size: int = 16,
    steps: int = 300,
    seed: int = 0,
    rows: int | None = None,
) -> GRUController:
    """A controller for `kvpolicy.adore`, fitted to what the attention of a model did.

    Each training step takes all layers of one record and some tokens t of its second half. The controller scores the
    rows before t for t; what it should have said is the full attention of the next token, mean over all heads of the
    layer: that token reads the table that t leaves behind. Where there are such, the next token is text, since that is
    what will be decoded. All layers share the weights.

    Without ``rows`` the loss is the cross-entropy between that attention and the softmax of the scores: fit for the
    attention's mass. With ``rows`` it is the binary cross-entropy of whether a row is among the ``rows`` that get the
    most attention, as in ADORE: fit for their recall.

    Equal records and arguments give equal weights: it runs on one thread, which for so small a network is also fastest.

    Args:
        records: `kvpolicy_hf.simulate.record`'s, or their files; all of one model.
        size: r, the numbers in a token's code; each takes four bytes for every head of every row, on the device also
            for rows in the archive.
        steps: training steps; 0 gives the controller that training starts from.
        seed: of the first weights and of the choice of tokens.
        rows: how many rows are wanted, or None.

    Raises:
        PolicyError: if there is no record, their keys differ in size, or an argument is out of range.
        RecordError: if a file cannot be read.
    """
    for name, value, least in (("size", size, 1), ("steps", steps, 0), ("rows", 1 if rows is None else rows, 1)):
        if type(value) is not int or value < least:
            raise PolicyError(f"train_controller({name}={value!r}): {name} must be an integer >= {least}.")
    with torch.inference_mode(False), torch.enable_grad(), _one_thread():
        lessons = [_Lesson.of(one if isinstance(one, Record) else load_record(one)) for one in records]
        dims = sorted({lesson.keys.shape[-1] for lesson in lessons})
        if not dims:
            raise PolicyError("train_controller(records=[]): there is nothing to learn from. Hint: simulate.record().")
        if len(dims) > 1:
            raise PolicyError(f"train_controller(records=...): keys of {dims} dimensions are not of one model.")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = _Network(dims[0], size)
            _fit(network, lessons, steps, rows)
        return network.controller()


@dataclass(frozen=True, slots=True)
class _Lesson:
    """A record as the controller sees it, and what the attention of any token was."""

    record: Record
    keys: Tensor  # [L, N, D]
    queries: Tensor  # [L, N, D]
    tokens: Tensor  # int64, those that are asked about

    @classmethod
    def of(cls, record: Record) -> _Lesson:
        keys, queries = (torch.cat([_features(one) for one in data]) for data in (record.keys, record.queries))
        if record.length < 3:
            raise PolicyError(f"{record!r} is too short: no token has both a row before it and a next token.")
        tokens = torch.arange(record.length // 2, record.length - 1)
        text = tokens[record.segments[0, tokens + 1] == TEXT]
        return cls(record, keys, queries, text if len(text) else tokens)

    def wanted(self, tokens: Tensor) -> Tensor:
        """The next token's attention on the rows before each of these tokens, sums to 1: [L, T, N]."""
        out, later = [], ~_before(tokens, self.record.length)
        for queries, keys, scale in zip(self.record.queries, self.record.keys, self.record.scales, strict=True):
            asked = queries[0, :, tokens + 1].float().unflatten(0, (keys.shape[1], -1))  # [H, G, T, D]
            logits = scale * asked @ keys[0].float()[:, None].transpose(-1, -2)
            out.append(logits.masked_fill(later, -torch.inf).softmax(-1).mean((0, 1)))
        return torch.stack(out)


class _Network(torch.nn.Module):
    """`GRUController` in torch, for training."""

    def __init__(self, dim: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.gru = torch.nn.GRU(dim, size, batch_first=True)
        self.ask = torch.nn.Linear(dim, size)
        self.age = torch.nn.Parameter(torch.tensor([-1.0]))

    def forward(self, keys: Tensor, queries: Tensor, tokens: Tensor) -> Tensor:
        """Scores of all rows for each of the tokens, [L, T, N]."""
        codes: Tensor = self.gru(keys)[0]
        age = (tokens[:, None] - torch.arange(keys.shape[1])).clamp(min=0)
        scores: Tensor = self.ask(queries[:, tokens]) @ codes.transpose(1, 2) + self.age * age.log1p()
        return scores

    def controller(self) -> GRUController:
        """The same as a value."""
        gru: Any = self.gru
        inner: Tensor = gru.bias_hh_l0
        two = 2 * self.size
        arrays = {
            "read": gru.weight_ih_l0.T,
            "read_bias": gru.bias_ih_l0 + torch.cat([inner[:two], torch.zeros(self.size)]),
            "state": gru.weight_hh_l0.T,
            "state_bias": inner[two:],
            "ask": self.ask.weight.T,
            "ask_bias": self.ask.bias,
            "age": self.age,
        }
        return GRUController.from_arrays({name: data.detach().numpy() for name, data in arrays.items()})


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _fit(network: _Network, lessons: list[_Lesson], steps: int, rows: int | None) -> None:
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    for step in range(steps):
        lesson = lessons[step % len(lessons)]
        tokens = lesson.tokens[torch.randint(len(lesson.tokens), (QUERIES,))]
        scores = network(lesson.keys, lesson.queries, tokens)
        with torch.no_grad():
            wanted = lesson.wanted(tokens)
        known = _before(tokens, lesson.record.length)
        loss = _mass_loss(scores, wanted, known) if rows is None else _top_loss(scores, wanted, known, rows)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def _mass_loss(scores: Tensor, wanted: Tensor, known: Tensor) -> Tensor:
    share = scores.masked_fill(~known, -torch.inf).log_softmax(-1).masked_fill(~known, 0.0)
    return -(wanted * share).sum(-1).mean()


def _top_loss(scores: Tensor, wanted: Tensor, known: Tensor, rows: int) -> Tensor:
    ranked = wanted.masked_fill(~known, -1.0).argsort(dim=-1, descending=True)
    top = torch.zeros_like(wanted).scatter_(-1, ranked[..., :rows], 1.0)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(scores, top, reduction="none")
    return loss[known.expand_as(loss)].mean()


def _before(tokens: Tensor, length: int) -> Tensor:
    """bool [T, N]: rows in front of each token."""
    before: Tensor = torch.arange(length) < tokens[:, None]
    return before


def _features(vectors: Tensor) -> Tensor:
    """Mean over heads of [1, H, N, D] at a root mean square of 1, [1, N, D]: as `GRUController` reads them."""
    directions: Tensor = torch.nn.functional.normalize(vectors.float().mean(1), dim=-1)
    return directions * math.sqrt(vectors.shape[-1])
