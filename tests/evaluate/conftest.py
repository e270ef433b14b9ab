"""The demo's model, loaded once."""

from __future__ import annotations

import pytest

from kvpolicy_hf.evaluate import Subject
from kvpolicy_hf.evaluate.run import subject_of


@pytest.fixture(scope="session")
def demo() -> Subject:
    return subject_of("demo")
