"""Pictures of what a policy did: which tokens stay, which are merged, which go, and what attention is lost by it.

watch = Watch()
cache = PolicyCache(model, kvpolicy.h2o(keep=0.3), inputs=inputs, listen=watch)
model.generate(**inputs, cache=cache)
tokens_by_layers(watch.history(cache.report())).savefig("h2o.png")

Every function returns a matplotlib `Figure`, which is not pyplot's: save it with ``savefig``.
"""

from .budgets import budgets
from .errors import PlotError
from .history import Change, Fate, History
from .layout import Layout, seen_by_model
from .mass import mass_over_steps
from .patches import patches
from .tokens_by_layers import tokens_by_layers
from .tokens_by_steps import tokens_by_steps
from .watch import Watch

__all__ = [
    "Change",
    "Fate",
    "History",
    "Layout",
    "PlotError",
    "Watch",
    "budgets",
    "mass_over_steps",
    "patches",
    "seen_by_model",
    "tokens_by_layers",
    "tokens_by_steps",
]
