"""Devices that are only said to be there: tensors live on the CPU, and know on which device they would be.

Under `PretendedDevices` a tensor answers with that device, moves where it is sent, and may meet only tensors of its own
device, as on a machine with several. It knows nothing of speed or of kernels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

__all__ = ["PretendedDevices", "place", "place_of"]

CPU = torch.device("cpu")
_PLACE = "_pretended_device"
_INDEXED = {Tensor.__getitem__, Tensor.__setitem__}  # an index may come from the host
_COPIED = {Tensor.copy_}  # from any device to any other
_TO_HOST = {Tensor.numpy, Tensor.__array__}


def place_of(tensor: Tensor) -> torch.device:
    """Where it is said to be: a window on ragged heads, where these are."""
    ragged = getattr(tensor, "ragged", None)
    return getattr(tensor, _PLACE, CPU) if ragged is None else place_of(ragged.data)


def place(tensor: Tensor, device: torch.device) -> Tensor:
    """Say that a tensor is there."""
    setattr(tensor, _PLACE, device)
    return tensor


class PretendedDevices(TorchFunctionMode):
    """Raises `RuntimeError` where tensors of two devices meet."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func == Tensor.device.__get__:
            return place_of(args[0])
        if func == Tensor.is_cuda.__get__:
            return place_of(args[0]).type == "cuda"
        meeting = args[:1] if func == Tensor.__deepcopy__ else (args, kwargs)  # what was copied before does not count
        given = [leaf for leaf in tree_leaves(meeting) if isinstance(leaf, Tensor)]
        asked = [leaf for leaf in tree_leaves((args[1:] if given else args, kwargs)) if isinstance(leaf, torch.device)]
        if kwargs.get("device") is not None:
            asked = [torch.device(kwargs["device"])]
        if func in (Tensor.to, Tensor.type_as) and len(given) > 1:
            asked = [place_of(given[1])]
        if func is Tensor.to and len(args) > 1 and isinstance(args[1], str | int) and not isinstance(args[1], bool):
            asked = [torch.device(args[1])]
        if func is Tensor.cpu:
            asked = [CPU]
        if func in _TO_HOST and place_of(given[0]) != CPU:
            raise RuntimeError(f"{func.__name__} of a tensor on {place_of(given[0])}")
        if not asked and func not in _COPIED:
            self._check(func, given)
        here = self._here(given)
        out = func(*_on_cpu(args), **_on_cpu(kwargs))
        there = asked[0] if asked else here

        def placed(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            if any(leaf is tensor for tensor in given):
                if not asked or place_of(leaf) == there:
                    return leaf
                leaf = leaf.clone()  # on a CPU nothing had to be done to move it there
            return place(leaf, there)

        return tree_map(placed, out)

    def _here(self, given: list[Tensor]) -> torch.device:
        return next((place_of(tensor) for tensor in given if tensor.ndim or place_of(tensor) != CPU), CPU)

    def _check(self, func: Any, given: list[Tensor]) -> None:
        met = {place_of(tensor) for tensor in given if tensor.ndim or place_of(tensor) != CPU}
        if func in _INDEXED and given and place_of(given[0]) != CPU:
            met.discard(CPU)
        if len(met) > 1:
            name = getattr(func, "__name__", str(func))
            raise RuntimeError(f"{name} of tensors on {' and '.join(sorted(map(str, met)))}")


def _on_cpu(given: Any) -> Any:
    """The same arguments, asking for the CPU where they asked for a device."""

    def moved(leaf: Any) -> Any:
        if isinstance(leaf, torch.device):
            return CPU
        return "cpu" if isinstance(leaf, str) and leaf.startswith("cuda") else leaf

    return tree_map(moved, given)
