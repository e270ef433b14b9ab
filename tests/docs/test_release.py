"""What is released: one version everywhere, and files that anybody can build again, byte for byte."""

from __future__ import annotations

import tarfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from pages import ROOT, script

import kvpolicy

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture
def release() -> Iterator[ModuleType]:
    with script("release") as module:
        yield module


def test_the_version_is_one() -> None:
    assert PROJECT["version"] == kvpolicy.__version__


def test_every_python_that_is_named_is_tried() -> None:
    named = {line.rpartition(" ")[2] for line in PROJECT["classifiers"] if ":: Python :: 3." in line}
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert named == {python for python in ("3.11", "3.12", "3.13", "3.14") if f'"{python}"' in workflow}
    assert PROJECT["requires-python"] == f">={min(named)}"


def test_built_twice_it_is_the_same(release: ModuleType, tmp_path: Path) -> None:
    sdist, wheel = release.release(tmp_path, tag=f"v{kvpolicy.__version__}")
    assert (sdist.name, wheel.name) == (
        f"kvpolicy-{kvpolicy.__version__}.tar.gz",
        f"kvpolicy-{kvpolicy.__version__}-py3-none-any.whl",
    )


def test_a_tag_of_another_version_is_refused(release: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(release.ReleaseError, match="the tag is v9"):
        release.release(tmp_path, tag="v9")
    assert not list(tmp_path.iterdir())


def test_another_file_is_noticed(release: ModuleType, tmp_path: Path) -> None:
    one, other = tmp_path / "one.whl", tmp_path / "there" / "one.whl"
    other.parent.mkdir()
    one.write_bytes(b"1")
    other.write_bytes(b"2")
    with pytest.raises(release.ReleaseError, match="is another file"):
        release.check_same([one], [other])


def test_an_sdist_that_lacks_a_file_is_noticed(release: ModuleType, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "kvpolicy-1.tar.gz", "w:gz") as archive:
        archive.add(ROOT / "LICENSE", "kvpolicy-1/LICENSE")
    with pytest.raises(release.ReleaseError, match=r"lacks CHANGELOG\.md, CITATION\.cff"):
        release.check_sdist(tmp_path / "kvpolicy-1.tar.gz")
