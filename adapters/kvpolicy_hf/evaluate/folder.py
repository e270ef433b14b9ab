"""The folder of results, made where there is none."""

from __future__ import annotations

from pathlib import Path

from .errors import EvaluationError

__all__ = ["folder_at"]


def folder_at(out: str | Path) -> Path:
    """A folder that is there from now on.

    Raises:
        EvaluationError: if there can be no such folder: a file is in its place, say.
    """
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EvaluationError(f"out={str(out)!r} cannot be a folder: {error}.") from error
    return folder
