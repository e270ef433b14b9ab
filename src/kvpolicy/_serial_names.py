"""Names in the documents of `_serial`: of places in them, and of the stages that they may hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from typing import Any, TypeAlias

from . import allocators, mergers, recallers, schedulers, scorers, selectors
from ._check import near, shown
from ._errors import PolicyError

__all__ = ["STAGE", "STOCK", "Kind", "Place", "allowed", "here", "kind_of", "name_of"]

Kind: TypeAlias = type[Any]
Place: TypeAlias = tuple[str | int, ...]  # the keys and indices that lead to a value

STAGE = "stage"  # the key of a class's name

STOCK: Mapping[str, Kind] = {
    name: getattr(kinds, name)
    for kinds in (allocators, mergers, recallers, schedulers, scorers, selectors)
    for name in kinds.__all__
    if is_dataclass(getattr(kinds, name))
}
_NAMES = {kind: name for name, kind in STOCK.items()}


def name_of(kind: Kind) -> str:
    """That of a stock stage; ``module:QualName`` of any other class."""
    return _NAMES.get(kind) or f"{kind.__module__}:{kind.__qualname__}"


def allowed(allow: Any, owner: str) -> Mapping[str, Kind]:
    """The caller's own stages by their names.

    Raises:
        PolicyError: if ``allow`` is no collection of dataclasses, or two of them have one name.
    """
    if isinstance(allow, type) or not isinstance(allow, Iterable):
        raise PolicyError(f"{owner}(allow={shown(allow)}): allow takes a tuple of classes. Hint: allow=(MyScorer,).")
    known: dict[str, Kind] = {}
    for kind in allow:
        if not isinstance(kind, type) or not is_dataclass(kind):
            raise PolicyError(f"{owner}(allow=...): {shown(kind)} is no dataclass. Hint: allow=(MyScorer,).")
        if known.setdefault(name_of(kind), kind) is not kind:
            raise PolicyError(f"{owner}(allow=...): two classes are called {name_of(kind)!r}. Hint: allow one of them.")
    return known


def kind_of(name: Any, place: Place, known: Mapping[str, Kind]) -> Kind:
    """The class that a document names: a stock stage, or one of those that the caller allowed. Nothing is imported.

    Raises:
        PolicyError: if there is none of this name.
    """
    where = here((*place, STAGE))
    if not isinstance(name, str):
        raise PolicyError(f"{where}: {shown(name)} is no name of a stage. Hint: text, such as 'TopK'.")
    if name in STOCK or name in known:
        return STOCK.get(name) or known[name]
    if ":" in name:
        raise PolicyError(
            f"{where}: {shown(name)} is no stage of kvpolicy, and what a document names is not imported; allowed: "
            f"{', '.join(known) or 'none'}. Hint: allow=(TheClass,); on a command line, in place of the file, "
            f"module:function of a function that returns the policy."
        )
    raise PolicyError(f"{where}: no stage {shown(name)}; there are: {', '.join(STOCK)}.{near(name, STOCK)}")


def here(place: Place) -> str:
    """``policy.prefill.allocate.table[0]``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return text.removeprefix(".") or "document"
