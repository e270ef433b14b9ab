"""The reference lists what the packages export, nothing that is not there, and says what every argument is."""

from __future__ import annotations

import enum
import inspect
import re
from types import ModuleType
from typing import Any

import pytest
from pages import ROOT, script

import kvpolicy
import kvpolicy.testing
import kvpolicy_hf
import kvpolicy_hf.evaluate
import kvpolicy_hf.evaluate.tasks
import kvpolicy_hf.loading
import kvpolicy_hf.plots
import kvpolicy_hf.simulate
import kvpolicy_hf.tune

MODULES = (
    kvpolicy_hf.evaluate,
    kvpolicy_hf.evaluate.tasks,
    kvpolicy_hf.loading,
    kvpolicy_hf.plots,
    kvpolicy_hf.simulate,
    kvpolicy_hf.tune,
)
PACKAGES = {package.__name__: package for package in (kvpolicy, kvpolicy.testing, kvpolicy_hf, *MODULES)}
PAGES = sorted((ROOT / "docs" / "reference").glob("*.md"))
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
ENTRIES = re.findall(r"^::: ([\w.]+)$", TEXT, re.M)
MENTIONED = set(re.findall(r"`(kvpolicy[\w.]+)`", TEXT))


def package_of(entry: str) -> ModuleType:
    """The package that it is exported by: ``kvpolicy.testing`` before ``kvpolicy``."""
    return PACKAGES[max((name for name in PACKAGES if entry.startswith(f"{name}.")), key=len)]


def exported(package: ModuleType) -> dict[str, Any]:
    """What is called or made, by name; constants, types of arguments and modules are not."""
    found = {name: getattr(package, name) for name in package.__all__}
    called = {name: what for name, what in found.items() if inspect.isclass(what) or inspect.isfunction(what)}
    return {name: what for name, what in called.items() if what is not Any}  # arrays, to a type checker


def described() -> dict[str, Any]:
    """Exported functions and classes whose arguments are their own."""
    found = {f"{name}.{one}": what for name, package in PACKAGES.items() for one, what in exported(package).items()}
    return {
        name: what
        for name, what in found.items()
        if inspect.isfunction(what)
        or not (issubclass(what, (Exception, enum.Enum)) or getattr(what, "_is_protocol", False))
    }


@pytest.mark.parametrize("package", PACKAGES.values(), ids=PACKAGES.keys())
def test_every_function_and_class_has_an_entry(package: ModuleType) -> None:
    listed = {entry.rpartition(".")[2] for entry in ENTRIES if package_of(entry) is package}
    assert not set(exported(package)) - listed


@pytest.mark.parametrize("package", PACKAGES.values(), ids=PACKAGES.keys())
def test_everything_else_is_mentioned(package: ModuleType) -> None:
    aliases = set(re.findall(r"^\| `(\w+)` \|", TEXT, re.M))  # the table of arrays
    mentioned = {name.rpartition(".")[2] for name in MENTIONED if name.startswith(f"{package.__name__}.")} | aliases
    modules = {name for name in package.__all__ if inspect.ismodule(getattr(package, name))}
    entries = {entry.rpartition(".")[2] for entry in ENTRIES}
    assert not set(package.__all__) - set(exported(package)) - mentioned - (modules & entries)


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_is_public(entry: str) -> None:
    assert entry.rpartition(".")[2] in package_of(entry).__all__


def test_every_entry_is_on_one_page() -> None:
    assert len(ENTRIES) == len(set(ENTRIES))


def test_the_index_links_every_page() -> None:
    index = (ROOT / "docs" / "reference" / "index.md").read_text(encoding="utf-8")
    assert {page.name for page in PAGES} - set(re.findall(r"\]\((\w+\.md)\)", index)) == {"index.md"}


@pytest.mark.parametrize("name", described())
def test_a_docstring_says_what_every_argument_is(name: str) -> None:
    what = described()[name]
    doc = inspect.getdoc(what) or ""
    wanted = [one for one in inspect.signature(what).parameters if not one.startswith("_")]
    assert not [one for one in wanted if not re.search(rf"^ {{4}}\*{{0,2}}{one}(?: \(.*\))?:", doc, re.M)]


def test_nothing_public_changes_by_accident() -> None:
    with script("public_names") as names:
        assert set(PACKAGES) == set(names.PACKAGES)
        said = names.FILE.read_text(encoding="utf-8").splitlines()
        assert names.rendered().splitlines() == said, "if it is meant: python -m scripts.public_names, and CHANGELOG.md"
