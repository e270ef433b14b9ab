"""The pytest plug-in of kvpolicy: two options, and the parameters of `parametrize_with_checks`.

It is a module of its own so that pytest, which loads it in every run, does not import kvpolicy where it is not used.
"""

from __future__ import annotations

from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where and how long the checks of kvpolicy's conformance kit run."""
    group = parser.getgroup("kvpolicy", "kvpolicy's conformance kit")
    group.addoption(
        "--kvpolicy-backend",
        action="append",
        metavar="NAME",
        help="run checks on this backend (numpy, torch, torch:cuda) in place of those that the tests name; repeatable",
    )
    group.addoption(
        "--kvpolicy-profile",
        metavar="NAME",
        help="examples for each law, at most: quick (15) and ci (50) try the same ones every time, dev (25) and "
        "nightly (1,000) others",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Fill in what `parametrize_with_checks` asked for."""
    wanted = getattr(metafunc.function, "_kvpolicy_checks", None)
    if wanted is None:
        return
    from kvpolicy import KVPolicyError

    try:
        params = wanted.params(
            metafunc.config.getoption("--kvpolicy-backend"), metafunc.config.getoption("--kvpolicy-profile")
        )
    except KVPolicyError as error:
        # Of a collector's own error pytest prints the message alone, without the way that led to it.
        raise pytest.Collector.CollectError(f"{metafunc.function.__name__}: {error}") from error
    metafunc.parametrize(("component", "check"), params)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Tell checks that they will run: later ones may then leave a failure to them."""
    for item in session.items:
        check: Any = getattr(getattr(item, "callspec", None), "params", {}).get("check")
        if hasattr(check, "collected"):
            check.collected = True
