"""Where in a user's own code an exception was raised."""

from __future__ import annotations

import os
import sysconfig
import traceback
from pathlib import Path

__all__ = ["raised_at"]

# Whose lines say nothing about a mistake of the user's: kvpolicy, Python, what is installed, and code that has no file.
_OTHERS = tuple(
    f"{folder}{os.sep}"
    for folder in (Path(__file__).parents[1], *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")))
)


def raised_at(error: BaseException) -> str:
    """``at FILE:LINE, in FUNCTION`` on a line of its own: the innermost that is the user's; empty if there is none."""
    calls = traceback.extract_tb(error.__traceback__)
    own = [call for call in calls if not call.filename.startswith((*_OTHERS, "<"))]
    return "".join(f"\n  at {call.filename}:{call.lineno}, in {call.name}" for call in own[-1:])
