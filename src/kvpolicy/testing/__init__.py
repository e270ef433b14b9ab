"""The conformance kit: laws of KV-cache policies, and examples to try them on.

`parametrize_with_checks` holds policies and stages of your own to every law that speaks of them; ``kvpolicy check``
does so from the command line. Needs hypothesis and pytest: ``pip install "kvpolicy[testing]"``.
"""

from . import checks, strategies
from ._check import PROFILES, Check, checks_of
from ._law import ConformanceError, Law
from ._outcome import Place
from ._parametrize import parametrize_with_checks
from .requests import Request
from .tables import Table

__all__ = [
    "PROFILES",
    "Check",
    "ConformanceError",
    "Law",
    "Place",
    "Request",
    "Table",
    "checks",
    "checks_of",
    "parametrize_with_checks",
    "strategies",
]
