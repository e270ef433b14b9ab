"""What a press gets in the place of things that a KV-cache policy does not have, or does not make unless asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from kvpolicy import PolicyError

__all__ = ["Attentions", "HiddenStates", "NoKwargs"]

_HINT = (
    "Hint: a press may read keys, values and attentions; for one that predicts queries, kvpolicy has WindowMass and "
    "ExpectedAttention, which see the model's own."
)
# What is known of a tensor that is not there.
_KNOWN = {Tensor.size, Tensor.dim, *(getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device"))}


class _Absent(Tensor):
    """A tensor without storage: its shape, dtype and device are known, and anything else goes to `_touched`."""

    @staticmethod
    def __new__(cls, shape: tuple[int, ...], like: Tensor, *args: Any) -> Any:  # torch leaves this unannotated
        return torch.Tensor._make_wrapper_subclass(cls, shape, dtype=like.dtype, device=like.device)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if func in _KNOWN:
            return super().__torch_function__(func, types, args, kwargs)
        return cls._touched(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch declares it as an instance's
        cls, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return cls._touched(func, args, kwargs or {})  # what came past the other: torch.tensor(), vmap

    @classmethod
    def _touched(cls, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        raise NotImplementedError


class HiddenStates(_Absent):
    """The input of the attention module, which never comes to a cache.

    Args:
        shape: (batch, queries, hidden size).
        like: a tensor of its dtype and device.
        press: who gets it, for the error.

    Raises:
        PolicyError: at any use but of shape, dtype and device; names the press and what it did.
    """

    def __init__(self, shape: tuple[int, ...], like: Tensor, press: object) -> None:
        self.press = press

    @classmethod
    def _touched(cls, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        used: list[HiddenStates] = []
        _each(cls, used.append, [args, kwargs])
        raise PolicyError(
            f"{used[0].press!r}: score() uses hidden_states ({_name(func)}), which a KV-cache policy cannot see; it "
            f"knows their shape, dtype and device. {_HINT}"
        )

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]  # torch leaves it unannotated
        return f"HiddenStates({list(self.shape)}, {self.dtype})"


class Attentions(_Absent):
    """Attention probabilities that are computed when they are first used.

    Args:
        shape: of what ``make`` returns.
        like: a tensor of its dtype and device.
        make: computes them.
    """

    def __init__(self, shape: tuple[int, ...], like: Tensor, make: Callable[[], Tensor]) -> None:
        self._make = make
        self._made: Tensor | None = None

    def made(self) -> Tensor:
        """The real tensor."""
        if self._made is None:
            self._made = self._make()
        return self._made

    @classmethod
    def _touched(cls, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        args, kwargs = _each(cls, cls.made, [args, kwargs])
        return func(*args, **kwargs)


class NoKwargs(dict[str, Any]):
    """The keyword arguments of the attention module, of which a cache has none.

    Args:
        press: who gets it, for the error.

    Raises:
        PolicyError: if asked for a key; names the press and the key.
    """

    def __init__(self, press: object) -> None:
        super().__init__()
        self._press = press

    def __missing__(self, key: str) -> Any:
        raise PolicyError(f"{self._press!r}: score() uses kwargs[{key!r}], which a KV-cache policy cannot see. {_HINT}")


def _name(func: Any) -> str:
    """What somebody wrote to get here: a function's name, or a property's."""
    name = getattr(func, "__name__", str(func))
    return str(func.__self__.__name__) if name == "__get__" else name


def _each(kind: type, do: Callable[[Any], Any], where: Any) -> Any:
    """The same arguments with ``do(x)`` in the place of every ``x`` of a kind."""
    if isinstance(where, kind):
        return do(where)
    if type(where) in (list, tuple):
        return type(where)(_each(kind, do, each) for each in where)
    if type(where) is dict:
        return {name: _each(kind, do, each) for name, each in where.items()}
    return where
