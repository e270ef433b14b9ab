"""Checks of arguments: each error names the argument, the value and what is allowed."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any, TypeVar

import numpy as np

from ._errors import PolicyError

__all__ = [
    "LONGEST",
    "WIDEST",
    "check_choice",
    "check_count",
    "check_number",
    "check_share",
    "check_stage",
    "choose",
    "closest",
    "near",
    "shown",
]

T = TypeVar("T")

WIDEST = 1023  # bits of an integer: one that no float reaches is a slip, and arithmetic fails on it later
LONGEST = 100  # characters of a value that an error repeats


def check_count(owner: str, name: str, value: Any, *, least: int = 0) -> None:
    """Raise `PolicyError` unless ``value`` is an integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise PolicyError(f"{owner}({name}={value!r}): {name} must be an integer >= {least}.")


def check_share(owner: str, name: str, value: Any, *, zero: bool = False) -> None:
    """Raise `PolicyError` unless ``value`` is a number in (0, 1], or [0, 1] with ``zero``."""
    real = isinstance(value, Real) and not isinstance(value, bool)
    if not real or not (0 < value <= 1 or (zero and value == 0)):
        span = "[0, 1]" if zero else "(0, 1]"
        raise PolicyError(f"{owner}({name}={value!r}): {name} is a fraction in {span}; 0.2 means one fifth.")


def check_number(owner: str, name: str, value: Any, *, least: float = -math.inf, above: float = -math.inf) -> None:
    """Raise `PolicyError` unless ``value`` is a finite number, at least ``least`` and greater than ``above``."""
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, Real) else float(value)
    except OverflowError:  # an integer that no float reaches
        number = math.inf
    if not (math.isfinite(number) and number >= least and number > above):
        bound = f" >= {least:g}" if least > -math.inf else f" > {above:g}" if above > -math.inf else ""
        raise PolicyError(f"{owner}({name}={value!r}): {name} must be a finite number{bound}.")


def check_choice(owner: str, name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Raise `PolicyError` unless ``value`` is one of ``allowed``, of the same type: 1 equals True, and is no choice."""
    plain = value.item() if isinstance(value, np.generic) else value
    if not any(type(plain) is type(one) and plain == one for one in allowed):
        raise PolicyError(f"{owner}({name}={value!r}): {name} must be one of {', '.join(map(repr, allowed))}.")


def choose(owner: str, name: str, value: Any, options: Mapping[str, T]) -> T:
    """What an option stands for; raises `PolicyError` unless ``value`` is one of them."""
    check_choice(owner, name, value, tuple(options))
    return options[value]


def check_stage(owner: str, name: str, value: Any, protocol: type) -> None:
    """Raise `PolicyError` unless ``value`` is an instance with the protocol's methods."""
    if isinstance(value, type):
        raise PolicyError(
            f"{owner}({name}={value.__name__}): {name} takes an instance, not the class. "
            f"Hint: {name}={value.__name__}(...)."
        )
    if not isinstance(value, protocol):
        methods = ", ".join(sorted(n for n in vars(protocol) if not n.startswith("_")))
        raise PolicyError(
            f"{owner}({name}={value!r}): {type(value).__name__} does not implement {protocol.__name__}; "
            f"it needs: {methods}."
        )


def closest(name: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown name: the one that may be meant, or all there are."""
    names = list(known)
    return near(name, names) or f" There are: {', '.join(names) or 'none'}."


def near(word: str, words: Iterable[str]) -> str:
    """The hint where one of the words is much like it, else nothing."""
    found = difflib.get_close_matches(word, list(words), n=1)
    return f" Hint: {found[0]}." if found else ""


def shown(value: Any) -> str:
    """A value for a message, short: what is in a table or a list is left out."""
    if isinstance(value, dict | list | tuple):
        return "a table" if isinstance(value, dict) else "a list"
    if isinstance(value, int) and value.bit_length() > WIDEST:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value[:LONGEST] if isinstance(value, str | bytes) else value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
