"""The cache that a user hands to `generate`."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Mapping
from dataclasses import replace
from inspect import isfunction
from itertools import pairwise
from typing import Any, NoReturn

import torch
from torch import Tensor

from kvpolicy import (
    CacheError,
    ImportanceScorer,
    Listener,
    Pass,
    Pipeline,
    Policy,
    PolicyError,
    Report,
    Session,
    UnsupportedModelError,
)

from ._transformers import GenerateCache, PreTrainedModel, expands_latents, hears_use_cache, native_layers, sight
from .backend import backend_for_model
from .layer import PolicyLayer, not_attended
from .rotary import rotation_for
from .segments import prompt_ids
from .segments import segments as segments_of
from .switch import is_enabled
from .tensor_parallel import heads_for

__all__ = ["PolicyCache"]


class PolicyCache(GenerateCache):
    """A key/value cache under a policy, for one request (one batch) of one model.

    Full self-attention layers are put under the policy; sliding-window, linear-attention and cross-attention layers
    keep transformers' own cache.

    Args:
        model: the model, after `enable(model)`.
        policy: what to keep, merge and evict.
        inputs: what goes into `generate`. Gives the prompt's length, so that a prompt fed in chunks is compacted
            once, and the text/image segments.
        segments: int64 [B, T] of one's own, instead of those derived from ``inputs``.
        backend: ``"torch"`` or ``"triton"``; None: triton where the model is on a CUDA device and it is installed.
        check: verify every stage's answer (NaN scores, impossible plans).
        listen: called as ``listen(layer, view, plan, step)`` with every plan before it is carried out. The view is a
            window on the storage, which is then written to: copy what is to be kept. Decoding in place, after
            `compile_decode`, tells nobody its plans.

    Raises:
        CacheError: if the model was not enabled.
        PolicyError: if an argument is wrong.
        BackendUnavailableError: if a backend was asked for that cannot work here.
        UnsupportedModelError: if the model has attention layers of a kind that cannot be served; if the policy needs
            plain rotary positions and the model has none; or if the model is distributed in a way, or beside a stage,
            that would not be exact.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        policy: Policy,
        *,
        inputs: Mapping[str, Any] | None = None,
        segments: Tensor | None = None,
        backend: str | None = None,
        check: bool = True,
        listen: Listener | None = None,
    ) -> None:
        if not isinstance(policy, Policy):
            raise PolicyError(
                f"PolicyCache(policy=...): policy must be a kvpolicy.Policy, not a {type(policy).__name__}. "
                f"Hint: {_policy_from(policy)}."
            )
        if not is_enabled(model):
            raise CacheError(f"this {type(model).__name__} is not enabled. Hint: kvpolicy_hf.enable(model) first.")
        ops, self._note = backend_for_model(model, backend)
        prompt_length, segments = _prompt(model, inputs, segments)
        layers: list[Any] = []
        policed, latent = 0, expands_latents(model)
        for native, full in native_layers(model):
            layers.append(PolicyLayer(self, policed, latent=latent) if full else native)
            policed += full
        if not policed:
            raise UnsupportedModelError(f"{type(model).__name__} has no full-attention layer to put under a policy.")
        super().__init__(layers=layers)
        self._model = weakref.ref(model)
        self._prompt_length, self._segments = prompt_length, segments
        self._policed = [layer for layer in layers if isinstance(layer, PolicyLayer)]
        self._native = [layer for layer in layers if not isinstance(layer, PolicyLayer)]
        self.session = Session(
            policy,
            ops,
            policed,
            prompt_length=prompt_length,
            check=check,
            listen=listen,
            rotate=rotation_for(policy, model),
            heads=heads_for(policy, model),
        )
        self.hears_use_cache = hears_use_cache(model)
        self._passes: tuple[Pass, ...] = ()  # those that the model's pass under way is made of
        self._recording = False  # whether the tokens of a pass may be taken back
        self._parts: frozenset[int] = frozenset()  # the ids of all modules of the model, which keeps them alive

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
        return f"PolicyCache({self.session.policy!r}, tokens={self.session.length()})"

    def report(self) -> Report:
        """Rows per layer, tokens seen, rows evicted and merged, and real bytes against the full cache."""
        return replace(self.session.report(), note=self._note)

    def expect(self, inputs: Mapping[str, Any], *, segments: Tensor | None = None) -> None:
        """Announce a further turn, so that it may come in chunks, or hold pictures.

        Not announced, every later pass of several tokens is a whole prompt of text.

        Args:
            inputs: what goes into `generate`, all the tokens so far included.
            segments: of all these tokens, instead of those derived from ``inputs``.

        Raises:
            CacheError: if the inputs hold no more tokens than have passed.
            PolicyError: if an argument is wrong.
        """
        model = self._model()
        assert model is not None, "a model that is gone asks for no further turn"
        prompt_length, segments = _prompt(model, inputs, segments)
        self.resume()
        self.session.expect(prompt_length)
        self._prompt_length, self._segments = prompt_length, segments
        self._stop_recording()

    def compile_up_to(self, max_length: int, model: PreTrainedModel) -> None:
        """See `compile_decode`."""
        if self._model() is not model:
            raise CacheError(
                f"this PolicyCache was made for another model than this {type(model).__name__}. "
                f"Hint: PolicyCache(model, policy) for each model."
            )
        if model.config.is_encoder_decoder or self._native:
            kind = "cross-attention" if model.config.is_encoder_decoder else type(self._native[0]).__name__
            raise UnsupportedModelError(
                f"{type(model).__name__} has layers that are not under the policy ({kind}), which are not compiled "
                f"yet. Hint: decode without compile_decode."
            )
        self.session.hold_steady(max_length)
        for layer in self._policed:
            layer.max_length, layer.is_compileable = max_length, True

    def hold_steady(self) -> None:
        """After a layer has acted: if its session goes on in place, so do the layers."""
        for layer, steady in zip(self._policed, self.session.steady, strict=False):
            layer.steady = steady

    def resume(self) -> None:
        """Go on with tables that may change their shapes."""
        self.session.resume()
        for layer in self._policed:
            layer.steady = None

    def reset(self) -> None:
        """Forget everything; the cache can serve a new request of the prompt length that it was told last."""
        self.session.clear()
        self._passes = ()
        self._stop_recording()
        for layer in self._policed:
            layer.waiting = layer.is_initialized = False
            layer.steady = None
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
        device = self._passes[0].positions.device if self._passes else None
        self._select(torch.arange(batch, device=device).repeat_interleave(repeats))

    @property
    def is_croppable(self) -> bool:
        """Whether `generate` may take tokens back: after `activate_past_recording`."""
        return self._recording

    def crop(self, tokens_to_remove: int) -> None:
        """Take the last ``-tokens_to_remove`` tokens back, exactly as if they had never come.

        Raises:
            CacheError: if that would not be exact, see `Session.crop`; nothing has changed then.
        """
        self.resume()
        length, tokens_to_remove = self.get_seq_length(), int(tokens_to_remove)  # transformers 5.17 counts in a tensor
        if not -length <= tokens_to_remove <= 0:
            raise CacheError(
                f"crop({tokens_to_remove}): {length} tokens have passed, so it must be in {-length} .. 0. "
                f"Hint: crop(-1) takes the last token back."
            )
        keeping = [layer for layer in self._native if hasattr(layer, "record_past")]  # of the past, what they must
        lost = [type(layer).__name__ for layer in keeping if not (layer.record_past and layer.is_croppable)]
        if tokens_to_remove and lost:
            raise CacheError(
                f"crop({tokens_to_remove}): the model has layers of kind {lost[0]}, which do not know what they were "
                f"before these tokens. Hint: generate without taking tokens back."
            )
        try:
            self.session.crop(length + tokens_to_remove)
        except CacheError as error:
            raise CacheError(f"PolicyCache.crop({tokens_to_remove}) is Session.{error}") from error
        self._passes = ()  # the next one may begin where the last one did, and be another
        for layer in keeping:
            if layer.record_past:
                layer.crop(tokens_to_remove)

    def activate_past_recording(self) -> None:
        """From now on a pass may hold tokens that are taken back: assisted and prompt-lookup decoding announce it here.

        The prompt comes first, and its pass may end in such tokens; every later pass begins with one that stays. Where
        the policy acts while decoding they run one by one through each layer, on a copy of its table. It ends when
        `generate` is called without.

        Raises:
            CacheError: if the cache holds tokens already or does not know the prompt's length, the model is an
                encoder-decoder, or a stage of the policy waits for all layers; names the stage.
        """
        policy, model = self.session.policy, self._model()
        if model is not None and model.config.is_encoder_decoder:
            raise CacheError(
                "transformers' EncoderDecoderCache takes no tokens back from a PolicyCache, as assisted and "
                "prompt-lookup decoding need. Hint: generate without them."
            )
        if self.get_seq_length():
            raise CacheError(
                f"this cache holds {self.get_seq_length()} tokens, which assisted and prompt-lookup decoding would "
                f"feed again. Hint: a new PolicyCache, or generate without them."
            )
        if not self._prompt_length and (policy.prefill is not None or policy.decode is not None):
            raise CacheError(
                "assisted and prompt-lookup decoding run the prompt and the first guesses in one pass, and this cache "
                "does not know where the prompt ends. Hint: PolicyCache(model, policy, inputs=inputs)."
            )
        self.session.check_tentative()
        super().activate_past_recording()
        self._recording = True

    def generation_begins(self) -> None:
        """Whether tokens may be taken back is said anew for each call of `generate`."""
        self._stop_recording()

    def _stop_recording(self) -> None:
        self._recording = False
        for layer in self._native:
            if hasattr(layer, "record_past"):
                layer.record_past = False

    def _select(self, index: Tensor) -> None:
        if self._segments is not None and self.session.batch:
            segments = self._expanded_segments(self.session.batch)
            self._segments = segments.index_select(0, index.to(segments.device))
        self.session.select_batch(index)
        if not self.session.steady:
            self.resume()
        for layer in self._native:  # linear attention knows no other way to select
            layer.reorder_cache(index)

    # One forward pass -----------------------------------------------------------------------------------------------

    def now(self, start: int) -> Pass:
        """The part of the pass under way that begins with this token."""
        return next(now for now in self._passes if now.start == start)

    def begin(self, start: int, keys: Tensor, padding: Tensor | None) -> tuple[Pass, ...]:
        """Describe the pass once on each device, in parts if tokens may be taken back; further layers share them."""
        batch, length, device = int(keys.shape[0]), int(keys.shape[2]), keys.device
        begun = [(now.start, now.positions.device) for now in self._passes[:1]]
        if begun == [(start, device)] and sum(now.length for now in self._passes) == length:
            return self._passes
        valid, reach = sight(padding, start, length, batch, device)
        tokens = valid.cpu().numpy()
        # transformers fills up a mask that is too short with padding, behind the tokens that it knows of.
        if tokens.shape != (batch, length) or (start and bool((tokens[:, :-1] & ~tokens[:, 1:]).any())):
            raise PolicyError(
                f"attention_mask must cover all {start + length} tokens seen so far for {batch} batch rows, padding on "
                f"the left. Hint: after the first pass feed new tokens only, which use_cache=False does not do."
            )
        positions = torch.arange(start, start + length, device=device).expand(batch, length)
        columns = {}
        if self._segments is not None:
            known = self._expanded_segments(batch)[:, start : start + length].to(device)
            columns["segment"] = torch.nn.functional.pad(known, (0, length - known.shape[1]))  # later tokens are text
        bounds = self._bounds(start, length)
        self._passes = tuple(
            Pass(
                start + first,
                positions[:, first:last],
                valid[:, first:last],
                tokens[:, first:last].sum(-1),
                {name: column[:, first:last] for name, column in columns.items()},
                None if reach is None else reach[:, first:last],
                tentative=first > 0,
            )
            for first, last in pairwise(bounds)
        )
        return self._passes

    def _bounds(self, start: int, length: int) -> list[int]:
        """Where the parts of a pass begin, and its length: what is left of the prompt, or a token; then the guesses."""
        settled = min(max(self._prompt_length - start, 1), length) if self._recording else length
        singly = self.session.policy.decode is not None
        return [0, settled, *(range(settled + 1, length + 1) if singly else {length} - {settled})]

    def check_attended(self, index: int) -> None:
        """Before a layer takes new keys: the ones handed out before must have come to our attention."""
        for number in (index - 1, index):
            if number >= 0 and self._policed[number].waiting:
                raise not_attended(number)

    def check_module(self, module: torch.nn.Module) -> None:
        """Raise unless an attention module is part of this cache's model."""
        model = self._model()
        if model is not None and id(module) not in self._parts:  # every layer asks; to look for each would take long
            self._parts = frozenset(id(part) for part in model.modules())
        if model is None or id(module) not in self._parts:
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


def _policy_from(given: Any) -> str:
    """How what was given in place of a policy becomes one. A class that was not called is taken for its instance."""
    name = getattr(given, "__name__", type(given).__name__)
    if isinstance(given, PreTrainedModel):
        return "PolicyCache(model, policy), the model first"
    if isinstance(given, str):
        return f"kvpolicy.from_text({given!r}, keep=0.2)"
    if isinstance(given, Pipeline):
        return "Policy(prefill=pipeline, decode=pipeline)"
    if isinstance(given, ImportanceScorer):
        return f"Policy(prefill=Pipeline(schedule=KeepRatio(0.2), score={name}(...)))"
    return f"{name}(keep=0.2)" if isfunction(given) else "kvpolicy.elastic_cache(keep=0.2)"


def _prompt(
    model: PreTrainedModel, inputs: Mapping[str, Any] | None, segments: Tensor | None
) -> tuple[int, Tensor | None]:
    """The length of a prompt, 0 if it is not known, and its segments."""
    if not isinstance(inputs, Mapping | None):
        raise PolicyError(
            f"inputs=... is what goes into generate, a mapping; got a {type(inputs).__name__}. "
            f"Hint: inputs=inputs, not inputs['input_ids']."
        )
    prompt_length = 0 if inputs is None else int(prompt_ids(inputs, model).shape[1])
    if inputs is not None and segments is None:
        segments = segments_of(inputs, model)
    if segments is not None and (segments.ndim != 2 or segments.is_floating_point()):
        raise PolicyError(
            f"segments=... has shape {list(segments.shape)} and dtype {segments.dtype}; it takes integers, "
            f"[batch, tokens]."
        )
    return prompt_length, segments
