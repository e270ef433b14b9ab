"""Components that are wrong in one way each, and correct twins of them."""

from . import allocators, backends, engine, mergers, recallers, schedulers, scorers, selectors
from ._mutant import Mutant

__all__ = ["MUTANTS", "TWINS", "Mutant"]

_KINDS = (scorers, selectors, mergers, allocators, schedulers, recallers, backends, engine)

MUTANTS: tuple[Mutant, ...] = tuple(mutant for kind in _KINDS for mutant in kind.MUTANTS)
TWINS = tuple(twin for kind in _KINDS for twin in kind.TWINS)
