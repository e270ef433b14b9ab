"""Checks of what tables, requests and traces have in common: a seed, sizes, padding and an image."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from .._check import check_choice, check_count
from .._errors import PolicyError
from ._numbers import DTYPES

__all__ = ["check_image", "check_sizes"]


def check_sizes(example: Any, *, tokens: int | None = None) -> None:
    """Raise `PolicyError` unless a seed, sizes and padding are such that arrays can be made of them.

    Args:
        example: a `Table`, a `Request` or a `Trace`.
        tokens: what the padding of each batch row must be less than; None: any will do.
    """
    owner = type(example).__name__
    check_count(owner, "seed", example.seed)
    for name in ("layers", "batch", "heads", "groups", "dim", "value_dim"):
        check_count(owner, name, getattr(example, name), least=1)
    if example.dim % 2:
        raise PolicyError(f"{owner}(dim={example.dim}): dim must be even. Hint: {example.dim + 1}.")
    check_choice(owner, "dtype", example.dtype, DTYPES)
    _check_padding(owner, example.padding, example.batch, tokens)


def _check_padding(owner: str, padding: Any, batch: int, tokens: int | None) -> None:
    said = f"{owner}(padding={padding!r}): "
    if not isinstance(padding, tuple):  # a list has no hash, and examples are looked up by theirs
        raise PolicyError(f"{said}padding must be a tuple. Hint: {(1,) * batch}.")
    fits = all(_is_count(pad) and (tokens is None or pad < tokens) for pad in padding)
    if padding and (len(padding) != batch or not fits):
        most = "" if tokens is None else f", less than the {tokens} tokens"
        raise PolicyError(f"{said}one number for each of {batch} batch rows{most}, or () for none.")


def check_image(owner: str, image: Any) -> None:
    """Raise `PolicyError` unless it is the first token of an image and the one behind its last."""
    said = f"{owner}(image={image!r}): "
    if not isinstance(image, tuple) or len(image) != 2 or not all(map(_is_count, image)):
        raise PolicyError(f"{said}image must be a tuple of two integers >= 0. Hint: (0, 0) for none.")
    first, stop = image
    if first > stop:
        raise PolicyError(f"{said}an image ends before it begins. Hint: {(stop, first)}.")


def _is_count(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, Integral) and int(value) >= 0
