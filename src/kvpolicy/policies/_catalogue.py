"""All recipes, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from .._policy import Policy
from .ada_kv import ada_kv
from .adore import adore
from .air_cache import air_cache
from .cam import cam
from .d2o import d2o
from .elastic_cache import elastic_cache
from .expected_attention import expected_attention
from .full import full
from .h2o import h2o
from .head_kv import head_kv
from .k_norm import k_norm
from .keep_kv import keep_kv
from .key_diff import key_diff
from .kv_merger import kv_merger
from .look_m import look_m
from .pyramid_kv import pyramid_kv
from .random import random
from .snapkv import snapkv
from .streaming_llm import streaming_llm
from .tova import tova
from .vl_cache import vl_cache

__all__ = ["RECIPES", "catalogue"]

RECIPES: Mapping[str, Callable[..., Policy]] = MappingProxyType(
    {
        recipe.__name__: recipe
        for recipe in (
            full,
            elastic_cache,
            h2o,
            streaming_llm,
            snapkv,
            pyramid_kv,
            ada_kv,
            head_kv,
            tova,
            cam,
            k_norm,
            key_diff,
            random,
            look_m,
            d2o,
            kv_merger,
            keep_kv,
            vl_cache,
            air_cache,
            expected_attention,
            adore,
        )
    }
)


def catalogue(*, keep: float) -> Mapping[str, Policy]:
    """Every recipe that needs no more than a budget, built with it: the baselines of a comparison.

    ``full`` takes none; ``head_kv`` needs a table of heads and is left out.

    Args:
        keep: fraction of the tokens seen that stays, in (0, 1].

    Raises:
        PolicyError: if keep is out of range.
    """
    return {name: make() if make is full else make(keep=keep) for name, make in RECIPES.items() if make is not head_kv}
