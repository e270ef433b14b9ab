"""Policies as files: JSON and TOML documents that hold a policy whole and exact, and run nothing when they are read.

    format = "kvpolicy-policy"
    version = 1

    [policy.decode.schedule]
    stage = "KeepRatio"
    keep = 0.2

    [policy.decode.score]
    stage = "AttentionMass"

A class of the user's is written as ``module:QualName``, and read only where the caller passes the class itself.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable
from math import inf
from typing import Any

import tomli_w

from ._check import near, shown
from ._errors import PolicyError
from ._policy import Policy
from ._serial_names import allowed
from ._serial_stages import Table, made_from, table_of

__all__ = ["from_json", "from_toml", "to_json", "to_toml"]

FORMAT, VERSION = "kvpolicy-policy", 1
KEYS = ("format", "version", "policy")


def to_json(policy: Policy, *, indent: int | None = 2) -> str:
    """The policy as a JSON document, ASCII; `from_json` makes an equal one of it.

    Arguments that equal their defaults are left out. A tuple becomes a list, bytes base64, a number of numpy a number.

    Args:
        policy: made of kvpolicy's stages, and of others that are dataclasses of plain values.
        indent: spaces a level; None: one line.

    Raises:
        PolicyError: if a stage is no dataclass, or an argument is no finite number, text, bytes, stage or tuple of
            these; names the place, such as ``policy.prefill.score``.
    """
    return json.dumps(_document("to_json", policy, nulls=True), indent=indent)


def from_json(text: str, *, allow: Iterable[type[Any]] = ()) -> Policy:
    """The policy that a JSON document describes. Nothing in it is imported or evaluated.

    Args:
        text: what `to_json` gave, or was written by hand.
        allow: classes that the document may name beside kvpolicy's own stages: dataclasses of the caller.

    Raises:
        PolicyError: if the text is no such document, a key is unknown or given twice, an argument is missing, or a
            stage refuses its arguments; names the place, such as ``policy.prefill.score``, or line and column.
    """
    _check_text("from_json", text)
    try:
        document = json.loads(text, object_pairs_hook=_table, parse_int=_integer)
    except json.JSONDecodeError as error:
        raise PolicyError(f"this is no JSON: {error.msg} at line {error.lineno}, column {error.colno}.") from error
    except RecursionError as error:
        raise PolicyError("document: nested too deeply to be a policy.") from error
    return _policy("from_json", document, allow)


def to_toml(policy: Policy) -> str:
    """The policy as a TOML document; `from_toml` makes an equal one of it.

    TOML has no None: it is left out where it is the default, and cannot be written where it is not.

    Args:
        policy: as for `to_json`.

    Raises:
        PolicyError: as `to_json`, and for None where that is not the default.
    """
    return tomli_w.dumps(_document("to_toml", policy, nulls=False))


def from_toml(text: str, *, allow: Iterable[type[Any]] = ()) -> Policy:
    """The policy that a TOML document describes. Nothing in it is imported or evaluated.

    Args:
        text: what `to_toml` gave, or was written by hand.
        allow: as for `from_json`.

    Raises:
        PolicyError: as `from_json`.
    """
    _check_text("from_toml", text)
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:  # its message gives line and column
        raise PolicyError(f"this is no TOML: {error}.") from error
    except RecursionError as error:
        raise PolicyError("document: nested too deeply to be a policy.") from error
    except ValueError as error:  # an integer with more digits than Python reads
        raise PolicyError(f"document: a number cannot be read: {error}.") from error
    return _policy("from_toml", document, allow)


def _document(owner: str, policy: Policy, *, nulls: bool) -> dict[str, Any]:
    given: Any = policy
    if not isinstance(given, Policy):
        raise PolicyError(f"{owner}() takes a Policy; got {shown(given)}. Hint: Policy(prefill=..., decode=...).")
    return {"format": FORMAT, "version": VERSION, "policy": table_of(policy, ("policy",), nulls=nulls)}


def _policy(owner: str, document: Any, allow: Iterable[type[Any]]) -> Policy:
    known = allowed(allow, owner)
    if not isinstance(document, dict):
        raise PolicyError(f"document: its root is {shown(document)}; it must be a table of {', '.join(KEYS)}.")
    if (twice := getattr(document, "twice", None)) is not None:
        raise PolicyError(f"document: the key {shown(twice)} is given twice. Hint: leave one of them.")
    for key in document:
        if key not in KEYS:
            raise PolicyError(f"document: unknown key {shown(key)}; there are {', '.join(KEYS)}.{near(key, KEYS)}")
    for key in KEYS:
        if key not in document:
            raise PolicyError(f"document: it lacks the key {key!r}. Hint: to_json() and to_toml() write {KEYS}.")
    if document["format"] != FORMAT:
        raise PolicyError(f"format: {shown(document['format'])} is not {FORMAT!r}, the only format that is read.")
    version = document["version"]
    if type(version) is not int or version != VERSION:
        raise PolicyError(f"version: {shown(version)} is not {VERSION}, the only version that this kvpolicy reads.")
    made: Policy = made_from(document["policy"], Policy, ("policy",), known)
    return made


def _check_text(owner: str, text: Any) -> None:
    if not isinstance(text, str):
        raise PolicyError(f"{owner}() takes text; got a {type(text).__name__}. Hint: Path('policy.json').read_text().")


def _table(pairs: list[tuple[str, Any]]) -> Table:
    """An object of JSON; that a key is given twice is told where its place is known."""
    table = Table()
    for key, value in pairs:
        if key in table:
            table.twice = key
        table[key] = value
    return table


def _integer(digits: str) -> int | float:
    """Python refuses to read very long integers; as infinity it is refused where its place is known."""
    return int(digits) if len(digits) < 1000 else inf
