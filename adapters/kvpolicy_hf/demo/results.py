"""Every question under every policy, and whether the answers are right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kvpolicy import Policy, full

from ..plots import Layout, PlotError, seen_by_model
from .answers import Answer, ask
from .cases import Case
from .prompts import encode

__all__ = ["Result", "run_case"]


@dataclass(frozen=True, slots=True)
class Result:
    """One question under every policy.

    Attributes:
        case: the question.
        answers: by policy name.
        right: the right answer; where it is not known, the full cache's.
        layout: where the prompt's tokens lie; None if the image has no single grid.
        image: the picture as the model saw it.
    """

    case: Case
    answers: Mapping[str, Answer]
    right: str
    layout: Layout | None
    image: Any

    def is_right(self, name: str) -> bool:
        """Whether the policy of this name gave the right answer."""
        return self.answers[name].text == self.right


def run_case(
    case: Case,
    model: Any,
    processor: Any,
    policies: Mapping[str, Policy],
    *,
    max_new_tokens: int,
    done: Callable[[], None] = lambda: None,
) -> Result:
    """Ask one question under every policy; ``done`` is called after each."""
    inputs = encode(processor, case.prompt, model.device)
    answers = {}
    for name, policy in policies.items():
        answers[name] = ask(model, processor, inputs, policy, max_new_tokens=max_new_tokens)
        done()
    right = case.prompt.answer
    if right is None:
        same = next((name for name, policy in policies.items() if policy == full()), None)
        right = (answers[same] if same else ask(model, processor, inputs, full(), max_new_tokens=max_new_tokens)).text
    layout = _layout(inputs, model, processor)
    return Result(case, answers, right, layout, seen_by_model(inputs, processor, case.prompt.image))


def _layout(inputs: Any, model: Any, processor: Any) -> Layout | None:
    try:
        return Layout.of(inputs, model, processor.tokenizer)
    except PlotError:
        return None
