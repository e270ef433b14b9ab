"""Tokens that may be taken back run through a layer one by one, before the next layer has seen the first of them.

So what a policy does to a layer's table while decoding must follow from that layer alone.
"""

from __future__ import annotations

from typing import NoReturn, final

from ._errors import CacheError
from ._policy import Policy
from ._protocols import CrossLayer

__all__ = ["Untold", "check_layerwise", "of_another_layer"]

_HINT = "Hint: decode without taking tokens back, or a policy that acts layer by layer."


def check_layerwise(policy: Policy) -> None:
    """Raise unless every layer of a policy is planned by itself.

    Raises:
        CacheError: names the stage that waits for all layers.
    """
    for name in ("prefill", "decode"):
        pipeline = getattr(policy, name)
        if pipeline is None:
            continue
        stages = {
            pipeline.allocate: pipeline.allocate.whole_model,
            pipeline.score: isinstance(pipeline.score, CrossLayer),
        }
        for stage, waits in stages.items():
            if waits:
                raise CacheError(
                    f"Policy({name}=...): {stage!r} waits until every layer has attended, but tokens that may be taken "
                    f"back attend to what it leaves in a layer before the next one has seen them. {_HINT}"
                )


@final
class Untold:
    """Stands in `Step` for what cannot be known yet: whatever is asked of it raises.

    Args:
        says: what the error says.
    """

    def __init__(self, says: str) -> None:
        self._says = says

    def __getattr__(self, name: str) -> NoReturn:
        raise CacheError(self._says)

    def __deepcopy__(self, memo: dict[int, object]) -> Untold:
        return self


def of_another_layer(layer: int, by: int) -> Untold:
    """For the rows of a layer that has not come to the token that layer ``by`` runs, or is past it."""
    return Untold(f"a stage looks at layer {layer} while layer {by} runs tokens that may be taken back. {_HINT}")
