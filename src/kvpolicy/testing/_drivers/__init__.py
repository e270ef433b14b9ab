"""How each kind of component is run on an example, and how its answer is written down as an `Outcome`."""

from .backends import verbs
from .mergers import merged, plans_of_merger
from .planned import Planned
from .requests import requested
from .selections import Chosen, selections_of_policy, selections_of_selector
from .stages import allocated, budgeted, hosted, recalled, scored, selected

__all__ = [
    "Chosen",
    "Planned",
    "allocated",
    "budgeted",
    "hosted",
    "merged",
    "plans_of_merger",
    "recalled",
    "requested",
    "scored",
    "selected",
    "selections_of_policy",
    "selections_of_selector",
    "verbs",
]
