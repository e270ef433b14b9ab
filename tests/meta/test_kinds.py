"""Which kind of component something is."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from kit import OfLength

import kvpolicy as kv
from kvpolicy.backends.numpy import NumpyBackend
from kvpolicy.testing import Check, checks, checks_of
from kvpolicy.testing._subject import kind_of, subject_of


class TestKinds:
    @pytest.mark.parametrize(
        ("component", "kind"),
        [
            (kv.h2o(keep=0.5), "Policy"),
            (NumpyBackend(), "Backend"),
            (kv.KeyNorm(), "ImportanceScorer"),
            (kv.KeepRatio(0.5), "Scheduler"),
            (kv.Uniform(), "Allocator"),
            (kv.TopK(), "Selector"),
            (kv.Drop(), "Merger"),
            (kv.MostSimilar(), "Assigner"),
            (kv.Mean(), "Weigher"),
            (kv.TopRecall(kv.Recency()), "Recaller"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_by_their_method(self, component: Any, kind: str) -> None:
        assert kind_of(component).name == kind
        about = checks_of(component, backend="numpy")
        assert list(about) == list(checks.LAWS)
        assert sum(isinstance(check, Check) for check in about.values()) >= 8

    def test_a_pipeline_is_a_policy(self) -> None:
        pipeline = kv.Pipeline(schedule=kv.FixedRows(2), score=kv.Recency())
        assert subject_of(pipeline).component == kv.Policy(prefill=pipeline, decode=pipeline)

    @pytest.mark.parametrize(
        ("component", "said"),
        [
            (3, "3 is neither a Policy nor a stage: it has none of the methods attention_mass (Backend), score"),
            (kv.TopK, "TopK is a class; the kit checks an instance. Hint: TopK(...)."),
            (np, "'numpy' is a module; the kit checks an instance of a class in it."),
            (None, "None is neither a Policy nor a stage"),
        ],
    )
    def test_what_is_none(self, component: Any, said: str) -> None:
        with pytest.raises(kv.PolicyError, match=re.escape(said)):
            kind_of(component)

    def test_what_is_several(self) -> None:
        class Both(OfLength):
            def score(self, view: Any, step: Any) -> Any: ...

        with pytest.raises(kv.PolicyError, match=r"several kinds: ImportanceScorer, Scheduler\. Hint: one class for"):
            kind_of(Both())
