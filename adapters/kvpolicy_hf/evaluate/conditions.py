"""Under which conditions a run was made: results of other conditions do not go into one table."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from .errors import EvaluationError
from .subject import Subject

__all__ = ["conditions", "hold_to"]


def conditions(subject: Subject, **settings: object) -> dict[str, str]:
    """What the numbers of a run depend on beside task, sample and arm."""
    device = subject.model.device.type
    if device == "cuda":
        import torch

        device = torch.cuda.get_device_name()
    return {
        "model": subject.name,
        "weights": subject.fingerprint,
        "dtype": str(subject.model.dtype).removeprefix("torch."),
        "device": device,
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "kvpolicy")},
        **{name: str(value) for name, value in settings.items()},
    }


def hold_to(path: Path, now: Mapping[str, str], write: bool) -> None:
    """Compare the conditions with those that a folder was made under; write them where it is new.

    Raises:
        EvaluationError: if they differ; names what.
    """
    try:
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    except ValueError as error:
        raise EvaluationError(f"{str(path)!r} is not what an evaluation wrote: {error}.") from error
    if known is None:
        if write:
            draft = path.with_suffix(".tmp")
            draft.write_text(json.dumps(dict(now), indent=2) + "\n", encoding="utf-8")
            os.replace(draft, path)
        return
    other = [
        f"{name} {known.get(name)!r}, now {now.get(name)!r}"
        for name in {**known, **now}
        if known.get(name) != now.get(name)
    ]
    if other:
        raise EvaluationError(
            f"{str(path.parent)!r} holds a run of other conditions: {'; '.join(other)}. "
            f"Hint: another folder for this run, or remove that one."
        )
