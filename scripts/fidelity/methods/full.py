from __future__ import annotations

import kvpolicy
from kvpolicy_hf.simulate import replay

from ..prompts import Samples

RELEASED = "There is none: it is the plain cache."
CHOSEN = "There is nothing to choose."
MEASURED = """
Attention over this cache against attention over all tokens, both in float64: the largest output error of any layer
and decode step is {error:.0g}.
"""


def measure(samples: Samples) -> dict[str, float]:
    return {"error": max(float(replay(one.record, kvpolicy.full()).error.max()) for one in samples.pictures)}
