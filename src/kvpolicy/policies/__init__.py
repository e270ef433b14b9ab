"""One file per published method; each is a short composition of the same stages."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from .._policy import Policy
from .elastic_cache import elastic_cache
from .full import full
from .h2o import h2o
from .streaming_llm import streaming_llm

__all__ = ["RECIPES", "elastic_cache", "full", "h2o", "streaming_llm"]

RECIPES: Mapping[str, Callable[..., Policy]] = MappingProxyType(
    {recipe.__name__: recipe for recipe in (full, elastic_cache, h2o, streaming_llm)}
)
