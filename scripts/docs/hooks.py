"""What `mkdocs build` does for the tutorials, whose code it runs: offline, on one core, with no progress bars.

Each page runs in an empty folder of its own, where its titled blocks are files and ``examples`` is the repository's, as
if its reader sat there. Warnings are errors, and an error ends a strict build.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, chdir, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",  # one core, and the same sums on every machine
    "PYTHONWARNINGS": "error",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
TITLED = re.compile(r"^```python title=\"(?P<name>[\w.]+)\"\n(?P<code>.*?)^```$", re.M | re.S)

_page = ExitStack()  # of the page that is being made


def on_startup(**_: Any) -> None:
    """Before torch is imported, and before any page runs a command."""
    os.environ.update(ENVIRONMENT)
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    sys.path.append(str(ROOT))  # the pictures are drawn by modules beside this one


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> None:
    """A tutorial begins."""
    if page.file.src_uri.startswith("tutorials/"):
        _page.enter_context(_folder({match["name"]: match["code"] for match in TITLED.finditer(markdown)}))


def on_page_content(html: str, **_: Any) -> None:
    """It has run."""
    _page.close()


@contextmanager
def _folder(files: dict[str, str]) -> Iterator[None]:
    """A folder with these files to run in; modules that were imported from it are forgotten afterwards."""
    with TemporaryDirectory() as name, chdir(name), warnings.catch_warnings():
        for file, code in files.items():
            Path(file).write_text(code, encoding="utf-8")
        Path("examples").symlink_to(ROOT / "examples")
        sys.path.insert(0, name)
        warnings.simplefilter("error")
        # torch.compile imports a module that uses torch's own deprecated decorator.
        warnings.filterwarnings("ignore", "`torch.jit.script_method` is", DeprecationWarning)
        try:
            yield
        finally:
            sys.path.remove(name)
            for module in {Path(file).stem for file in files}:
                sys.modules.pop(module, None)
