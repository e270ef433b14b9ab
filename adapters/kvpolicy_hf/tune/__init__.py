"""Tuning: search the compositions of scorer, allocator, selector and merger for the one that fits a user's data.

found = tune("demo", keep=0.2, out="tuned")
print(found.winner)             # a Policy; tuned/winner.json holds it, and from_json loads it
"""

from .search import Candidate, Tuned, tune
from .space import suggest

__all__ = ["Candidate", "Tuned", "suggest", "tune"]
