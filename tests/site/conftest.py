"""The built documentation, served from this machine, in the browser that `scripts/browser.sh` finds."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).parents[2]
# What pages are made of, the code included: some pages run it.
SOURCES = ("docs", "src", "adapters", "examples", "scripts", "mkdocs.yml", "constraints.txt", "CHANGELOG.md")
LAST_WRITTEN = Path("search", "search_index.js")
BAD = {"error", "warning"}
NOBODY_ELSE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"  # whom else a page asks cannot be loaded
MOST_SECONDS = 600  # pages that run code take their time to build


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site: what ``make lint`` has built if that is up to date, else built here, once for all workers."""
    if _is_newer(ROOT / "site" / LAST_WRITTEN):
        return ROOT / "site"
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    with (shared / "site.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "site" / LAST_WRITTEN).exists():
            _build(shared / "site")
    return shared / "site"


def _is_newer(file: Path) -> bool:
    """Whether nothing that pages are made of has changed since it was written, as make would ask."""
    found = [path for name in SOURCES for path in ((ROOT / name), *(ROOT / name).rglob("*"))]
    files = [path for path in found if path.is_file() and "__pycache__" not in path.parts]
    return file.exists() and file.stat().st_mtime > max(path.stat().st_mtime for path in files)


def _build(folder: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=MOST_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """No line for each request."""


@pytest.fixture(scope="session")
def served(site: Path) -> Iterator[str]:
    """Where the site is served."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(site))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Without a browser these tests fail: they are not skipped."""
    found = subprocess.run([ROOT / "scripts" / "browser.sh", "--find"], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=found.stdout.strip(), args=[NOBODY_ELSE])
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A new page, which in the end must have met no error; what cannot be loaded is one."""
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"], reduced_motion="reduce")
    context.set_default_timeout(10_000)
    faults: list[str] = []
    context.on("weberror", lambda error: faults.append(str(error.error)))
    context.on("console", lambda said: faults.append(f"{said.text} {said.location}") if said.type in BAD else None)
    yield context.new_page()
    context.close()
    assert not faults, "\n".join(faults)


@pytest.fixture(params=["served", "from files"])
def base(request: pytest.FixtureRequest, served: str, site: Path) -> str:
    """The site's address: once on a server, once on disk."""
    return served if request.param == "served" else site.as_uri()
