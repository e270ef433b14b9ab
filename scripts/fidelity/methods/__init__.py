"""One file per recipe: what its released code does differently, what we chose, and what that does on real prompts.

Each file has the texts RELEASED, CHOSEN and MEASURED. Where something is measured, ``measure`` gives the numbers that
stand in MEASURED in braces.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from kvpolicy import RECIPES

__all__ = ["METHODS"]

METHODS: dict[str, ModuleType] = {name: import_module(f".{name}", __name__) for name in RECIPES}
