"""Records as files: one safetensors file, its numbers bit by bit as the model computed them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .record import Record, RecordError

__all__ = ["load_record", "save_record"]

FORMAT, VERSION = "kvpolicy-record", "1"
PER_LAYER = ("queries", "keys", "values")


def save_record(record: Record, path: str | Path) -> None:
    """Write a record; a file of that name is replaced.

    Tensors: ``tokens``, ``segments``, ``layers.<l>.queries|keys|values``, and ``inv_freq`` where there is one.
    Metadata: ``format``, ``version``, ``model``, ``prompt`` and ``scales`` (JSON).

    Args:
        record: what is written.
        path: of the file, such as ``"demo.safetensors"``.

    Raises:
        RecordError: if the file cannot be written.
    """
    about = {
        "format": FORMAT,
        "version": VERSION,
        "model": record.model,
        "prompt": str(record.prompt),
        "scales": json.dumps(list(record.scales)),
    }
    try:
        save_file({name: data.contiguous() for name, data in _named(record).items()}, path, about)
    except (OSError, SafetensorError) as error:
        raise RecordError(f"cannot write the record {str(path)!r}: {error}.") from error


def load_record(path: str | Path) -> Record:
    """Read a record.

    Args:
        path: of a file that `save_record` wrote.

    Raises:
        RecordError: if there is no such file, it is no record, was made by another version, or is damaged.
    """
    if not _is_file(path):
        raise RecordError(
            f"no record {str(path)!r}. Hint: `kvpolicy simulate --record {str(path)!r}` makes one with the demo's "
            f"model; kvpolicy_hf.simulate.record() makes one with yours."
        )
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            _check_format(about, path)
            tensors = {name: _tensor(file, name, path) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise RecordError(
            f"{str(path)!r} is not a safetensors file, or only a part of one ({error}). Hint: record it again."
        ) from error
    try:
        return _record(about, tensors)
    except KeyError as error:
        raise RecordError(f"the record {str(path)!r} lacks {error}. Hint: record it again.") from None
    except (ValueError, OverflowError, RecursionError) as error:
        raise RecordError(f"the record {str(path)!r} is damaged: {error} Hint: record it again.") from error


def _is_file(path: str | Path) -> bool:
    try:
        return Path(path).is_file()
    except OSError:  # a name that no file can have
        return False


def _tensor(file: Any, name: str, path: str | Path) -> Tensor:
    """A copy: the file may be written again while its record is in use."""
    try:
        tensor: Tensor = file.get_tensor(name).clone()
    except (TypeError, RuntimeError) as error:  # sizes beyond torch's; below the first line stands its C++ stack
        reason = str(error).partition("\n")[0]
        raise RecordError(
            f"the record {str(path)!r} is damaged: {name[:80]!r} cannot be read: {reason}. Hint: record it again."
        ) from error
    return tensor


def _check_format(about: dict[str, str], path: str | Path) -> None:
    if about.get("format") != FORMAT:
        raise RecordError(
            f"{str(path)!r} is a safetensors file, but no record: its metadata lacks format={FORMAT!r}. "
            f"Hint: kvpolicy_hf.simulate.record() makes records."
        )
    if about.get("version") != VERSION:
        raise RecordError(
            f"{str(path)!r} is a record of version {about.get('version')!r}; this kvpolicy reads version {VERSION!r}. "
            f"Hint: record it again."
        )


def _record(about: dict[str, str], tensors: dict[str, Tensor]) -> Record:
    scales = _scales(about["scales"])
    layers = {kind: [tensors[f"layers.{layer}.{kind}"] for layer in range(len(scales))] for kind in PER_LAYER}
    record = Record(
        model=about["model"],
        prompt=_prompt(about["prompt"]),
        scales=scales,
        tokens=tensors["tokens"],
        segments=tensors["segments"],
        inv_freq=tensors.get("inv_freq"),
        **layers,
    )
    if strange := sorted(tensors.keys() - _named(record).keys()):
        raise ValueError(f"a record of {len(scales)} layers has no tensor {strange[0][:80]!r}.")
    return record


def _scales(text: str) -> list[float]:
    scales = json.loads(text)
    if not isinstance(scales, list) or not all(type(scale) in (int, float) for scale in scales):
        raise ValueError(f"scales are {text[:80]!r}, not a list of numbers.")
    return [float(scale) for scale in scales]


def _prompt(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"prompt is {text[:80]!r}, not a number of tokens.")
    return int(text)


def _named(record: Record) -> dict[str, Tensor]:
    """The tensors of a record by their names in a file."""
    tensors = {"tokens": record.tokens, "segments": record.segments}
    for kind in PER_LAYER:
        tensors |= {f"layers.{layer}.{kind}": data for layer, data in enumerate(getattr(record, kind))}
    return tensors if record.inv_freq is None else tensors | {"inv_freq": record.inv_freq}
