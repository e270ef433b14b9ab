"""Everything that depends on the version of transformers, in one place. Tested with 5.17.0 and 5.23.0."""

from __future__ import annotations

import functools
import inspect
import itertools
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer
from transformers.generation.utils import ALL_CACHE_NAMES
from transformers.masking_utils import causal_mask_function, sdpa_mask

from kvpolicy import CacheError, UnsupportedModelError

from .softmax import Softmax

__all__ = [
    "NAME",
    "Cache",
    "CacheLayerMixin",
    "GenerateCache",
    "PreTrainedModel",
    "RotaryEmbedding",
    "as_argument",
    "attention_name",
    "crosses_to_images",
    "expands_latents",
    "heads_group",
    "hears_use_cache",
    "hidden_states",
    "native_layers",
    "placeholder_tokens",
    "plain_attention",
    "policy_mask",
    "register",
    "rotary_parts",
    "sdpa_mask",
    "set_text_attention",
    "sight",
    "softmax_of",
    "steady_mask",
    "text_config",
]

NAME = "kvpolicy"  # of our attention implementation
_STAY = ("LinearAttentionLayer", "DummyLayer")  # kinds that stay as they are; 5.17 does not have the second
STEADY_OFFSET = -2  # and while they decode in place
POLICY_OFFSET = -1  # what our layers answer as the offset of their keys: no native cache has a negative one


def register(attention: Callable[..., Any], mask: Callable[..., Any]) -> None:
    """Make the implementation known under `NAME`; doing it again changes nothing."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, mask)


def text_config(model: PreTrainedModel) -> PreTrainedConfig:
    """The configuration of the decoder whose cache is meant: what it says."""
    config: PreTrainedConfig = model.config.get_text_config(decoder=True)
    return config


def _own_config(model: PreTrainedModel) -> PreTrainedConfig:
    """The same, as the object that its modules look at: of an old encoder-decoder, `text_config` is a copy."""
    config = text_config(model)
    parts = [getattr(model.config, name, None) for name in model.config.sub_configs]
    is_copy = model.config.is_encoder_decoder and not any(config is part for part in parts)
    return model.config if is_copy else config


def attention_name(model: PreTrainedModel) -> str:
    """Which attention implementation the text decoder uses now."""
    return str(_own_config(model)._attn_implementation)


def set_text_attention(model: PreTrainedModel, name: str) -> None:
    """Switch the text decoder's attention and nothing else.

    Raises:
        UnsupportedModelError: if the model does not look its attention up by name, or cannot use sdpa.
    """
    config = _own_config(model)
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel) and part.config is config]
    can_be_set = all(part._can_set_attn_implementation() for part in parts)  # if not, what follows says so
    # Of what sdpa cannot do, kvpolicy's attention does these two.
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    has_sinks = any(hasattr(module, "sinks") for module in model.modules())
    on_sdpa = capped or has_sinks or all(part._supports_sdpa for part in [model, *parts])
    if name == NAME and can_be_set and not on_sdpa:
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot run on sdpa, and has neither soft-capped logits nor attention sinks, which "
            f"is what kvpolicy's attention can do beyond it."
        )
    if config is model.config:
        wanted: str | dict[str, str] = name
    else:
        keys = [key for key in model.config.sub_configs if getattr(model.config, key, None) is config]
        wanted = dict.fromkeys(keys, name)
    try:
        model.set_attn_implementation(wanted)
    except (ValueError, ImportError) as error:
        raise UnsupportedModelError(f"{type(model).__name__} refused the attention {name!r}: {error}") from error
    if attention_name(model) != name:
        raise UnsupportedModelError(
            f"{type(model).__name__} does not take its attention from transformers' AttentionInterface, so its cache "
            f"cannot be put under a policy."
        )


def native_layers(model: PreTrainedModel) -> list[tuple[Any, bool]]:
    """The layers that transformers itself would give this model, and whether each is full self-attention.

    Raises:
        UnsupportedModelError: if a layer is of a kind that can neither be put under a policy nor stay beside one.
    """
    config = text_config(model)
    crossing = _cross_attention_layers(config)  # their rows are an image's, and do not grow with the text
    layers = []
    for index, layer in enumerate(DynamicCache(config=config).layers):
        full = type(layer) is DynamicLayer
        stays = getattr(layer, "is_sliding", False) or type(layer).__name__ in _STAY
        if not (full or stays):
            raise UnsupportedModelError(
                f"{type(model).__name__} has a layer of kind {type(layer).__name__}, which PolicyCache does not serve "
                f"yet. Hint: use this model without a PolicyCache."
            )
        layers.append((layer, full and index not in crossing))
    return layers


def crosses_to_images(model: PreTrainedModel) -> bool:
    """Whether images come to the text decoder by cross-attention, and not as tokens."""
    return bool(_cross_attention_layers(text_config(model)))


def placeholder_tokens(model: PreTrainedModel, kinds: Iterable[str]) -> dict[str, int]:
    """The token that stands for a part of an ``image``, ``video``, ..., for each kind of which there is one."""
    found: dict[str, int] = {}
    for kind in kinds:
        for name in (f"{kind}_token_id", f"{kind}_token_index"):
            if isinstance(token := getattr(model.config, name, None), int):
                found.setdefault(kind, token)
    return found


def _cross_attention_layers(config: PreTrainedConfig) -> Sequence[int]:
    return getattr(config, "cross_attention_layers", None) or ()


def expands_latents(model: PreTrainedModel) -> bool:
    """Whether a model may cache compressed keys and values, and expand them between cache and attention."""
    return getattr(text_config(model), "kv_lora_rank", None) is not None


_KEY_PROJECTIONS = ("k_proj", "qkv_proj", "query_key_value", "kv_b_proj")  # by which attention gets its heads' keys


def heads_group(model: PreTrainedModel) -> torch.distributed.ProcessGroup | None:
    """The ranks that share the key/value heads of the text decoder; None: this process has them all.

    Raises:
        UnsupportedModelError: if layers are on other processes, or the heads cannot be shared evenly among the ranks.
    """
    pp_size = getattr(getattr(model.config, "distributed_config", None), "pp_size", None) or 1
    if pp_size > 1:
        raise UnsupportedModelError(
            f"pp_size={pp_size}: this process runs only some layers of {type(model).__name__}, which "
            f"PolicyCache does not serve yet. Hint: device_map, or DistributedConfig(tp_size=...)."
        )
    size = model.tp_size or 1
    if size == 1:
        return None
    config, plan = _own_config(model), model.tp_plan
    styles = {
        plan.get(re.sub(r"\.\d+(?=\.|$)", ".*", f"{name}.{projection}"))
        for name, part in model.named_modules()
        if getattr(part, "config", None) is config and isinstance(getattr(part, "layer_idx", None), int)
        for projection in _KEY_PROJECTIONS
        if hasattr(part, projection)
    }
    if styles <= {None, "colwise_gather_output"} and styles:
        return None
    if styles != {"colwise"}:
        raise UnsupportedModelError(
            f"{type(model).__name__} under tp_size={size} makes its keys in a way that does not tell which heads this "
            f"rank has ({', '.join(sorted(map(str, styles))) or 'no known projection'}). Hint: load it without tp_size."
        )
    heads = int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    if heads % size:
        raise UnsupportedModelError(
            f"tp_size={size} does not divide the {heads} key/value heads of {type(model).__name__}: a rank would hold "
            f"part of a head. Hint: a tp_size that divides {heads}."
        )
    mesh: Any = model._device_mesh
    group: torch.distributed.ProcessGroup = (mesh["tp"] if mesh.ndim > 1 else mesh).get_group()
    return group


def hears_use_cache(model: PreTrainedModel) -> bool:
    """Whether what attention modules hear of ``use_cache`` is what the caller said.

    In some decoders the layers have that argument, False by default, and are told nothing. Only the source shows it;
    without it the answer is no.
    """
    return all(
        _tells_use_cache(type(part).forward)
        for part in model.modules()
        if any(_is_stack(child) for child in part.children())
    )


@functools.cache
def _tells_use_cache(decode: Callable[..., Any]) -> bool:
    try:
        return "use_cache=use_cache" in inspect.getsource(decode)
    except OSError:
        return False


def _is_stack(module: torch.nn.Module) -> bool:
    """Whether it is a list of decoder layers."""
    return isinstance(module, torch.nn.ModuleList) and any(hasattr(part, "layer_idx") for part in module.modules())


def policy_mask(
    mask_function: Callable[..., Any],
    attention_mask: Tensor | None,
    *,
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    use_vmap: bool = False,
    device: Any = None,
    **kwargs: Any,
) -> Tensor:
    """What our attention needs of a mask, in the place of one number for each query and row.

    Under a causal mask, the padding mask: bool [B, T]. Where tokens see later ones, int64 [B, 2, T]: the padding mask,
    and the last token that each token of this pass sees. `sight` reads both.

    Raises:
        UnsupportedModelError: if a query does not see all tokens up to some token, itself or a later one.
    """
    if attention_mask is None:
        attention_mask = torch.ones(batch_size, kv_length, dtype=torch.bool, device=device)
    if mask_function is causal_mask_function:
        return attention_mask
    made: Any = sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=0,
        mask_function=mask_function,
        allow_is_causal_skip=False,
        use_vmap=use_vmap,
        device=device,
    )
    seen: Tensor = made[:, 0].expand(batch_size, -1, -1)
    places = torch.arange(kv_length, device=seen.device)
    own = places[q_offset : q_offset + q_length].expand(batch_size, -1)
    reach = torch.where(seen, places, -1).amax(-1)
    if not torch.equal(seen, places <= reach[..., None]) or bool((reach < own).any()):
        raise UnsupportedModelError(
            "this model hides from its tokens some that came before them, in full-attention layers: PolicyCache serves "
            "causal masks, and such where tokens see later ones. Hint: use this model without a PolicyCache."
        )
    if torch.equal(reach, own):
        return attention_mask
    padding = attention_mask[:, :kv_length].long()
    return torch.stack([padding, torch.cat([places[:q_offset].expand(batch_size, -1), reach], dim=1)], dim=1)


def steady_mask(*, batch_size: int, kv_length: int, q_offset: Any, device: Any, **kwargs: Any) -> Tensor:
    """The mask of a pass that decodes in place, whose shape never changes: bool [B, 1, 1, 1], as if it were made.

    `generate` makes it beside the compiled pass, and has waited for the token before: here is where one can count, but
    not while a pass is traced or recorded.

    Raises:
        CacheError: if there is no room for this token: ``kv_length`` is what the request may have.
    """
    if not (torch.compiler.is_compiling() or _is_recorded()) and int(q_offset) >= kv_length:
        raise CacheError(
            f"compile_decode(max_length={kv_length}): this is token {int(q_offset) + 1}. Hint: a larger max_length, of "
            f"all tokens with their padding."
        )
    return torch.ones(batch_size, 1, 1, 1, dtype=torch.bool, device=device)


def _is_recorded() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def plain_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """The sdpa attention of transformers."""
    attention = AttentionInterface()["sdpa"]
    out: tuple[Tensor, Tensor | None] = attention(module, query, key, value, mask, **kwargs)
    return out


def softmax_of(query: Tensor, scaling: float | None, options: dict[str, Any]) -> Softmax:
    """What a model asks of its attention's softmax; taken out of the options of the call."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return Softmax(scale, options.pop("softcap", None), options.pop("s_aux", None))


def sight(
    mask: Tensor | None, start: int, length: int, batch: int, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """What a `policy_mask` says of this pass: which tokens are no padding, bool [B, Q], and how far each sees.

    The latter is int64 [B, Q], or None: up to itself.
    """
    if mask is None:
        return torch.ones(batch, length, dtype=torch.bool, device=device), None
    part = mask[..., start : start + length].to(device)
    return (part[:, 0].bool(), part[:, 1]) if mask.ndim == 3 else (part.bool(), None)


def as_argument(cache: Cache) -> dict[str, Cache]:
    """A cache by the name that `generate` has for it: from 5.24 on it warns of ``past_key_values``."""
    return {"cache" if "cache" in ALL_CACHE_NAMES else "past_key_values": cache}


class GenerateCache(Cache):
    """A cache that hears when `generate` is called with it: transformers then marks it as the user's."""

    @property
    def _is_user_defined(self) -> bool:
        return True

    @_is_user_defined.setter
    def _is_user_defined(self, value: bool) -> None:
        self.generation_begins()

    def generation_begins(self) -> None:
        """Called before any token is run."""
        raise NotImplementedError


# Rotary embeddings ----------------------------------------------------------------------------------------------------

_FIXED = ("default", "linear", "llama3", "yarn")  # kinds of frequencies that do not depend on the prompt's length
_CACHE_ARGUMENTS = ("cache", "past_key_values", "layer_past")  # what attention modules call the cache


@dataclass(frozen=True, slots=True)
class RotaryEmbedding:
    """What a model's attention turns its queries and keys with.

    Attributes:
        module: cosines and sines of positions.
        function: ``apply_rotary_pos_emb`` of the attention's own python module.
    """

    module: torch.nn.Module
    function: Callable[..., Any]

    def angles(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [B, N, R] of int64 [B, N], as x: of length one, since yarn's factor is for attention."""
        cos, sin = self.module(x, positions)
        scaling = float(getattr(self.module, "attention_scaling", 1.0))
        return cos.to(x) / scaling, sin.to(x) / scaling

    def apply(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[B, H, N, R], turned."""
        turned: Tensor = self.function(x, x[:, :0], cos, sin)[0]
        return turned

    def attend(self, attention: torch.nn.Module, hidden: Tensor, positions: Tensor, cache: object) -> None:
        """Run an attention module on hidden states [B, N, E], past any hooks."""
        places = tuple(part.to(hidden.device) for part in self.module(hidden, positions))
        name = next(name for name in _CACHE_ARGUMENTS if name in _arguments(attention))
        attention.forward(hidden_states=hidden, position_embeddings=places, attention_mask=None, **{name: cache})


def rotary_parts(model: PreTrainedModel) -> tuple[RotaryEmbedding, list[torch.nn.Module]] | str:
    """A plain rotary embedding: one position a token, and frequencies that are the same throughout.

    Returns:
        It, and full-attention modules of the text decoder, one of each kind; or what the model has instead.
    """
    config = text_config(model)
    own = [part for part in model.modules() if getattr(part, "config", None) is config]
    rotaries = [part for part in own if hasattr(part, "inv_freq")]
    if len(rotaries) != 1:
        return f"has {len(rotaries) or 'no'} rotary embedding{'s' * (len(rotaries) > 1)} for all its layers"
    rotary = rotaries[0]
    kind: Any = getattr(rotary, "rope_type", None)
    if kind not in _FIXED:
        return f"has rotary frequencies of the kind {kind!r}, which change with the length of the prompt or the layer"
    if "mrope_section" in (getattr(config, "rope_parameters", None) or {}) or hasattr(rotary, "mrope_section"):
        return "has rotary positions of several dimensions (M-RoPE)"
    full = [plain for _, plain in native_layers(model)]
    attentions = [
        part
        for part in own
        if isinstance(index := getattr(part, "layer_idx", None), int)
        and {"position_embeddings", "attention_mask"} <= _arguments(part)
        and any(name in _arguments(part) for name in _CACHE_ARGUMENTS)
        and index < len(full)
        and full[index]
    ]
    served = {part.layer_idx for part in attentions}
    if not served or served != {index for index, plain in enumerate(full) if plain}:
        return "has attention that is not given its rotary embedding by the decoder"
    function = getattr(sys.modules[type(attentions[0]).__module__], "apply_rotary_pos_emb", None)
    if function is None or list(inspect.signature(function).parameters)[:4] != ["q", "k", "cos", "sin"]:
        return "applies its rotary embedding in a way of its own"
    kinds = {_kind(part): part for part in attentions}
    return RotaryEmbedding(rotary, function), list(kinds.values())


def hidden_states(model: PreTrainedModel, attention: torch.nn.Module, tokens: int) -> Tensor:
    """What might come into an attention module, [1, N, E], always the same."""
    weights = itertools.chain(attention.parameters(), attention.buffers())  # quantised ones need not be parameters
    width, device = int(text_config(model).hidden_size), next(weights).device
    return torch.arange(tokens * width, device=device).sin().reshape(1, tokens, width).to(model.dtype)


def _arguments(module: torch.nn.Module) -> set[str]:
    return set(inspect.signature(module.forward).parameters)


def _kind(attention: torch.nn.Module) -> tuple[Any, ...]:
    """Modules of one kind run the same code: their plain attributes are equal, but for their number."""
    plain = {name: value for name, value in vars(attention).items() if isinstance(value, bool | int | float | str)}
    plain.pop("layer_idx")
    return type(attention), *sorted(plain.items())
