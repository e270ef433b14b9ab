"""One layer of a `PolicyCache`, as transformers sees it."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from kvpolicy import Attending, CacheError, CacheView, Pass, Session, SteadyLayer, UnsupportedModelError

from ._transformers.layers import CacheLayerMixin
from ._transformers.masks import POLICY_OFFSET, STEADY_OFFSET
from .latents import LAYER, Latent
from .softmax import Softmax

if TYPE_CHECKING:
    from .cache import PolicyCache

__all__ = ["PolicyLayer"]


class PolicyLayer(CacheLayerMixin):
    """Hands new keys and values on to the attention function, which knows the padding and runs the policy.

    Args:
        cache: the cache it belongs to.
        index: its place among the layers under the policy.
        latent: whether the model expands what the cache hands out before it attends.
    """

    is_sliding = False
    is_croppable = False
    is_compileable = False  # whether `generate` may compile the passes that decode: after `compile_decode`

    def __init__(self, cache: PolicyCache, index: int, *, latent: bool = False) -> None:
        super().__init__()
        self.keys = self.values = torch.empty(0)  # the rows are the session's; some models count those they find here
        self._index, self._latent = index, latent
        self._module: weakref.ref[torch.nn.Module] | None = None
        self._now: Pass | None = None
        self.waiting = False  # keys were handed out and have not been attended to
        self.max_length = 0  # tokens that a compiled request may have, padding included; 0: it is not compiled
        self.steady: SteadyLayer | None = None  # the layer while it decodes in place
        self.belong_to(cache)

    def belong_to(self, cache: PolicyCache) -> None:
        """Serve this cache; held weakly, so that a cache which is let go frees its memory at once."""
        self._owner = weakref.ref(cache)

    @property
    def _cache(self) -> PolicyCache:
        cache = self._owner()
        if cache is None:
            raise CacheError("this layer's PolicyCache is gone. Hint: keep the cache while the model runs on it.")
        return cache

    @property
    def _session(self) -> Session:
        return self._cache.session

    # What the attention function needs ------------------------------------------------------------------------------

    @property
    def is_empty(self) -> bool:
        """Whether no token has passed."""
        return self._session.length(self._index) == 0

    @property
    def has_gaps(self) -> bool:
        """Whether some rows of the table are padding or empty."""
        return not self._session.all_valid(self._index)

    @property
    def count_bias(self) -> bool:
        """Whether merged rows weigh as many tokens as they stand for."""
        return self._session.policy.count_bias

    @property
    def attending(self) -> Attending | None:
        """The backend, if it attends by itself while decoding."""
        return self._session.attending

    @property
    def wants_shares(self) -> bool:
        """Whether the policy may ask what share of the attention each row received while decoding."""
        return self._session.wants_shares

    @property
    def hears_use_cache(self) -> bool:
        """Whether what comes to the attention function as ``use_cache`` is what the caller said."""
        return self._cache.served.hears_use_cache

    @property
    def now(self) -> Pass:
        """The pass, or the part of one, under way."""
        assert self._now is not None, "bring_in() comes first"
        return self._now

    def begin(self, module: torch.nn.Module, keys: Tensor, padding: Tensor | None) -> list[slice]:
        """Take a pass; the parts of it that are to run one after another, each with `bring_in` and `advance`."""
        if not self.waiting:
            raise UnsupportedModelError(
                f"{type(module).__name__} attends more than once to the keys of layer {self._index}, which PolicyCache "
                f"does not serve yet. Hint: use this model without a PolicyCache."
            )
        if self._module is None:
            self._cache.served.check_module(module)
            self._module = weakref.ref(module)
        elif self._module() is not module:
            self._cache.served.refuse(module)
        self.waiting = False
        start = self._session.length(self._index)
        passes = self._cache.begin(start, keys, padding)
        return [slice(now.start - start, now.start - start + now.length) for now in passes]

    def bring_in(self, keys: Tensor, values: Tensor) -> CacheView:
        """Append the new rows of a part; returns the table to attend over."""
        self._now = self._cache.now(self._session.length(self._index))
        if self.is_empty:  # the table borrows its first rows
            keys, values = _alone(keys), _alone(values)
        # A cache serves inference: its rows keep no graph, also where the caller forgot no_grad.
        return self._session.append(self._index, keys.detach(), values.detach(), self.now)

    def turned(self, queries: Tensor) -> Tensor:
        """The queries to attend to the table with: those of the model, unless the policy re-indexes positions."""
        turned: Tensor = self._session.turned(self._index, queries, self.now)
        return turned

    @property
    def wants_sums(self) -> bool:
        """Whether the policy may ask what each softmax of the prompt divides by, and the backend can use it."""
        return self._session.wants_sums and self.attending is not None

    def advance(self, module: torch.nn.Module, queries: Tensor, softmax: Softmax, **told: Tensor | None) -> None:
        """Let the policy act on what was just attended to, and on what the attention told: see `Session.advance`."""
        sinks = None if softmax.sinks is None else softmax.sinks.detach()
        with torch.no_grad():  # scores are no part of a graph that would hold them all
            self._session.advance(
                self._index,
                queries.detach(),
                softmax.scale,
                self.now,
                module=module,
                softcap=softmax.softcap,
                sinks=sinks,
                **told,
            )
        self._cache.hold_steady()

    # What transformers asks -----------------------------------------------------------------------------------------

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the store allocates when it first has to write."""
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Pass the new rows on to the attention function, with this layer attached."""
        if self.steady is not None:  # of what follows, a compiled pass would keep only what was so when it was traced
            setattr(key_states, LAYER, self)
            return key_states, value_states
        if self._index == 0:  # once a pass
            self._cache.served.check_enabled()
        self._cache.check_attended(self._index)
        self.is_initialized = True
        self.waiting = True
        if self._latent:
            key_states, value_states = key_states.as_subclass(Latent), value_states.as_subclass(Latent)
        setattr(key_states, LAYER, self)
        return key_states, value_states

    def get_seq_length(self) -> int:
        """Tokens seen (logical), padding included: the next token's position; in place, a number on the device."""
        if self.steady is not None:
            passed: int = self.steady.clock.passed
            return passed
        return self._session.length(self._index)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Logical length, and an offset by which our mask function knows us; masks are made from the table itself."""
        if self.steady is not None:
            if query_length == 1:
                return self.max_length, STEADY_OFFSET
            self._cache.resume()
        return self.get_seq_length() + query_length, POLICY_OFFSET

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    def offload(self) -> NoReturn:
        """Refused: the table lives where the model's tensors are."""
        _refuse("offload()")

    def prefetch(self) -> NoReturn:
        """Refused, see `offload`."""
        _refuse("prefetch()")


def _alone(tensor: Tensor) -> Tensor:
    """The tensor without the rest of its storage: a model that projects all at once hands out slices."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _refuse(call: str) -> NoReturn:
    raise CacheError(
        f"PolicyCache does not support {call}: its table stays where the model's tensors are. Hint: build it without "
        f"offloading."
    )


def not_attended(index: int) -> UnsupportedModelError:
    """The error for a layer whose keys went elsewhere than to our attention."""
    return UnsupportedModelError(
        f"the keys of layer {index} never reached kvpolicy's attention: the model was disabled, or transforms its keys "
        f"between cache and attention. Hint: enable(model), or use this model without a PolicyCache."
    )
