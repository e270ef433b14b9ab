"""Which backend serves a model."""

from __future__ import annotations

import importlib.util

import torch

from kvpolicy import Backend, PolicyError, backend_by_name

from ._transformers import PreTrainedModel

__all__ = ["backend_for_model"]

_OF_TENSORS = ("torch", "triton")
_KERNELS_TAKE = (torch.float16, torch.bfloat16, torch.float32)


def backend_for_model(model: PreTrainedModel, name: str | None) -> tuple[Backend, str]:
    """The backend of this name, or for None the fastest one; and why it is not faster, where a GPU could be.

    Raises:
        PolicyError: if it does not work on a model's tensors.
        BackendUnavailableError: if it was named and cannot work here; never another one.
    """
    if name is not None:
        if name not in _OF_TENSORS:
            raise PolicyError(
                f"PolicyCache(backend={name!r}): a model's cache takes one of the backends {', '.join(_OF_TENSORS)}."
            )
        return backend_by_name(name), ""
    if model.device.type != "cuda" or not torch.cuda.is_available():
        return backend_by_name("torch"), ""
    if model.dtype not in _KERNELS_TAKE:
        return backend_by_name("torch"), f"triton does not serve {model.dtype}"
    if importlib.util.find_spec("triton") is None:
        return backend_by_name("torch"), 'triton is not installed: pip install "kvpolicy[triton]"'
    return backend_by_name("triton"), ""
