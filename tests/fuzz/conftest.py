"""A file that holds a sound record, to be damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
from records import tiny

from kvpolicy_hf.simulate import save_record


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound file, whose bytes are `WHOLE`."""
    made = tmp_path_factory.mktemp("records") / "one.safetensors"
    save_record(tiny(), made)
    return made


@pytest.fixture(scope="module")
def whole(path: Path) -> bytes:
    return path.read_bytes()
