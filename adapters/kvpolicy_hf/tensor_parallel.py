"""Tensor parallelism: the ranks of a group share the heads of every layer."""

from __future__ import annotations

from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor

from kvpolicy import Heads, Policy, UnsupportedModelError

from ._transformers import PreTrainedModel
from ._transformers.heads import heads_group
from .stages import saying

__all__ = ["SharedHeads", "heads_for"]


def heads_for(policy: Policy, model: PreTrainedModel) -> Heads | None:
    """What `Session` takes as ``heads``: how the ranks of the model's group share its key/value heads.

    Raises:
        UnsupportedModelError: if they cannot be shared evenly, or a stage says ``needs_all_heads = True``: that it
            combines the heads that it sees and would not know of those of other ranks.
    """
    group = heads_group(model)
    if group is None:
        return None
    if needed := saying(policy, "needs_all_heads"):
        raise UnsupportedModelError(
            f"{needed[0]} may combine the heads of a layer, and under tensor parallelism this rank holds but 1 of "
            f"{dist.get_world_size(group)} shares of them. Hint: load the model without tp_size, or another stage."
        )
    return SharedHeads(group)


@final
class SharedHeads(Heads):
    """The heads of a layer, in order, on the ranks of a process group.

    Args:
        group: those ranks.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self._rank, self._parts = dist.get_rank(group), dist.get_world_size(group)

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedHeads:
        return self  # a group of processes is what it is: a copied cache runs on the same one

    @property
    def parts(self) -> int:
        """Ranks of the group."""
        return self._parts

    def all(self, data: Tensor, /) -> Tensor:
        """One all-gather; the bits of every rank, so that all compute the same from them."""
        sent = (data.to(torch.uint8) if data.dtype == torch.bool else data).contiguous()
        brought = [torch.empty_like(sent) for _ in range(self._parts)]
        dist.all_gather(brought, sent, group=self.group)
        return torch.cat(brought, dim=1).to(data.dtype)

    def own(self, data: Any, /) -> Any:
        """The rank's slice."""
        size = data.shape[1] // self._parts
        return data[:, self._rank * size : (self._rank + 1) * size]
