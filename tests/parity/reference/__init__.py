"""The published methods as loops over their formulas, in float64. Nothing here comes from the package under test.

Every method simulates one request (all layers, one batch row, no padding): a prompt, then a token at a time. It takes
the request's `Inputs` and gives an `Outcome` for the prompt and for every token after it.
"""

from .common import IMAGE, TEXT, Head, Inputs, Outcome, Row, budget, causal_attention
from .elastic_cache import elastic_cache
from .expected import expected_attention
from .h2o import h2o
from .hashing import noise, random
from .keys import k_norm, key_diff
from .merging import cam, d2o, keep_kv, kv_merger, look_m
from .rope import rotate
from .selection import UndecidedError
from .streaming_llm import streaming_llm
from .vision import air_cache, vl_cache
from .windowed import ada_kv, head_kv, pyramid_kv, snapkv, tova

__all__ = [
    "IMAGE",
    "TEXT",
    "Head",
    "Inputs",
    "Outcome",
    "Row",
    "UndecidedError",
    "ada_kv",
    "air_cache",
    "budget",
    "cam",
    "causal_attention",
    "d2o",
    "elastic_cache",
    "expected_attention",
    "h2o",
    "head_kv",
    "k_norm",
    "keep_kv",
    "key_diff",
    "kv_merger",
    "look_m",
    "noise",
    "pyramid_kv",
    "random",
    "rotate",
    "snapkv",
    "streaming_llm",
    "tova",
    "vl_cache",
]
