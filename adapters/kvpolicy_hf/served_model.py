"""The model that a cache was made for, and no other one may run on it."""

from __future__ import annotations

import weakref
from functools import cached_property
from typing import NoReturn

import torch

from kvpolicy import CacheError, UnsupportedModelError

from ._transformers import PreTrainedModel
from ._transformers.use_cache import hears_use_cache
from .switch import is_enabled

__all__ = ["ServedModel"]


class ServedModel:
    """A model, held weakly: a cache does not keep it alive.

    Args:
        model: the model.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = weakref.ref(model)
        self._parts: frozenset[int] = frozenset()  # the ids of all modules of the model, which keeps them alive

    @property
    def model(self) -> PreTrainedModel | None:
        """None once it is gone."""
        return self._model()

    @cached_property
    def hears_use_cache(self) -> bool:
        """Whether what its attention modules hear of ``use_cache`` is what the caller said.

        All of the model is walked through for it, and only where ``use_cache=False`` comes does anybody ask.
        """
        model = self.model
        return model is not None and hears_use_cache(model)

    def check(self, model: PreTrainedModel) -> None:
        """Raise unless this is the model.

        Raises:
            CacheError: if it is another one.
        """
        if self.model is not model:
            raise CacheError(
                f"this PolicyCache was made for another model than this {type(model).__name__}. "
                f"Hint: PolicyCache(model, policy) for each model."
            )

    def check_module(self, module: torch.nn.Module) -> None:
        """Raise unless an attention module is part of it.

        Raises:
            CacheError: if it is not.
        """
        model = self.model
        if model is not None and id(module) not in self._parts:  # every layer asks; to look for each would take long
            self._parts = frozenset(id(part) for part in model.modules())
        if model is None or id(module) not in self._parts:
            self.refuse(module)

    def check_enabled(self) -> None:
        """Raise unless it still runs on our attention.

        Raises:
            UnsupportedModelError: if it was disabled.
        """
        model = self.model
        if model is not None and not is_enabled(model):
            raise UnsupportedModelError(
                f"this {type(model).__name__} was disabled after the PolicyCache was made. Hint: enable(model)."
            )

    def refuse(self, module: torch.nn.Module) -> NoReturn:
        """Refuse an attention module of other weights.

        Raises:
            CacheError: always.
        """
        raise CacheError(
            f"this PolicyCache was made for another model than the one whose {type(module).__name__} is running. "
            f"Hint: PolicyCache(model, policy) for each model."
        )
