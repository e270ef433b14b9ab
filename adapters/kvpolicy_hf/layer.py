"""One layer of a `PolicyCache`, as transformers sees it."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from kvpolicy import CacheError, CacheView, Pass, Session, UnsupportedModelError

from ._transformers import POLICY_OFFSET, CacheLayerMixin
from .attention import LAYER

if TYPE_CHECKING:
    from .cache import PolicyCache

__all__ = ["PolicyLayer"]


class PolicyLayer(CacheLayerMixin):
    """Hands new keys and values on to the attention function, which knows the padding and runs the policy.

    Args:
        cache: the cache it belongs to.
        index: its place among the layers under the policy.
    """

    is_sliding = False
    is_croppable = False

    def __init__(self, cache: PolicyCache, index: int) -> None:
        super().__init__()
        self._index = index
        self._module: weakref.ref[torch.nn.Module] | None = None
        self.waiting = False  # keys were handed out and have not been attended to
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
    def now(self) -> Pass:
        """The forward pass under way."""
        return self._cache.now

    def bring_in(self, module: torch.nn.Module, keys: Tensor, values: Tensor, padding: Tensor | None) -> CacheView:
        """Append the new rows; returns the table to attend over."""
        if not self.waiting:
            raise UnsupportedModelError(
                f"{type(module).__name__} attends more than once to the keys of layer {self._index}, which PolicyCache "
                f"does not serve yet. Hint: use this model without a PolicyCache."
            )
        if self._module is None:
            self._cache.check_module(module)
            self._module = weakref.ref(module)
        elif self._module() is not module:
            self._cache.refuse_model(module)
        self.waiting = False
        self._cache.begin(self._session.length(self._index), keys, padding)
        if self.is_empty:  # the table borrows its first rows
            keys, values = _alone(keys), _alone(values)
        # A cache serves inference: its rows keep no graph, also where the caller forgot no_grad.
        return self._session.append(self._index, keys.detach(), values.detach(), self.now)

    def turned(self, queries: Tensor) -> Tensor:
        """The queries to attend to the table with: those of the model, unless the policy re-indexes positions."""
        turned: Tensor = self._session.turned(self._index, queries, self.now)
        return turned

    def advance(self, module: torch.nn.Module, queries: Tensor, scale: float) -> None:
        """Let the policy act on what was just attended to."""
        with torch.no_grad():  # scores are no part of a graph that would hold them all
            self._session.advance(self._index, queries.detach(), scale, self.now, module=module)

    # What transformers asks -----------------------------------------------------------------------------------------

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the store allocates when it first has to write."""
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Pass the new rows on to the attention function, with this layer attached."""
        if self._index == 0:  # once a pass
            self._cache.check_enabled()
        self._cache.check_attended(self._index)
        self.is_initialized = True
        self.waiting = True
        setattr(key_states, LAYER, self)
        return key_states, value_states

    def get_seq_length(self) -> int:
        """Tokens seen (logical), padding included: the next token's position."""
        return self._session.length(self._index)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Logical length, and an offset by which our mask function knows us; masks are made from the table itself."""
        return self.get_seq_length() + query_length, POLICY_OFFSET

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        """Refused: evicted rows cannot come back."""
        if tokens_to_remove != 0:
            self.refuse_rollback(f"crop({tokens_to_remove})")

    def refuse_rollback(self, call: str) -> NoReturn:
        """Evicted rows cannot come back."""
        _refuse(call, "assisted and prompt-lookup decoding need it; generate without them")

    def offload(self) -> NoReturn:
        """Refused: the table lives where the model's tensors are."""
        _refuse("offload()", "build the PolicyCache without offloading")

    def prefetch(self) -> NoReturn:
        """Refused, see `offload`."""
        _refuse("prefetch()", "build the PolicyCache without offloading")


def _alone(tensor: Tensor) -> Tensor:
    """The tensor without the rest of its storage: a model that projects all at once hands out slices."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _refuse(call: str, hint: str) -> NoReturn:
    raise CacheError(f"PolicyCache does not support {call}: rows that a policy removed are gone. Hint: {hint}.")


def not_attended(index: int) -> UnsupportedModelError:
    """The error for a layer whose keys went elsewhere than to our attention."""
    return UnsupportedModelError(
        f"the keys of layer {index} never reached kvpolicy's attention: the model was disabled, or transforms its keys "
        f"between cache and attention. Hint: enable(model), or use this model without a PolicyCache."
    )
