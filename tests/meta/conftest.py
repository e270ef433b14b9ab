"""What the tests of the kit share: the same few examples every time."""

from __future__ import annotations

import pytest
from kit import FEW

from kvpolicy.testing import PROFILES


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same few examples every time."""
    monkeypatch.setenv("CI", "1")
    monkeypatch.setitem(PROFILES, "ci", FEW)  # type: ignore[arg-type]
