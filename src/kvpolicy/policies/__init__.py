"""One file per published method; each is a short composition of the same stages."""

from ._catalogue import RECIPES, catalogue
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

__all__ = [
    "RECIPES",
    "ada_kv",
    "adore",
    "air_cache",
    "cam",
    "catalogue",
    "d2o",
    "elastic_cache",
    "expected_attention",
    "full",
    "h2o",
    "head_kv",
    "k_norm",
    "keep_kv",
    "key_diff",
    "kv_merger",
    "look_m",
    "pyramid_kv",
    "random",
    "snapkv",
    "streaming_llm",
    "tova",
    "vl_cache",
]
