"""The cache that a user hands to `generate`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kvpolicy import CacheError, Listener, Pass, Policy, Report, Session, UnsupportedModelError

from ._slips import asks_for_both, check_policy
from ._transformers import PreTrainedModel
from ._transformers.config import expands_latents
from ._transformers.generation import GenerateCache
from ._transformers.layers import native_layers
from .backend import backend_for_model
from .layer import PolicyLayer, not_attended
from .passes import bounds_with_guesses, described
from .prompt import prompt_of
from .rotary import rotation_for
from .served_model import ServedModel
from .switch import is_enabled
from .taking_back import check_crop, check_recording, crop_native, stop_recording
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

    @asks_for_both
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
        check_policy(policy)
        if not is_enabled(model):
            raise CacheError(f"this {type(model).__name__} is not enabled. Hint: kvpolicy_hf.enable(model) first.")
        ops, self._note = backend_for_model(model, backend)
        prompt = prompt_of(model, inputs, segments)
        layers: list[Any] = []
        policed, latent = 0, expands_latents(model)
        for native, full in native_layers(model):
            layers.append(PolicyLayer(self, policed, latent=latent) if full else native)
            policed += full
        if not policed:
            raise UnsupportedModelError(f"{type(model).__name__} has no full-attention layer to put under a policy.")
        super().__init__(layers=layers)
        self.served = ServedModel(model)
        self._prompt = prompt
        self._policed = [layer for layer in layers if isinstance(layer, PolicyLayer)]
        self._native = [layer for layer in layers if not isinstance(layer, PolicyLayer)]
        self.session = Session(
            policy,
            ops,
            policed,
            prompt_length=prompt.length,
            check=check,
            listen=listen,
            rotate=rotation_for(policy, model),
            heads=heads_for(policy, model),
        )
        self._passes: tuple[Pass, ...] = ()  # those that the model's pass under way is made of
        self._recording = False  # whether the tokens of a pass may be taken back

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
        model = self.served.model
        assert model is not None, "a model that is gone asks for no further turn"
        prompt = prompt_of(model, inputs, segments)
        self.resume()
        self.session.expect(prompt.length)
        self._prompt = prompt
        self._stop_recording()

    def compile_up_to(self, max_length: int, model: PreTrainedModel) -> None:
        """See `compile_decode`."""
        self.served.check(model)
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
        if (model := self.served.model) is not None and self._native:
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
        check_crop(tokens_to_remove, length, self._native)
        try:
            self.session.crop(length + tokens_to_remove)
        except CacheError as error:
            raise CacheError(f"PolicyCache.crop({tokens_to_remove}) is Session.{error}") from error
        self._passes = ()  # the next one may begin where the last one did, and be another
        crop_native(self._native, tokens_to_remove)

    def activate_past_recording(self) -> None:
        """From now on a pass may hold tokens that are taken back: assisted and prompt-lookup decoding announce it here.

        The prompt comes first, and its pass may end in such tokens; every later pass begins with one that stays. Where
        the policy acts while decoding they run one by one through each layer, on a copy of its table. It ends when
        `generate` is called without.

        Raises:
            CacheError: if the cache holds tokens already or does not know the prompt's length, the model is an
                encoder-decoder, or a stage of the policy waits for all layers; names the stage.
        """
        length, prompt_length = self.get_seq_length(), self._prompt.length
        check_recording(self.session.policy, self.served.model, length=length, prompt_length=prompt_length)
        self.session.check_tentative()
        super().activate_past_recording()
        self._recording = True

    def generation_begins(self) -> None:
        """Whether tokens may be taken back is said anew for each call of `generate`."""
        self._stop_recording()

    def _stop_recording(self) -> None:
        self._recording = False
        stop_recording(self._native)

    def _select(self, index: Tensor) -> None:
        self._prompt = self._prompt.selected(index, self.session.batch)
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
        length, begun = int(keys.shape[2]), [(now.start, now.positions.device) for now in self._passes[:1]]
        if begun != [(start, keys.device)] or sum(now.length for now in self._passes) != length:
            bounds = [0, length]
            if self._recording:
                singly = self.session.policy.decode is not None
                bounds = bounds_with_guesses(start, length, self._prompt.length, singly=singly)
            self._passes = described(start, keys, padding, self._prompt, bounds)
        return self._passes

    def check_attended(self, index: int) -> None:
        """Before a layer takes new keys: the ones handed out before must have come to our attention."""
        for number in (index - 1, index):
            if number >= 0 and self._policed[number].waiting:
                raise not_attended(number)
