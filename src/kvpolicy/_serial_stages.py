"""Stages as tables of plain values, and back: what the documents of `_serial` hold.

A table names its class under ``stage``; the other keys are constructor arguments, without those that equal their
defaults. A policy and its pipelines need no name: their places give it.
"""

from __future__ import annotations

import base64
import inspect
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from math import isfinite
from typing import Any

import numpy as np

from ._check import WIDEST, near, shown
from ._errors import PolicyError
from ._policy import Pipeline, Policy
from ._serial_names import STAGE, STOCK, Kind, Place, here, kind_of, name_of

__all__ = ["Table", "made_from", "table_of"]

BYTES = "base64"
DEEPEST = 64  # levels of a document: ten times what a recipe needs, and far from where Python's stack ends
NAMELESS = {(Policy, "prefill"): Pipeline, (Policy, "decode"): Pipeline}


class Table(dict[str, Any]):
    """A table as it was read; ``twice`` is a key that it gives more than once."""

    twice: str | None = None


# Writing ------------------------------------------------------------------------------------------------------------


def table_of(value: Any, place: Place, *, nulls: bool) -> dict[str, Any]:
    """A policy, pipeline or stage as a table.

    Args:
        value: an instance of a dataclass.
        place: where in the document the table stands.
        nulls: whether the format knows None.

    Raises:
        PolicyError: if an argument is no plain value, or the arguments do not make the same stage again.
    """
    kind = type(value)
    own = _arguments(kind, place)
    arguments = {f.name: getattr(value, f.name) for f in own}
    table = {} if kind in (Policy, Pipeline) else {STAGE: name_of(kind)}
    for f in own:
        if not _is_default(f, arguments[f.name]):
            table[f.name] = _written(arguments[f.name], (*place, f.name), nulls, NAMELESS.get((kind, f.name)))
    again = _built(kind, arguments, place, {})
    for name, mine in arguments.items():
        yours = getattr(again, name)
        if yours is not mine and yours != mine:
            raise PolicyError(
                f"{here((*place, name))}: given {shown(mine)}, {kind.__name__} makes {shown(yours)} of it, so that it "
                f"cannot be made again from its arguments. Hint: leave arguments as they were given."
            )
    return table


def _written(value: Any, place: Place, nulls: bool, nameless: Kind | None) -> Any:
    _check_depth(place)
    if isinstance(value, np.generic) and value.dtype.kind in "biufUS":
        value = value.item()
    if value is None and not nulls:
        raise PolicyError(f"{here(place)}: TOML has no None, and the default is another. Hint: to_json().")
    if value is None or type(value) in (bool, int, float, str):
        return _plain(value, place)
    if type(value) is bytes:
        return {BYTES: base64.b64encode(value).decode()}
    if type(value) is tuple:
        return [_written(item, (*place, number), nulls, None) for number, item in enumerate(value)]
    if is_dataclass(value) and (type(value) is nameless or not isinstance(value, type | Policy | Pipeline)):
        return table_of(value, place, nulls=nulls)
    what = "class" if isinstance(value, type) else type(value).__name__
    raise PolicyError(
        f"{here(place)}: a file cannot hold {shown(value)}, a {what}. Hint: it holds stages that are "
        f"dataclasses, bool, int, float, str, bytes, None, and tuples of these."
    )


def _is_default(f: Field[Any], value: Any) -> bool:
    """Whether leaving it out gives back exactly this: True and -0.0 equal 1.0 and 0.0, and are not the same."""
    if f.default is MISSING and f.default_factory is MISSING:
        return False
    default = f.default if f.default_factory is MISSING else f.default_factory()
    same = value == default
    return isinstance(same, bool | np.bool_) and bool(same) and repr(value) == repr(default)  # of arrays: an array


# Reading ------------------------------------------------------------------------------------------------------------


def made_from(table: Any, kind: Kind, place: Place, known: Mapping[str, Kind]) -> Any:
    """What a table describes.

    Args:
        table: as it was read.
        kind: the class.
        place: where in the document it stands.
        known: the caller's own stages, see `allowed`.

    Raises:
        PolicyError: if it is no table, or the class cannot be made from it.
    """
    if not isinstance(table, dict):
        raise PolicyError(f"{here(place)}: {shown(table)} is no {kind.__name__}. Hint: a table of its arguments.")
    if (twice := getattr(table, "twice", None)) is not None:
        raise PolicyError(f"{here(place)}: the key {shown(twice)} is given twice. Hint: leave one of them.")
    takes = {f.name: f for f in _arguments(kind, place)}
    given = {name: value for name, value in table.items() if name != STAGE or kind in (Policy, Pipeline)}
    for name in given:
        if name not in takes:
            raise PolicyError(
                f"{here(place)}: {kind.__name__} has no argument {shown(name)}; it takes {', '.join(takes) or 'none'}."
                f"{near(name, takes)}"
            )
    for name, f in takes.items():
        if name not in given and f.default is MISSING and f.default_factory is MISSING:
            raise PolicyError(f"{here(place)}: {kind.__name__} needs the argument {name!r}. Hint: give it.")
    read = {name: _read(value, (*place, name), known, NAMELESS.get((kind, name))) for name, value in given.items()}
    return _built(kind, read, place, known)


def _read(value: Any, place: Place, known: Mapping[str, Kind], nameless: Kind | None) -> Any:
    _check_depth(place)
    if nameless is not None and value is not None:
        return made_from(value, nameless, place, known)
    if isinstance(value, list):
        return tuple(_read(item, (*place, number), known, None) for number, item in enumerate(value))
    if not isinstance(value, dict):
        return _plain(value, place)
    if STAGE in value:
        return made_from(value, kind_of(value[STAGE], place, known), place, known)
    if set(value) != {BYTES}:
        raise PolicyError(f"{here(place)}: this table names no stage. Hint: give it the key {STAGE!r}.")
    try:
        return base64.b64decode(value[BYTES], validate=True)
    except (TypeError, ValueError) as error:
        raise PolicyError(f"{here((*place, BYTES))}: {shown(value[BYTES])} is no base64: {error}.") from error


# Both ---------------------------------------------------------------------------------------------------------------


def _built(kind: Kind, arguments: Mapping[str, Any], place: Place, known: Mapping[str, Kind]) -> Any:
    """Call the constructor; what it has against the arguments is told with the place."""
    try:
        return kind(**arguments)
    except PolicyError as error:
        bare = [n for n, value in arguments.items() if isinstance(value, str) and (value in STOCK or value in known)]
        hint = f" Hint: a stage is a table, here of {STAGE} = {arguments[bare[0]]!r}." if bare else ""
        raise PolicyError(f"{here(place)}: {error}{hint}") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # it checks nothing itself
        given = ", ".join(f"{name}={shown(value)}" for name, value in arguments.items())
        raise PolicyError(f"{here(place)}: {kind.__name__}({given}) cannot be made: {error}.") from error


def _arguments(kind: Kind, place: Place) -> list[Field[Any]]:
    """The fields that the constructor takes; refuses a class whose constructor takes anything else."""
    own = [f for f in fields(kind) if f.init]
    names, takes = {f.name for f in own}, set(inspect.signature(kind).parameters)
    if takes != names or STAGE in names:
        raise PolicyError(
            f"{here(place)}: {kind.__name__} takes {', '.join(takes) or 'no arguments'}, and has the fields "
            f"{', '.join(names) or 'none'}. Hint: let @dataclass write its __init__, and call no field {STAGE!r}."
        )
    return own


def _plain(value: Any, place: Place) -> Any:
    """A value that every file holds exactly, as it is."""
    if isinstance(value, float) and not isfinite(value):
        raise PolicyError(f"{here(place)}: {shown(value)} cannot be held by a file. Hint: a finite number.")
    if isinstance(value, int) and value.bit_length() > WIDEST:
        raise PolicyError(f"{here(place)}: {shown(value)} is too large. Hint: less than 2**{WIDEST}.")
    if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise PolicyError(f"{here(place)}: {shown(value)} holds half a character. Hint: whole ones, as UTF-8 has them.")
    if value is not None and not isinstance(value, bool | int | float | str):
        raise PolicyError(f"{here(place)}: {shown(value)} is a {type(value).__name__}, which no stage takes.")
    return value


def _check_depth(place: Place) -> None:
    if len(place) > DEEPEST:
        raise PolicyError(f"{here(place)}: more than {DEEPEST} levels deep. Hint: wrap fewer stages in one another.")
