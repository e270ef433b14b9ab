"""kvpolicy for Hugging Face transformers, through its official seams: no patching, no hooks, nothing at import.

enable(model)
cache = PolicyCache(model, kvpolicy.h2o(keep=0.2), inputs=inputs)
out = model.generate(**inputs, cache=cache)
print(cache.report())
"""

from .cache import PolicyCache
from .compile import compile_decode
from .press import from_press
from .segments import AUDIO, IMAGE, TEXT, VIDEO, segments
from .switch import disable, enable, is_enabled
from .train_controller import train_controller

__all__ = [
    "AUDIO",
    "IMAGE",
    "TEXT",
    "VIDEO",
    "PolicyCache",
    "compile_decode",
    "disable",
    "enable",
    "from_press",
    "is_enabled",
    "segments",
    "train_controller",
]
