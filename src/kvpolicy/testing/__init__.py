"""The conformance kit: laws of KV-cache policies, and examples to try them on.

`parametrize_with_checks` holds policies and stages of your own to every law that speaks of them; ``kvpolicy check``
does so from the command line. Needs hypothesis and pytest: ``pip install "kvpolicy[testing]"``.
"""

from . import checks, strategies
from ._check import PROFILES, Check, checks_of
from ._law import ConformanceError, Law
from ._outcome import Place
from ._parametrize import parametrize_with_checks
from ._vacuous import VacuousPassWarning
from .machine import GenerationMachine, generation_machine
from .model import SlowCache
from .requests import Request
from .tables import Table
from .traces import BrokenTraceError, Crop, Decode, Prefill, Reorder, Reset, Trace, Turn, replay

__all__ = [
    "PROFILES",
    "BrokenTraceError",
    "Check",
    "ConformanceError",
    "Crop",
    "Decode",
    "GenerationMachine",
    "Law",
    "Place",
    "Prefill",
    "Reorder",
    "Request",
    "Reset",
    "SlowCache",
    "Table",
    "Trace",
    "Turn",
    "VacuousPassWarning",
    "checks",
    "checks_of",
    "generation_machine",
    "parametrize_with_checks",
    "replay",
    "strategies",
]
