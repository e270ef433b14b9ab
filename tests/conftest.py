"""What every test shares: hypothesis profiles, one thread a worker, and the device that models run on."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)  # pytest-xdist runs one worker a core
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # triton reads it when it is imported, whoever does that first

_COMMON = settings(deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("dev", _COMMON, max_examples=25)
settings.register_profile("ci", _COMMON, max_examples=25, derandomize=True)
settings.register_profile("nightly", _COMMON, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--device cuda`` runs the tests that take the fixture `device` on an accelerator."""
    parser.addoption("--device", default="cpu", help="torch device of the models in tests/compositions")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Under ``--cov`` only tests/unit and tests/fuzz are traced: they cover the core, and tracing costs time."""
    if config.pluginmanager.hasplugin("_cov"):
        tests = config.rootpath / "tests"
        for item in items:
            if not {tests / "unit", tests / "fuzz"} & set(item.path.parents):
                item.add_marker("no_cover")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """Where models run."""
    name: str = request.config.getoption("--device")
    return name
