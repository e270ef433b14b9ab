"""Presses of kvpress as scorers. kvpress is not needed: any object with its ``score()`` will do."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce
from types import SimpleNamespace
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor

from kvpolicy import CacheView, ImportanceScorer, PlanError, PolicyError, Scores, Step, UnsupportedModelError

from ._stand_ins import Attentions, HiddenStates, NoKwargs
from .softmax import Softmax

__all__ = ["from_press"]

_SIGNATURE = ("module", "hidden_states", "keys", "values", "attentions", "kwargs")
_FAR = torch.iinfo(torch.int64).max


def from_press(press: Any) -> ImportanceScorer:
    """The ``score()`` of a kvpress press as a scorer, for any pipeline of a `PolicyCache`.

    ``score(module, hidden_states, keys, values, attentions, kwargs) -> [B, H, S]`` is all of the press that is used;
    what kvpress does with the scores is left to the pipeline, ``compression_ratio`` included: the budget is the
    schedule's. The press is called once for each batch row and each number of rows that heads hold, so it never meets
    padding, an empty slot or another request. It gets

    - ``module``: the attention module that ran;
    - ``keys`` [1, H, S, D] and ``values`` [1, H, S, Dv]: a copy of the table's rows in order of arrival. Where heads
      hold different numbers of rows there is a call for each number S, and a head that holds another number is
      represented by one that holds S; what comes out for it is not used;
    - ``attentions`` [1, Hq, Q, S]: the probabilities with which the queries of this pass attended to these rows, from
      the model's own queries, keys, scale, cap and sinks, softmax in at least float32, in the queries' dtype. They take
      memory in proportion to Q times S, and are computed only if the press uses them;
    - ``hidden_states``: its shape (1, Q, hidden size), dtype and device, and nothing else, since no cache sees it;
    - ``kwargs``: empty.

    A press that uses more is refused: here, where a trial with random tensors shows it, and otherwise when it runs.

    Args:
        press: an object with kvpress's ``score()``; held by reference, and equal only to itself.

    Raises:
        PolicyError: if there is no such ``score()``, if the press's effect is not in it alone (it comes with a
            ``compress()`` or ``forward_hook()`` of its own), or if it uses hidden states or keyword arguments.
    """
    _check(press)
    scorer = PressScorer(press)
    scorer.rehearse()
    return scorer


@final
@dataclass(frozen=True, slots=True, eq=False, repr=False)
class PressScorer(ImportanceScorer):
    """See `from_press`."""

    needs_all_heads: ClassVar[bool] = True  # a press may do anything with the heads that it is shown

    press: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PressScorer) and other.press is self.press

    def __hash__(self) -> int:
        return id(self.press)

    def __repr__(self) -> str:
        return f"from_press({type(self.press).__name__}(...))"

    def score(self, view: CacheView, step: Step, /) -> Scores:
        """The press's scores in the table's slots.

        Raises:
            PolicyError: if the press uses what a policy cannot see, or no attention module was given.
            PlanError: if the press does not return floating scores [1, H, S].
            UnsupportedModelError: if the attention module does not tell its hidden size.
        """
        if step.module is None:
            raise PolicyError(
                f"{self!r} hands the attention module on to the press, and this session was given none. "
                f"Hint: run the policy in a kvpolicy_hf.PolicyCache."
            )
        order = torch.where(view.valid, view.positions, _FAR).argsort(-1)
        parts = []
        for row, held in enumerate(step.held[view.layer]):
            for count in np.unique(held[held > 0]):
                mine = np.flatnonzero(held == count)
                shown = np.where(held == count, np.arange(len(held)), mine[0])
                heads, own = (torch.as_tensor(index, device=order.device) for index in (shown, mine))
                slots = order[row, :, :count]
                scores = self._score_row(view, step, row, heads, slots[heads])
                parts.append((row, own[:, None], slots[own], scores[0, own]))
        dtype = reduce(torch.promote_types, (scores.dtype for *_, scores in parts), torch.float32)
        out = torch.full(view.shape, -torch.inf, dtype=dtype, device=order.device)
        for row, own, slots, scores in parts:
            out[row, own, slots] = scores.to(out)
        return out

    def _score_row(self, view: CacheView, step: Step, row: int, heads: Tensor, slots: Tensor) -> Tensor:
        """One call: these heads [H] of a batch row, and their rows [H, S]."""
        at = row, heads[:, None], slots
        asked = step.query_valid[row]
        queries = step.queries[row].unflatten(0, (view.shape[1], -1))[heads][:, :, asked].flatten(0, 1)[None]
        keys, values = view.keys[at][None], view.values[at][None]
        bias = view.columns["count"].data[at].log()[None] if step.count_bias else None
        hidden = view.positions[at][None, :, None] > step.asked.sees[row, asked][:, None]
        sinks = None if step.sinks is None else step.sinks.unflatten(0, (view.shape[1], -1))[heads].flatten()
        attend = partial(_attention, queries, keys, hidden, Softmax(step.scale, step.softcap, sinks), bias)
        try:  # with keys of its own, because it may write into them before it uses the attentions
            scores = self._ask(step.module, queries, keys.clone(), values, attend)
        except Exception as error:
            error.add_note(
                f"{self!r} was asked about {keys.shape[2]} rows and {queries.shape[2]} queries of layer {view.layer}."
            )
            raise
        if not isinstance(scores, Tensor) or scores.shape != keys.shape[:3] or not scores.is_floating_point():
            got = f"{scores.dtype} {list(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
            raise PlanError(
                f"{self!r}.score() returned {got} at layer {view.layer}; it must return floating scores "
                f"{list(keys.shape[:3])}."
            )
        return scores

    def _ask(self, module: Any, queries: Tensor, keys: Tensor, values: Tensor, attend: Callable[[], Tensor]) -> Any:
        width = getattr(getattr(module, "config", None), "hidden_size", None)
        if width is None:
            raise UnsupportedModelError(f"{self!r}: {type(module).__name__} has no config.hidden_size.")
        hidden_states = HiddenStates((1, queries.shape[2], width), queries, self)
        attentions = Attentions((*queries.shape[:3], keys.shape[2]), queries, attend)
        return self.press.score(module, hidden_states, keys, values, attentions, NoKwargs(self))

    def rehearse(self) -> None:
        """Score random rows once, to find out now what the press uses.

        Raises:
            PolicyError: if it uses what a policy cannot see. Any other error is left for the real run: here the press
                may lack what it gets from its model.
        """
        rows, heads, groups, size = 128, 2, 2, 16
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            queries = torch.randn(1, heads * groups, rows, size)
            keys, values = torch.randn(2, 1, heads, rows, size).unbind()
            hidden = torch.ones(rows, rows, dtype=torch.bool).triu(1).expand(1, heads, -1, -1)
            attend = partial(_attention, queries, keys, hidden, Softmax(size**-0.5), None)
            try:
                self._ask(_tiny_module(heads, groups, size), queries, keys, values, attend)
            except PolicyError:
                raise
            except Exception:
                pass


def _attention(queries: Tensor, keys: Tensor, hidden: Tensor, softmax: Softmax, bias: Tensor | None) -> Tensor:
    """Shares of the rows, [1, Hq, Q, S]; ``hidden`` is [1, H, Q, S], the bias of the logits [1, H, S]."""
    mask = ~hidden if bias is None else torch.where(hidden, -torch.inf, bias[:, :, None])
    return softmax.shares(queries, keys, mask).to(queries.dtype)


def _tiny_module(heads: int, groups: int, size: int) -> Any:
    """Looks like the attention module of a Llama, as far as a press may want to know."""
    width = heads * groups * size
    module: Any = torch.nn.Module()
    module.config = SimpleNamespace(
        hidden_size=width,
        head_dim=size,
        num_attention_heads=heads * groups,
        num_key_value_heads=heads,
        num_hidden_layers=2,
    )
    module.layer_idx, module.head_dim, module.num_key_value_groups, module.scaling = 0, size, groups, size**-0.5
    module.q_proj, module.o_proj = torch.nn.Linear(width, width), torch.nn.Linear(width, width)
    module.k_proj, module.v_proj = torch.nn.Linear(width, heads * size), torch.nn.Linear(width, heads * size)
    return module


def _check(press: Any) -> None:
    """Raise `PolicyError` unless the press is an instance whose effect is in a ``score()`` of kvpress's arguments."""
    if isinstance(press, type):
        name = press.__name__
        raise PolicyError(f"from_press({name}): takes a press, not its class. Hint: from_press({name}(...)).")
    name = type(press).__name__
    if not callable(getattr(press, "score", None)):
        hint = f"score({', '.join(_SIGNATURE)})"
        if hasattr(press, "press"):
            hint = f"from_press(press.press) has the scores of the {type(press.press).__name__} that it wraps"
        raise PolicyError(f"from_press({name}(...)): {name} has no method score(). Hint: {hint}.")
    try:
        inspect.signature(press.score).bind(*_SIGNATURE)
    except (TypeError, ValueError) as error:
        raise PolicyError(
            f"from_press({name}(...)): score() does not take ({', '.join(_SIGNATURE)}): {error}. "
            f"Hint: a scorer of kvpolicy's own kind goes into a Pipeline as it is."
        ) from error
    for method in ("compress", "forward_hook"):
        if _is_special(type(press), method):
            raise PolicyError(
                f"from_press({name}(...)): {name} comes with a {method}() of its own, and only score() would run. "
                f"Hint: types.SimpleNamespace(score=press.score) is a press with that score alone; what {method}() "
                f"adds is for allocate=, select= and merge=."
            )


def _is_special(kind: type, method: str) -> bool:
    """Whether a press does more with its scores than the class that first asked for a ``score()``.

    A base class whose ``score()`` is to be filled in may bring the method along: that is the plain top-k. If it is
    overridden below that base, or stands in the very class that fills in ``score()``, it was written for more.
    """
    order = kind.__mro__
    scores = [place for place, base in enumerate(order) if "score" in vars(base)]
    owners = [place for place, base in enumerate(order) if method in vars(base)]
    return bool(scores and owners) and (owners[0] < scores[-1] or owners[0] == scores[0])
