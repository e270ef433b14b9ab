"""KV-cache policies: which cached rows of a model are kept, which are merged into which, and when.

A KV cache is a table. A policy looks at the table and writes a Plan. A backend carries the Plan out.
"""

from . import allocators, mergers, schedulers, scorers, selectors
from ._errors import (
    BackendUnavailableError,
    CacheError,
    KVPolicyError,
    MissingColumnError,
    PlanError,
    PolicyError,
    UnsupportedModelError,
)
from ._policy import Pipeline, Policy
from ._protocols import (
    Allocator,
    Assigner,
    Backend,
    Bounded,
    ImportanceScorer,
    Merger,
    Observer,
    Scheduler,
    Selector,
    Store,
    Weigher,
)
from ._session import Listener, Pass, Session
from ._text import from_text
from ._types import (
    Array,
    CacheView,
    Column,
    Counts,
    KeepMask,
    Phase,
    Plan,
    Quota,
    Rows,
    Scored,
    Scores,
    Selection,
    Step,
)
from .allocators import Uniform
from .backends import backend_by_name, backend_for
from .mergers import Drop, Fold, Mean, NearestPosition
from .policies import RECIPES, elastic_cache, full, h2o, streaming_llm
from .report import LayerReport, Report, format_bytes
from .schedulers import FixedRows, KeepRatio, MemoryBudget
from .scorers import AttentionMass, FixedPoint, Recency
from .selectors import TopK

__version__ = "0.1.0.dev0"

__all__ = [
    "RECIPES",
    "Allocator",
    "Array",
    "Assigner",
    "AttentionMass",
    "Backend",
    "BackendUnavailableError",
    "Bounded",
    "CacheError",
    "CacheView",
    "Column",
    "Counts",
    "Drop",
    "FixedPoint",
    "FixedRows",
    "Fold",
    "ImportanceScorer",
    "KVPolicyError",
    "KeepMask",
    "KeepRatio",
    "LayerReport",
    "Listener",
    "Mean",
    "MemoryBudget",
    "Merger",
    "MissingColumnError",
    "NearestPosition",
    "Observer",
    "Pass",
    "Phase",
    "Pipeline",
    "Plan",
    "PlanError",
    "Policy",
    "PolicyError",
    "Quota",
    "Recency",
    "Report",
    "Rows",
    "Scheduler",
    "Scored",
    "Scores",
    "Selection",
    "Selector",
    "Session",
    "Step",
    "Store",
    "TopK",
    "Uniform",
    "UnsupportedModelError",
    "Weigher",
    "__version__",
    "allocators",
    "backend_by_name",
    "backend_for",
    "elastic_cache",
    "format_bytes",
    "from_text",
    "full",
    "h2o",
    "mergers",
    "schedulers",
    "scorers",
    "selectors",
    "streaming_llm",
]
