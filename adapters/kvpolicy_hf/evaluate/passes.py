"""The two ways a batch goes through the model under a policy: answers are generated, or forced and their cost told."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from kvpolicy import Policy, Report

from .._transformers import as_argument
from ..cache import PolicyCache
from .subject import Subject

__all__ = ["Forced", "Forcing", "Generated", "force", "generate"]


@dataclass(frozen=True, slots=True)
class Generated:
    """Answers of B prompts.

    Attributes:
        tokens: of each answer, without the token that ends it.
        report: of the cache at the end.
        seconds: of the whole batch, the prompts included.
        peak_bytes: most memory that was allocated on the device meanwhile; None on a CPU.
    """

    tokens: list[list[int]]
    report: Report
    seconds: float
    peak_bytes: int | None


@dataclass(frozen=True, slots=True)
class Forced:
    """The cost of given answers of B prompts, token by token.

    Attributes:
        nats: negative log likelihood of each answer, summed over its tokens.
        top: of each answer, the token that the model held most likely at each of its places.
        report: of the cache at the end.
        seconds: of the whole batch, the prompts included.
        peak_bytes: as of `Generated`.
    """

    nats: list[float]
    top: list[list[int]]
    report: Report
    seconds: float
    peak_bytes: int | None


class Forcing(LogitsProcessor):
    """Makes `generate` say what it is told, and notes what it would have said.

    Args:
        answers: token ids of each batch row, not all empty.
    """

    def __init__(self, answers: Sequence[Sequence[int]]) -> None:
        self.answers = answers
        self.nats = [0.0] * len(answers)
        self.top: list[list[int]] = [[] for _ in answers]
        self.step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Logits [B, V] of the next token, all but the wanted one ruled out."""
        wanted = [answer[min(self.step, len(answer) - 1)] if answer else 0 for answer in self.answers]
        columns = torch.tensor(wanted, device=scores.device)[:, None]
        costs = -scores.float().log_softmax(-1).gather(-1, columns)[:, 0]
        top = scores.argmax(-1)
        for row, (cost, best) in enumerate(zip(costs.tolist(), top.tolist(), strict=True)):
            if self.step < len(self.answers[row]):
                self.nats[row] += cost
                self.top[row].append(best)
        self.step += 1
        return torch.full_like(scores, -torch.inf).scatter(-1, columns, 0.0)


@torch.inference_mode()
def generate(subject: Subject, inputs: Mapping[str, Tensor], policy: Policy, new_tokens: int) -> Generated:
    """Answer greedily under the policy."""
    out, report, seconds, peak = _timed(subject, inputs, policy, subject.greedy(new_tokens))
    answers = [_until(row, subject.eos) for row in out[:, inputs["input_ids"].shape[1] :].tolist()]
    return Generated(answers, report, seconds, peak)


@torch.inference_mode()
def force(subject: Subject, inputs: Mapping[str, Tensor], policy: Policy, answers: Sequence[Sequence[int]]) -> Forced:
    """Feed the given answers token by token (teacher forcing): the policy goes on evicting as it would."""
    forcing = Forcing(answers)
    config = subject.greedy(max(len(answer) for answer in answers), stop=False)
    _, report, seconds, peak = _timed(subject, inputs, policy, config, logits_processor=LogitsProcessorList([forcing]))
    return Forced(forcing.nats, forcing.top, report, seconds, peak)


def _timed(
    subject: Subject, inputs: Mapping[str, Tensor], policy: Policy, config: Any, **arguments: Any
) -> tuple[Tensor, Report, float, int | None]:
    cuda = subject.model.device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    cache = PolicyCache(subject.model, policy, inputs=inputs)
    out = subject.model.generate(**inputs, **as_argument(cache), generation_config=config, **arguments)
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    return out, cache.report(), seconds, torch.cuda.max_memory_allocated() if cuda else None


def _until(tokens: list[int], ends: tuple[int, ...]) -> list[int]:
    """What comes before the first token that ends an answer."""
    places = [place for place, token in enumerate(tokens) if token in ends]
    return tokens[: places[0]] if places else tokens
