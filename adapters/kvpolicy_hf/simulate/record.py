"""A record: the queries, keys and values of one real prompt and the tokens after it, layer by layer."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kvpolicy import CacheView, Column, Pipeline, Policy, PolicyError, Scores, Step

from .._transformers import PreTrainedModel, as_argument
from ..cache import PolicyCache
from ..segments import AUDIO, TEXT, prompt_ids
from ..segments import segments as segments_of
from .rotary import frequencies

__all__ = ["Record", "RecordError", "record"]

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)  # what attention is computed in
GREEDY: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}


class RecordError(PolicyError):
    """A record cannot be made, or a file is not a record that can be read."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Record:
    """What the attention of every layer was given while a model answered one prompt with its full cache.

    N tokens passed through the model: the prompt in front, and the new tokens that were fed back, one a decode step.

    Attributes:
        model: name of the model, for people.
        prompt: how many of the N tokens are the prompt.
        scales: the softmax scale of each layer, above 0.
        tokens: int64 [1, N], the token ids.
        segments: int64 [1, N], text and image tokens as `kvpolicy_hf.segments` tells them apart.
        queries: per layer [1, Hq, N, D], after the rotary embedding, in the model's own dtype, one for all layers.
        keys: per layer [1, H, N, D], likewise.
        values: per layer [1, H, N, Dv].
        inv_freq: float32, the frequencies of a plain rotary embedding, see `rotation`; None where there is none.

    Raises:
        RecordError: if these do not belong together, or hold NaN or infinite numbers.
    """

    model: str
    prompt: int
    scales: Sequence[float]
    tokens: Tensor
    segments: Tensor
    queries: Sequence[Tensor]
    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    inv_freq: Tensor | None = None

    @property
    def layers(self) -> int:
        """Layers that were recorded: those that a policy acts on."""
        return len(self.scales)

    @property
    def length(self) -> int:
        """N."""
        return self.tokens.numel()

    @property
    def steps(self) -> int:
        """Decode steps."""
        return self.length - self.prompt

    def __repr__(self) -> str:
        return f"Record({self.model!r}, prompt={self.prompt}, steps={self.steps}, layers={self.layers})"

    def __post_init__(self) -> None:
        name: Any = self.model
        if not (isinstance(name, str) and name.isprintable()):
            raise RecordError(f"the model's name {str(name)[:80]!r} is no line of text.")
        if not self.layers or not len(self.queries) == len(self.keys) == len(self.values) == self.layers:
            raise RecordError(f"{self.layers} layers have a scale, {len(self.queries)} have queries.")
        for layer, scale in enumerate(self.scales):
            if not (isfinite(scale) and scale > 0):
                raise RecordError(f"scales[{layer}] is {scale}; a softmax scale is finite and above 0.")
        for name in ("tokens", "segments"):
            data = getattr(self, name)
            if data.dtype != torch.int64 or data.shape != (1, self.length):
                raise RecordError(f"{name} is {data.dtype} {list(data.shape)}, not int64 [1, {self.length}].")
        if not 1 <= self.prompt < self.length:
            raise RecordError(f"{self.prompt} of {self.length} tokens are the prompt: there is no decode step.")
        if bool((self.tokens < 0).any()):
            raise RecordError(f"tokens holds {int(self.tokens.min())}; a token id is at least 0.")
        if not bool(((self.segments >= TEXT) & (self.segments <= AUDIO)).all()):
            raise RecordError(f"segments holds other numbers than {TEXT} (text) to {AUDIO} (audio).")
        for layer in range(self.layers):
            self._check_layer(layer)

    def _check_layer(self, layer: int) -> None:
        vectors = queries, keys, values = self.queries[layer], self.keys[layer], self.values[layer]
        fits = all(data.ndim == 4 and data.shape[0] == 1 and data.numel() > 0 for data in vectors) and (
            queries.shape[2] == keys.shape[2] == self.length
            and keys.shape[:3] == values.shape[:3]
            and queries.shape[3] == keys.shape[3]
            and queries.shape[1] % keys.shape[1] == 0
            and queries.dtype in FLOATS
            and queries.dtype == keys.dtype == values.dtype
        )
        if not fits:
            raise RecordError(
                f"queries, keys and values of layer {layer} are {queries.dtype}, {keys.dtype} and {values.dtype} of "
                f"shapes {[list(data.shape) for data in vectors]}, which do not belong together."
            )
        if keys.dtype != self.keys[0].dtype:
            raise RecordError(f"layer {layer} is {keys.dtype}, and layer 0 is {self.keys[0].dtype}.")
        if not all(bool(data.isfinite().all()) for data in vectors):
            raise RecordError(f"layer {layer} holds NaN or infinite numbers.")
        known = self.inv_freq
        if known is None:
            return
        if known.ndim != 1 or not 2 <= 2 * len(known) <= keys.shape[3]:
            raise RecordError(f"inv_freq has shape {list(known.shape)}, and keys {list(keys.shape)}.")
        if known.dtype != torch.float32 or not bool(known.isfinite().all()):
            raise RecordError(f"inv_freq is {known.dtype} {known.tolist()[:4]}; it must be float32 and finite.")


def record(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    path: str | Path | None = None,
    *,
    new_tokens: int = 32,
    name: str | None = None,
    **generate: Any,
) -> Record:
    """Run the model on one prompt with its full cache, and keep what its attention was given.

    Args:
        model: the model, after `enable(model)`.
        inputs: what goes into `generate`: one prompt, without padding.
        path: the file to write, see `save_record`; None writes none.
        new_tokens: decode steps, at least 1: so many new tokens are fed back. Fewer if the model stops by itself.
        name: what tables call the model; by default the last part of the folder or hub id that it came from.
        generate: further arguments of `generate`; the default is greedy decoding. A ``generation_config`` says by
            itself how, and ``new_tokens`` only how long.

    Raises:
        RecordError: if there is more than one prompt, or padding, or the model stops before its first decode step; or
            if its logits are capped, or its attention has sinks or is not causal, of which a record knows nothing.
    """
    if type(new_tokens) is not int or new_tokens < 1:
        raise RecordError(f"record(new_tokens={new_tokens!r}): new_tokens must be an integer >= 1.")
    ids = prompt_ids(inputs, model)
    watch = _Watch()
    cache = PolicyCache(model, Policy(decode=Pipeline(schedule=_Never(), score=watch)), inputs=inputs)
    # The first new token comes out of the prompt's own pass, and the last one is not fed back.
    run: Any = model
    if "generation_config" in generate:
        how = {**generate, "generation_config": copy.deepcopy(generate["generation_config"])}
        how["generation_config"].max_new_tokens = new_tokens + 1
    else:
        how = {**GREEDY, "max_new_tokens": new_tokens + 1, **generate}
    out = run.generate(**inputs, **as_argument(cache), **how)
    tokens = getattr(out, "sequences", out)[:1, :-1].cpu()
    prompt = ids.shape[1]
    if tokens.shape[1] == prompt:
        raise RecordError(
            "the model stopped after its first token, so that there is no decode step to record. "
            "Hint: record(..., min_new_tokens=8), or another prompt."
        )
    segments = torch.nn.functional.pad(segments_of(inputs, model).cpu(), (0, tokens.shape[1] - prompt))
    made = Record(
        model=name or Path(model.config.name_or_path or "").name or type(model).__name__,
        prompt=prompt,
        scales=watch.scales,
        tokens=tokens,
        segments=segments,
        queries=[torch.cat(parts, dim=2) for parts in watch.queries],
        keys=[torch.cat(parts, dim=2) for parts in watch.keys],
        values=[torch.cat(parts, dim=2) for parts in watch.values],
        inv_freq=frequencies(model, watch.keys[0][0].shape[-1]),
    )
    if path is not None:
        from .storage import save_record

        save_record(made, path)
    return made


@dataclass(frozen=True)
class _Never:
    """A schedule that leaves every table alone."""

    def budget(self, step: Step, /) -> None:
        return None


@dataclass(eq=False)
class _Watch:
    """A scorer that is never asked for scores: as an observer it is shown every pass of every layer."""

    scales: list[float] = field(default_factory=list)
    queries: list[list[Tensor]] = field(default_factory=list)  # per layer, per pass
    keys: list[list[Tensor]] = field(default_factory=list)
    values: list[list[Tensor]] = field(default_factory=list)

    def score(self, view: CacheView, step: Step, /) -> Scores:
        raise NotImplementedError

    def observe(self, view: CacheView, step: Step, /) -> Mapping[str, Column]:
        if len(step.seen) != 1:
            raise RecordError(
                f"a record holds one prompt, and the model runs {len(step.seen)} batch rows. "
                f"Hint: record them one by one, without beams or several return sequences."
            )
        if not bool(step.query_valid.all()):
            raise RecordError("a record holds no padding. Hint: tokenize the prompt alone, without padding.")
        if not (step.softcap is step.sinks is step.query_reach is None):
            raise RecordError(
                "a record holds scales, and this model's attention has more to it: capped logits, sinks, or tokens "
                "that see later ones. A replay would not be what the model does."
            )
        if view.layer == len(self.scales):
            self.scales.append(float(step.scale))
            for kind in (self.queries, self.keys, self.values):
                kind.append([])
        new = view.positions[0, 0] >= step.query_positions[0, 0]  # nothing is evicted: the rows of this pass
        self.queries[view.layer].append(_copied(step.queries))
        self.keys[view.layer].append(_copied(view.keys[:, :, new]))
        self.values[view.layer].append(_copied(view.values[:, :, new]))
        return {}


def _copied(data: Tensor) -> Tensor:
    return data.detach().to("cpu", copy=True)
