"""The tutorials run while the documentation is built, and a block that fails ends a strict build."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from pages import ROOT, runs_in_the_build

FOLDER = ROOT / "docs" / "tutorials"
PAGES = sorted(FOLDER.glob("*.md"))
RUN = [page for page in PAGES if runs_in_the_build(page)]
NAV = re.findall(r": tutorials/([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.M)

# A site with one tutorial, made as ours are.
CONFIG = f"""\
site_name: one page
docs_dir: docs
theme: {{name: material, font: false}}
hooks: [{ROOT / "scripts" / "docs" / "hooks.py"}]
plugins:
  - markdown-exec:
      languages: [python, console]
markdown_extensions: [pymdownx.superfences]
"""

PASSES = """\
# Page

```python title="mine.py"
def seven():
    return 7
```

```python exec="1" source="above" result="text" session="page"
from mine import seven

number = seven()
```

```python exec="1" session="page"
from pathlib import Path
from scripts.docs.framed import framed

Path("left.txt").write_text("by the page")
print(framed(f"it is {number}"))
```

```console exec="1" source="console"
$ cat left.txt
```
"""


def build(page: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What `mkdocs build --strict` says of a tutorial."""
    (folder / "docs" / "tutorials").mkdir(parents=True)
    (folder / "docs" / "tutorials" / "index.md").write_text(page, encoding="utf-8")
    (folder / "mkdocs.yml").write_text(CONFIG, encoding="utf-8")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, encoding="utf-8", check=False)


def test_a_page_has_its_files_its_session_and_a_folder(tmp_path: Path) -> None:
    ran = build(PASSES, tmp_path)
    assert ran.returncode == 0, ran.stderr
    made = (tmp_path / "site" / "tutorials" / "index.html").read_text(encoding="utf-8")
    assert "it is 7" in made
    assert "by the page" in made
    assert not list(tmp_path.rglob("left.txt")), "what a page writes is gone with its folder"


@pytest.mark.parametrize(
    ("block", "says"),
    [
        ('```python exec="1"\n1 / 0\n```\n', "ZeroDivisionError"),
        ('```python exec="1"\nassert 1 == 2\n```\n', "AssertionError"),
        ('```python exec="1"\nimport warnings\nwarnings.warn("soon gone", FutureWarning)\n```\n', "FutureWarning"),
        ('```console exec="1"\n$ kvpolicy explain nothing_of_this_name\n```\n', "exited with unexpected code"),
    ],
)
def test_a_block_that_fails_ends_the_build(block: str, says: str, tmp_path: Path) -> None:
    ran = build(PASSES + "\n" + block, tmp_path)
    assert ran.returncode == 1
    assert says in ran.stderr
    assert "in strict mode" in ran.stdout


def test_nothing_in_the_makefile_silences_what_strict_counts() -> None:
    """`mkdocs build --quiet` does not even count warnings, and so passes whatever a page does."""
    commands = re.findall(r"mkdocs build.*", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert commands
    assert all("--strict" in command and "quiet" not in command and "-q" not in command for command in commands)


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_every_block_is_run_or_imported(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for kind, title in re.findall(r"^```python(?: (exec)=\"1\".*| title=\"(\w+)\.py\"|.*)$", text, re.M):
        assert kind or re.search(rf"\b{title}\b(?: import |:)", text.partition(f'title="{title}.py"')[2])


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_a_page_has_one_session(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    fences = re.findall(r"^```python exec=.*", text, re.M)
    sessions = [re.search(r"session=\"(\w+)\"", fence) for fence in fences]
    assert len({found and found[1] for found in sessions}) == 1


def test_the_index_lists_all_pages_in_the_order_of_the_navigation() -> None:
    index = (FOLDER / "index.md").read_text(encoding="utf-8")
    assert re.findall(r"^\d+\. \[[^\]]+\]\(([\w-]+\.md)\)", index, re.M) == NAV
    assert sorted([*NAV, "index.md"]) == [page.name for page in PAGES]


@pytest.mark.parametrize(("page", "following"), list(pairwise(NAV)))
def test_a_page_ends_with_the_next(page: str, following: str) -> None:
    last = (FOLDER / page).read_text(encoding="utf-8").strip().rpartition("\n\n")[2]
    assert last.startswith("**Next:**")
    assert f"]({following})" in last
