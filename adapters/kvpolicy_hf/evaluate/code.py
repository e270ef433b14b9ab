"""The parts of policies and tasks, and the code of those that are a user's own: edited code is measured again."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache

__all__ = ["code_of", "parts_of"]

DIGITS = 12  # of the fingerprint
NOT_OWN = {*sys.stdlib_module_names, "kvpolicy", "kvpolicy_hf"}  # the conditions of a run hold their versions


def parts_of(value: object) -> Iterator[object]:
    """The value itself and, in depth, whatever its dataclass fields, tuples and lists hold."""
    yield value
    if isinstance(value, (tuple, list)):
        inside = list(value)
    elif is_dataclass(value) and not isinstance(value, type):
        inside = [getattr(value, field.name) for field in fields(value)]
    else:
        inside = []
    for part in inside:
        yield from parts_of(part)


def code_of(value: object) -> str:
    """What tells the code of one's own apart, to go behind a repr: `` code `` and a fingerprint; empty without any.

    The fingerprint is of the source of all modules in which the classes of the parts, and their bases, are defined;
    the modules of kvpolicy and of the standard library do not count. A class without source has none (one from a
    notebook or from `exec`), and what those modules import is not looked at: neither is told apart when it is edited.

    Args:
        value: a policy or a task.
    """
    classes = {cls for part in parts_of(value) for cls in type(part).__mro__}
    sources = sorted({_source(cls) for cls in classes if cls.__module__.partition(".")[0] not in NOT_OWN} - {""})
    if not sources:
        return ""
    return f" code {hashlib.sha256(chr(0).join(sources).encode()).hexdigest()[:DIGITS]}"


@cache  # of the class, which a reloaded module makes anew: a file that is edited meanwhile is not what runs
def _source(cls: type) -> str:
    """The source of the module that defines a class; empty where there is none."""
    module = sys.modules.get(cls.__module__)
    try:
        return inspect.getsource(module) if module else ""
    except (OSError, TypeError):
        return ""
