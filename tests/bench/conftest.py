"""The bench is a package of its own, and its training is none: both are found by path."""

from __future__ import annotations

import sys
from pathlib import Path

BENCH = Path(__file__).parents[2] / "bench"
sys.path[:0] = [str(BENCH / "src"), str(BENCH)]
