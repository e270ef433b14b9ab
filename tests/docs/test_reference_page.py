"""The reference page lists what the packages export, and nothing that is not there."""

from __future__ import annotations

import importlib
import re
from types import ModuleType

import pytest
from pages import ROOT

import kvpolicy
import kvpolicy_hf

TEXT = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
ENTRIES = re.findall(r"^::: ([\w.]+)$", TEXT, re.M)


@pytest.mark.parametrize("package", [kvpolicy, kvpolicy_hf], ids=lambda package: package.__name__)
def test_every_public_name_is_there(package: ModuleType) -> None:
    listed = {entry.rpartition(".")[2] for entry in ENTRIES if entry.partition(".")[0] == package.__name__}
    mentioned = set(re.findall(r"[\w.]+", " ".join(re.findall(r"`([^`\n]+)`", TEXT))))
    missing = [name for name in package.__all__ if name not in listed | {word.rpartition(".")[2] for word in mentioned}]
    assert not missing


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_is_public(entry: str) -> None:
    package = importlib.import_module(entry.partition(".")[0])
    assert entry.rpartition(".")[2] in package.__all__
