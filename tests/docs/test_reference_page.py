"""The reference page lists what the packages export, and nothing that is not there."""

from __future__ import annotations

import re
from types import ModuleType

import pytest
from pages import ROOT

import kvpolicy
import kvpolicy.testing
import kvpolicy_hf
import kvpolicy_hf.evaluate
import kvpolicy_hf.loading
import kvpolicy_hf.plots
import kvpolicy_hf.tune

ADAPTER = (kvpolicy_hf, kvpolicy_hf.evaluate, kvpolicy_hf.loading, kvpolicy_hf.plots, kvpolicy_hf.tune)
PACKAGES = {package.__name__: package for package in (kvpolicy, kvpolicy.testing, *ADAPTER)}
TEXT = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
ENTRIES = re.findall(r"^::: ([\w.]+)$", TEXT, re.M)


def package_of(entry: str) -> ModuleType:
    """The package that it is exported by: ``kvpolicy.testing`` before ``kvpolicy``."""
    return PACKAGES[max((name for name in PACKAGES if entry.startswith(f"{name}.")), key=len)]


@pytest.mark.parametrize("package", PACKAGES.values(), ids=PACKAGES.keys())
def test_every_public_name_is_there(package: ModuleType) -> None:
    listed = {entry.rpartition(".")[2] for entry in ENTRIES if package_of(entry) is package}
    mentioned = set(re.findall(r"[\w.]+", " ".join(re.findall(r"`([^`\n]+)`", TEXT))))
    missing = [name for name in package.__all__ if name not in listed | {word.rpartition(".")[2] for word in mentioned}]
    assert not missing


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_is_public(entry: str) -> None:
    assert entry.rpartition(".")[2] in package_of(entry).__all__
