"""The bench model, a vision-language model of 11.9 million parameters that the package ``kvpolicy-bench`` carries."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from .errors import LoadingError

__all__ = ["bench", "load_bench"]


def bench(module: str) -> Any:
    """A module of ``kvpolicy_bench``.

    Raises:
        LoadingError: if the package is not installed.
    """
    if importlib.util.find_spec("kvpolicy_bench") is None:
        raise LoadingError(
            "the bench is a package of its own, and is not here. Hint: pip install ./bench in a clone of kvpolicy."
        )
    return importlib.import_module(f"kvpolicy_bench.{module}")


def load_bench() -> tuple[Any, Any]:
    """Model and processor, see ``bench/README.md``.

    Raises:
        LoadingError: if the package is not installed.
    """
    loaded: tuple[Any, Any] = bench("loading").load()
    return loaded
