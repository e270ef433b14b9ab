"""What the options of `kvpolicy check` say."""

from __future__ import annotations

from collections.abc import Sequence

from .._check import closest
from .._errors import PolicyError
from .checks import LAWS

__all__ = ["pairs", "size_of", "wanted_laws"]


def wanted_laws(laws: Sequence[str] | None) -> list[str]:
    """The laws of ``--law`` and the structural ones, or all; raises `PolicyError` if there is no such law."""
    for name in laws or ():
        if name not in LAWS:
            raise PolicyError(f"--law {name}: there is no such law.{closest(name, LAWS)}")
    if not laws:
        return list(LAWS)
    return [name for name, each in LAWS.items() if name in laws or each.structural]


def pairs(option: str, form: str, given: Sequence[str] | None) -> dict[str, str]:
    """What an option that is given several times says, by name; raises `PolicyError` with the form that it takes."""
    found = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not (equals and name and value):
            raise PolicyError(f"{option} {text}: it takes {form}.")
        found[name.strip()] = value.strip()
    return found


def size_of(name: str, text: str) -> int:
    """The number of ``--size NAME=N``; raises `PolicyError` if it is none."""
    if not text.isdecimal() or int(text) < 1:
        raise PolicyError(f"--size {name}={text}: a size is an integer >= 1.")
    return int(text)
