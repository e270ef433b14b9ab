"""Record once, replay any policy: what it keeps of the attention and loses of the output, without running the model.

record(model, inputs, "prompt.safetensors", new_tokens=64)
result = replay(load_record("prompt.safetensors"), kvpolicy.h2o(keep=0.2))
print(result.mass.mean(), result.error.mean(axis=0))
"""

from .clairvoyant import FutureMass, clairvoyant
from .record import Record, RecordError, record
from .replay import Replay, replay
from .storage import load_record, save_record

__all__ = [
    "FutureMass",
    "Record",
    "RecordError",
    "Replay",
    "clairvoyant",
    "load_record",
    "record",
    "replay",
    "save_record",
]
