"""Real prompts, as the attention of every layer met them, and what a compressed cache loses of them.

Shapes: L layers, H key/value heads, G query heads per key/value head, T prompt tokens, N tokens with the decode steps.
"""

from __future__ import annotations

import runpy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from kvpolicy import CacheView, Plan, Policy, Report, Step
from kvpolicy_hf.simulate import Record
from kvpolicy_hf.simulate.replay import feed, open_session
from kvpolicy_hf.simulate.rotary import rotation

SIMULATE = Path(__file__).parents[1] / "simulate_all.py"
TEXTS, TOKENS, STEPS = 4, 512, 64
PICTURES = 8  # of each kind


@dataclass(frozen=True)
class Samples:
    """What is measured on: texts for SmolLM2, pictures with a question for the demo's model."""

    texts: tuple[Prompt, ...]
    pictures: tuple[Prompt, ...]

    @classmethod
    def load(cls) -> Samples:
        """Run both models once."""
        script = runpy.run_path(str(SIMULATE))
        texts = script["smollm2_records"](TEXTS, TOKENS, STEPS)
        return cls(tuple(map(Prompt, texts)), tuple(map(Prompt, script["demo_records"](PICTURES))))


@dataclass(frozen=True)
class Table:
    """What a policy leaves of a prompt, row n in the place of token n.

    Attributes:
        keys: float64 [L, H, T, D].
        values: float64 [L, H, T, D].
        kept: bool [L, H, T]; or [L, H, G, T] where query heads that share keys keep different rows.
        count: float64 [L, H, T] where attention weighs rows by it.
        plans: the view, plan and step of each layer; empty where the policy left the prompt alone. A prompt that is cut
            down moves to new storage, so a view shows the whole prompt still.
        report: the session's, where a policy made the table.
    """

    keys: Tensor
    values: Tensor
    kept: Tensor
    count: Tensor | None = None
    plans: tuple[tuple[CacheView, Plan, Step], ...] = ()
    report: Report | None = None

    @property
    def rows(self) -> Tensor:
        """Rows of each head, int64 [L, H]."""
        return self.kept.sum(-1)


@dataclass(frozen=True, eq=False)
class Prompt:
    """A record, all layers in one tensor, float64."""

    record: Record

    @property
    def tokens(self) -> int:
        """T."""
        return self.record.prompt

    @property
    def layers(self) -> int:
        """L."""
        return self.record.layers

    @property
    def scale(self) -> float:
        """The softmax scale, the same in all layers of these models."""
        (scale,) = set(self.record.scales)
        return scale

    @property
    def image(self) -> Tensor:
        """bool [T]: which tokens are part of the image."""
        return self.record.segments[0, : self.tokens] == 1

    @cached_property
    def all_keys(self) -> Tensor:
        """[L, H, N, D]."""
        return torch.cat(list(self.record.keys)).double()

    @cached_property
    def all_values(self) -> Tensor:
        """[L, H, N, D]."""
        return torch.cat(list(self.record.values)).double()

    @cached_property
    def all_queries(self) -> Tensor:
        """[L, H, G, N, D]."""
        return torch.cat(list(self.record.queries)).double().unflatten(1, (self.all_keys.shape[1], -1))

    @property
    def keys(self) -> Tensor:
        """Of the prompt, [L, H, T, D]."""
        return self.all_keys[:, :, : self.tokens]

    @property
    def values(self) -> Tensor:
        """Of the prompt, [L, H, T, D]."""
        return self.all_values[:, :, : self.tokens]

    @property
    def heads(self) -> tuple[int, int]:
        """(H, G)."""
        _, heads, groups, *_ = self.all_queries.shape
        return heads, groups

    def attention(self, layer: int, last: int) -> Tensor:
        """What the last so many queries of the prompt paid to its rows, [H, G, last, T]."""
        start = self.tokens - last
        logits = self.scale * self.all_queries[layer, :, :, start : self.tokens] @ self.keys[layer, :, None].mT
        later = torch.ones(last, self.tokens, dtype=torch.bool).triu(start + 1)
        return torch.softmax(logits.masked_fill(later, -torch.inf), dim=-1)

    @cached_property
    def mass(self) -> Tensor:
        """What all queries of the prompt paid to each row together, [L, H, G, T]."""
        return self.window(self.tokens)

    def window(self, last: int) -> Tensor:
        """The same for the last so many queries, [L, H, G, T]."""
        return torch.stack([self.attention(layer, last).sum(2) for layer in range(self.layers)])

    @cached_property
    def logits(self) -> Tensor:
        """Of the decode steps for all tokens up to each, [L, H, G, steps, N]; -inf beyond."""
        logits = self.scale * self.all_queries[:, :, :, self.tokens :] @ self.all_keys[:, :, None].mT
        return logits.masked_fill(self.later, -torch.inf)

    @cached_property
    def later(self) -> Tensor:
        """bool [steps, N]: tokens that a decode step does not see yet."""
        return torch.ones(self.record.steps, self.record.length, dtype=torch.bool).triu(self.tokens + 1)

    @cached_property
    def future(self) -> Tensor:
        """What the decode steps paid to all tokens, [L, H, G, steps, N]."""
        return torch.softmax(self.logits, dim=-1)

    @cached_property
    def due(self) -> Tensor:
        """The attention output of the decode steps, [L, H, G, steps, D]."""
        return self.future @ self.all_values[:, :, None]

    def outputs(self, table: Table, *, shift: int = 0) -> Tensor:
        """The same from a compressed prompt and all decode rows, which stand ``shift`` positions further on."""
        queries, keys = self.all_queries[:, :, :, self.tokens :], self.all_keys[:, :, self.tokens :]
        if shift:
            queries, keys = self.turn(queries, shift), self.turn(keys, shift)
        logits = self.scale * queries @ torch.cat([table.keys, keys], dim=2)[:, :, None].mT
        kept = table.kept if table.kept.ndim == 4 else table.kept[:, :, None]
        bias = torch.zeros(kept.shape, dtype=logits.dtype)
        if table.count is not None:
            bias = table.count.clamp(min=1).log()[:, :, None]
        logits[..., : self.tokens] += bias.masked_fill(~kept, -torch.inf)[:, :, :, None]
        values = torch.cat([table.values, self.all_values[:, :, self.tokens :]], dim=2)
        return torch.softmax(logits.masked_fill(self.later, -torch.inf), dim=-1) @ values[:, :, None]

    def error(self, table: Table, *, shift: int = 0) -> Tensor:
        """``||o - o_full|| / ||o_full||`` over all heads, [L, steps]."""
        return relative(self.outputs(table, shift=shift), self.due)

    def turn(self, vectors: Tensor, by: int | Tensor) -> Tensor:
        """Rotary vectors [..., N, D] as if their tokens stood ``by`` positions further on."""
        assert self.record.inv_freq is not None
        turn = rotation(self.record.inv_freq.double())
        flat = vectors.reshape(1, -1, *vectors.shape[-2:])
        by = torch.as_tensor(by).expand(vectors.shape[:-1]).reshape(flat.shape[:-1])
        return turn(flat, by).reshape(vectors.shape)

    def evicted(self, kept: Tensor) -> Table:
        """The prompt without the other rows."""
        return Table(self.keys, self.values, kept)

    def after(self, policy: Policy) -> Table:
        """What a policy makes of the prompt."""
        plans: list[tuple[CacheView, Plan, Step]] = []
        session = open_session(
            self.record, policy, listen=lambda layer, view, plan, step: plans.append((view, plan, step))
        )
        for _ in feed(session, self.record, 0, self.tokens):
            pass
        report, made = session.report(), tuple(plans)
        keys, values = torch.zeros_like(self.keys), torch.zeros_like(self.values)
        kept = torch.zeros(keys.shape[:3], dtype=torch.bool)
        count = torch.ones(keys.shape[:3], dtype=keys.dtype)
        for view, _ in feed(session, self.record, self.tokens, self.tokens + 1):
            _, head, row = torch.where(view.valid & (view.positions < self.tokens))
            place = (view.layer, head, view.positions[0, head, row])
            keys[place], values[place] = view.keys[0, head, row].double(), view.values[0, head, row].double()
            kept[place], count[place] = True, view.columns["count"].data[0, head, row].double()
        return Table(keys, values, kept, count if policy.count_bias else None, made, report)

    def some_layers(self, number: int) -> Prompt:
        """The same with so many of its layers, spread over the model."""
        chosen = [round(place * (self.layers - 1) / (number - 1)) for place in range(number)]
        kinds = ("scales", "queries", "keys", "values")
        picked = {kind: [getattr(self.record, kind)[layer] for layer in chosen] for kind in kinds}
        return Prompt(replace(self.record, **picked))


def relative(outputs: Tensor, due: Tensor) -> Tensor:
    """``||o - due|| / ||due||`` over all heads, [L, steps], of outputs [L, H, G, steps, D]."""
    heads = (1, 2, 4)
    return torch.linalg.vector_norm(outputs - due, dim=heads) / torch.linalg.vector_norm(due, dim=heads)


def best(scores: Tensor, count: int) -> Tensor:
    """bool [..., S]: the ``count`` largest of the last axis."""
    return torch.zeros(scores.shape, dtype=torch.bool).scatter(-1, scores.topk(count, dim=-1).indices, True)


def overlap(some: Tensor, others: Tensor) -> float:
    """Of the rows marked in ``others`` the share that is marked in ``some`` too, mean over heads and layers."""
    return mean((some & others).sum(-1) / others.sum(-1))


def mean(numbers: Tensor | Iterable[float | Tensor]) -> float:
    """The mean as a number."""
    if not isinstance(numbers, Tensor):
        numbers = torch.tensor([float(number) for number in numbers])
    return float(numbers.double().mean())


def gathered(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The means of several measurements; the smallest of what ends in ``least``, the largest of ``most``."""
    numbers = {}
    for name in parts[0]:
        of = {"least": min, "most": max}.get(name.rpartition("_")[2], mean)
        numbers[name] = float(of([part[name] for part in parts]))
    return numbers


def each_head(*data: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """What belongs to each head of each layer, in turn, of data [L, H, ...]; views of it."""
    return zip(*(part.flatten(0, 1) for part in data), strict=True)
