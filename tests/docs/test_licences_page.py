"""The page of licences lists what is declared and what that brings, each under a licence that is allowed."""

from __future__ import annotations

import re
from importlib.metadata import version
from types import ModuleType

import pytest
from packaging.utils import canonicalize_name
from pages import ROOT, script

PAGE = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8")
ROWS = {name: (what, extras) for name, what, extras in re.findall(r"^\| ([\w-]+) \| (.+) \| (.+) \|$", PAGE, re.M)}
EXTRAS = re.findall(r"^\| `?(\w+)`? \| [^|]+ \|$", PAGE, re.M)[1:]  # without the head

with script("licences") as licences:
    DECLARED = licences.declared()
    TABLES = licences.tables()


def test_every_extra_for_users_is_described() -> None:
    assert list(DECLARED) == EXTRAS


def test_what_is_declared_is_listed_and_nothing_else() -> None:
    direct = PAGE.partition("<!-- end of direct dependencies")[0].partition("<!-- direct dependencies")[2]
    listed = re.findall(r"^\| ([\w-]+) \| ", direct, re.M)[1:]
    assert listed == sorted({canonicalize_name(r.name) for requirements in DECLARED.values() for r in requirements})


@pytest.mark.parametrize("name", TABLES)
def test_what_is_installed_is_listed_as_it_is(name: str) -> None:
    assert TABLES[name]
    for package, (licence, extras) in TABLES[name].items():
        assert ROWS[package][0] == licence
        assert set(ROWS[package][1].split(", ")) <= set(extras.split(", "))  # torch for CUDA brings triton to more


def test_what_is_listed_is_of_the_pinned_versions() -> None:
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)
    assert set(ROWS) - {"package"} <= set(map(canonicalize_name, pinned))


@pytest.mark.parametrize("package", sorted(set(ROWS) - {"package"}))
def test_its_licence_is_allowed(package: str) -> None:
    assert licences.parts(ROWS[package][0]) <= licences.ALLOWED


class TestReading:
    """What a package says, in SPDX's names."""

    @pytest.fixture
    def says(self, monkeypatch: pytest.MonkeyPatch):
        def says(**lines: str | list[str]) -> ModuleType:
            class About:
                def get(self, name: str) -> object:
                    return lines.get(name.replace("-", "_"))

                def get_all(self, name: str, missing: list[str]) -> object:
                    return lines.get(name, missing)

            monkeypatch.setattr(licences, "metadata", lambda _: About())
            return licences

        return says

    def test_an_expression_comes_first(self, says) -> None:
        module = says(License_Expression="mit or apache-2.0", Classifier=["License :: OSI Approved :: BSD License"])
        assert module.licence("x") == "MIT OR Apache-2.0"
        assert module.parts("MIT AND (Apache-2.0 WITH LLVM-exception OR BSD-2-Clause)") == {
            "MIT",
            "Apache-2.0",
            "LLVM-exception",
            "BSD-2-Clause",
        }

    def test_then_classifiers_then_words(self, says) -> None:
        assert says(Classifier=["License :: OSI Approved :: BSD License"], License="?").licence("x") == "BSD"
        assert says(License="Apache 2.0 License").licence("x") == "Apache-2.0"

    @pytest.mark.parametrize("words", ["", "Ask me"])
    def test_what_is_not_known_is_an_error(self, words: str, says) -> None:
        with pytest.raises(ValueError, match=r"x says .*Hint: read its licence"):
            says(License=words).licence("x")

    def test_a_licence_that_is_not_allowed(self, says) -> None:
        assert not licences.parts(says(License_Expression="GPL-3.0-only").licence("x")) <= licences.ALLOWED


def test_the_pinned_versions_are_those_that_were_read() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pinned = {canonicalize_name(name): number for name, number in re.findall(r"^([\w.-]+)==(\S+)$", text, re.M)}
    read = [package for table in TABLES.values() for package in table]
    assert {package: version(package).partition("+")[0] for package in read} == {p: pinned[p] for p in read}
