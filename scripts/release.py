"""Build the files of a release, and hold them to what they must be.

    python -m scripts.release                  # into dist/
    python -m scripts.release --tag v0.1.0     # as the release workflow does: the tag must be the version

They are built from the checkout, and again from the sdist that came of it, unpacked somewhere else, with other dates
and other permissions. Both times they must be the same bytes: then neither place nor time is in them, the sdist holds
all that it takes to build the wheel, and anybody can check what was published.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
DEMO = "adapters/kvpolicy_hf/demo/assets/NOTICE"
SDIST_HOLDS = (
    "CHANGELOG.md CITATION.cff CONTRIBUTING.md LICENSE Makefile README.md SECURITY.md constraints.txt pyproject.toml "
    f"docs/index.md src/kvpolicy/py.typed tests/conftest.py {DEMO}"
).split()
WHEEL_HOLDS = {"kvpolicy", "kvpolicy_hf", "_kvpolicy_pytest.py"}
LONG_AGO = 1_000_000_000  # 2001


class ReleaseError(Exception):
    """What keeps these files from being a release."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder of the two files")
    parser.add_argument("--tag", help="of the commit that is released, such as v0.1.0")
    options = parser.parse_args(arguments)
    try:
        release(options.out, options.tag)
    except ReleaseError as error:
        sys.exit(f"release: {error}")


def release(out: Path, tag: str | None = None) -> list[Path]:
    """Build, check, and copy to `out` the sdist and the wheel.

    Raises:
        ReleaseError: if the tag is not the version, two builds differ, or a file holds too little or too much.
    """
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    if tag is not None and tag != f"v{version}":
        raise ReleaseError(f"the tag is {tag}, and the version {version}. Hint: v{version}.")
    with TemporaryDirectory(prefix="kvpolicy-release-") as folder:
        work = Path(folder)
        first = build(ROOT, work / "first")
        second = build(unpacked(first[0], work / "elsewhere"), work / "second")
        check_same(first, second)
        check_sdist(first[0])
        check_wheel(first[1])
        out.mkdir(parents=True, exist_ok=True)
        made = [Path(shutil.copy(path, out)) for path in first]
    for path in made:
        print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}")
    return made


def build(tree: Path, out: Path) -> tuple[Path, Path]:
    """The sdist and the wheel, each straight from the tree, by the hatchling that is installed.

    hatchling gives every file one date, unless SOURCE_DATE_EPOCH says another.
    """
    environment = {name: value for name, value in os.environ.items() if name != "SOURCE_DATE_EPOCH"}
    command = [sys.executable, "-m", "build", "--no-isolation", "--sdist", "--wheel", "--outdir", str(out), str(tree)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ReleaseError(f"{tree} cannot be built:\n{done.stdout}{done.stderr}")
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


def unpacked(sdist: Path, folder: Path) -> Path:
    """The sdist's tree, with other dates than it was packed with, and for nobody but its owner."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(path.stat().st_mode & 0o700)
            os.utime(path, (LONG_AGO, LONG_AGO))
    (tree,) = folder.iterdir()
    return tree


def check_same(first: Sequence[Path], second: Sequence[Path]) -> None:
    """That two builds are the same bytes."""
    for one, other in zip(first, second, strict=True):
        if one.name != other.name or one.read_bytes() != other.read_bytes():
            raise ReleaseError(f"{one.name}, built again from the sdist, is another file.")


def check_sdist(sdist: Path) -> None:
    """That it brings its licences, its citation and its tests."""
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers()}
    if lacking := [name for name in SDIST_HOLDS if name not in names]:
        raise ReleaseError(f"{sdist.name} lacks {', '.join(lacking)}.")


def check_wheel(wheel: Path) -> None:
    """That it brings its licences, and nothing but the packages."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    about = "-".join(wheel.name.split("-")[:2]) + ".dist-info"
    if strange := sorted({name.partition("/")[0] for name in names} - WHEEL_HOLDS - {about}):
        raise ReleaseError(f"{wheel.name} holds {', '.join(strange)}, which is none of its packages.")
    if tests := [name for name in names if Path(name).name.startswith(("test_", "conftest"))]:
        raise ReleaseError(f"{wheel.name} holds tests: {', '.join(tests)}.")
    needed = [f"{about}/licenses/LICENSE", f"{about}/licenses/{DEMO}", "kvpolicy/py.typed", "kvpolicy_hf/py.typed"]
    if lacking := [name for name in needed if name not in names]:
        raise ReleaseError(f"{wheel.name} lacks {', '.join(lacking)}.")


if __name__ == "__main__":
    main()
