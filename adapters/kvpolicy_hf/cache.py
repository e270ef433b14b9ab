"""The cache that a user hands to `generate`."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor

from kvpolicy import (
    CacheError,
    Listener,
    Pass,
    Policy,
    PolicyError,
    Report,
    Session,
    UnsupportedModelError,
    backend_by_name,
)

from ._transformers import Cache, PreTrainedModel, native_layers, padding_mask
from .layer import PolicyLayer, not_attended
from .rotary import rotation_for
from .segments import prompt_ids
from .segments import segments as segments_of
from .switch import is_enabled

__all__ = ["PolicyCache"]


class PolicyCache(Cache):
    """A key/value cache under a policy, for one request (one batch) of one model.

    Full-attention layers are put under the policy; sliding-window layers keep transformers' own cache.

    Args:
        model: the model, after `enable(model)`.
        policy: what to keep, merge and evict.
        inputs: what goes into `generate`. Gives the prompt's length, so that a prompt fed in chunks is compacted
            once, and the text/image segments.
        segments: int64 [B, T] of one's own, instead of those derived from ``inputs``.
        backend: name of the backend; default: that of the model's tensors.
        check: verify every stage's answer (NaN scores, impossible plans).
        listen: called as ``listen(layer, view, plan, step)`` with every plan before it is carried out. The view is a
            window on the storage, which is then written to: copy what is to be kept.

    Raises:
        CacheError: if the model was not enabled.
        PolicyError: if an argument is wrong.
        UnsupportedModelError: if the model has attention layers of a kind that cannot be served, or the policy needs
            plain rotary positions and the model has none.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        policy: Policy,
        *,
        inputs: Mapping[str, Any] | None = None,
        segments: Tensor | None = None,
        backend: str = "torch",
        check: bool = True,
        listen: Listener | None = None,
    ) -> None:
        if not isinstance(policy, Policy):
            raise PolicyError(
                f"PolicyCache(policy={policy!r}): policy must be a kvpolicy.Policy. "
                f"Hint: kvpolicy.elastic_cache(keep=0.2)."
            )
        if not is_enabled(model):
            raise CacheError(f"this {type(model).__name__} is not enabled. Hint: kvpolicy_hf.enable(model) first.")
        if backend != "torch":
            raise PolicyError(f"PolicyCache(backend={backend!r}): a model's cache takes the backend 'torch'.")
        prompt_length = 0 if inputs is None else int(prompt_ids(inputs).shape[1])
        if inputs is not None and segments is None:
            segments = segments_of(inputs, model)
        if segments is not None and (segments.ndim != 2 or segments.is_floating_point()):
            raise PolicyError(
                f"PolicyCache(segments=...) has shape {list(segments.shape)} and dtype {segments.dtype}; it takes "
                f"integers, [batch, tokens]."
            )
        layers: list[Any] = []
        policed = 0
        for native, plain in native_layers(model):
            if plain:
                layers.append(PolicyLayer(self, policed))
                policed += 1
            elif getattr(native, "is_sliding", False):
                layers.append(native)
            else:
                raise UnsupportedModelError(
                    f"{type(model).__name__} has a layer of kind {type(native).__name__}, which PolicyCache does not "
                    f"serve yet. Hint: use this model without a PolicyCache."
                )
        if not policed:
            raise UnsupportedModelError(f"{type(model).__name__} has no full-attention layer to put under a policy.")
        super().__init__(layers=layers)
        self._model = weakref.ref(model)
        self._segments = segments
        self._policed = [layer for layer in layers if isinstance(layer, PolicyLayer)]
        self._native = [layer for layer in layers if not isinstance(layer, PolicyLayer)]
        self.session = Session(
            policy,
            backend_by_name(backend),
            policed,
            prompt_length=prompt_length,
            check=check,
            listen=listen,
            rotate=rotation_for(policy, model),
        )
        self._now: Pass | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> PolicyCache:
        """An independent cache with the same rows: one system prompt for several requests."""
        copied = object.__new__(type(self))
        memo[id(self)] = copied
        memo[id(self.session.policy)] = self.session.policy
        for name, value in vars(self).items():
            setattr(copied, name, copy.deepcopy(value, memo))
        for layer in copied._policed:
            layer.belong_to(copied)
        return copied

    def __repr__(self) -> str:
        return f"PolicyCache({self.session.policy!r}, tokens={self.get_seq_length()})"

    def report(self) -> Report:
        """Rows per layer, tokens seen, rows evicted and merged, and real bytes against the full cache."""
        return self.session.report()

    def reset(self) -> None:
        """Forget everything; the cache can serve a new request of the same prompt length."""
        self.session.clear()
        self._now = None
        for layer in self._policed:
            layer.waiting = False
        if (model := self._model()) is not None and self._native:
            # New ones, because a native layer's own reset keeps its old rows in transformers up to 5.17.
            self.layers = [
                ours if isinstance(ours, PolicyLayer) else native
                for ours, (native, _) in zip(self.layers, native_layers(model), strict=True)
            ]
            self._native = [layer for layer in self.layers if not isinstance(layer, PolicyLayer)]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Beams: rows, columns and registers go with their batch row."""
        self._select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these batch rows."""
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every batch row."""
        batch = self.session.batch
        device = self._now.positions.device if self._now is not None else None
        self._select(torch.arange(batch, device=device).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Refused, except for nothing: evicted rows cannot come back."""
        for layer in self._policed:
            layer.crop(tokens_to_remove)

    def activate_past_recording(self) -> NoReturn:
        """Refused: assisted and prompt-lookup decoding announce here that they will take tokens back."""
        self._policed[0].refuse_rollback("taking tokens back")

    def _select(self, index: Tensor) -> None:
        if self._segments is not None and self.session.batch:
            segments = self._expanded_segments(self.session.batch)
            self._segments = segments.index_select(0, index.to(segments.device))
        self.session.select_batch(index)
        for layer in self._native:
            layer.batch_select_indices(index)

    # One forward pass -----------------------------------------------------------------------------------------------

    @property
    def now(self) -> Pass:
        """The forward pass under way."""
        if self._now is None:
            raise CacheError("no forward pass is under way.")
        return self._now

    def begin(self, start: int, keys: Tensor, padding: Tensor | None) -> None:
        """Describe the pass once; its further layers share it."""
        length = int(keys.shape[2])
        if self._now is not None and self._now.start == start and self._now.length == length:
            return
        batch, device = int(keys.shape[0]), keys.device
        valid = padding_mask(padding, start, length, batch, device)
        if valid.shape != (batch, length):
            raise PolicyError(
                f"attention_mask has shape {list(padding.shape if padding is not None else [])}: it must cover all "
                f"{start + length} tokens seen so far for {batch} batch rows."
            )
        positions = torch.arange(start, start + length, device=device).expand(batch, length)
        columns = {}
        if self._segments is not None:
            known = self._expanded_segments(batch)[:, start : start + length].to(device)
            columns["segment"] = torch.nn.functional.pad(known, (0, length - known.shape[1]))  # later tokens are text
        self._now = Pass(start, positions, valid, valid.sum(-1).cpu().numpy(), columns)

    def check_attended(self, index: int) -> None:
        """Before a layer takes new keys: the ones handed out before must have come to our attention."""
        for number in (index - 1, index):
            if number >= 0 and self._policed[number].waiting:
                raise not_attended(number)

    def check_module(self, module: torch.nn.Module) -> None:
        """Raise unless an attention module is part of this cache's model."""
        model = self._model()
        if model is None or not any(part is module for part in model.modules()):
            self.refuse_model(module)

    def check_enabled(self) -> None:
        """Raise unless the model still runs on our attention."""
        model = self._model()
        if model is not None and not is_enabled(model):
            raise UnsupportedModelError(
                f"this {type(model).__name__} was disabled after the PolicyCache was made. Hint: enable(model)."
            )

    def refuse_model(self, module: torch.nn.Module) -> NoReturn:
        """The cache was made for other weights."""
        raise CacheError(
            f"this PolicyCache was made for another model than the one whose {type(module).__name__} is running. "
            f"Hint: PolicyCache(model, policy) for each model."
        )

    def _expanded_segments(self, batch: int) -> Tensor:
        """Segments for each batch row; `generate` repeats rows for beams and return sequences."""
        segments = self._segments
        assert segments is not None
        if segments.shape[0] == batch:
            return segments
        if batch % segments.shape[0]:
            raise PolicyError(
                f"inputs or segments have {segments.shape[0]} batch rows, but the model runs {batch}. "
                f"Hint: pass the same inputs to PolicyCache and to generate."
            )
        return segments.repeat_interleave(batch // segments.shape[0], dim=0)
