"""The shipped demo model answers new layouts, and the script that measures it tells policies apart."""

from __future__ import annotations

import runpy

import pytest
from pages import ROOT

import kvpolicy
from kvpolicy_hf import enable
from kvpolicy_hf.loading import load_model

SCRIPT = runpy.run_path(str(ROOT / "scripts" / "measure_demo_accuracy.py"))


@pytest.fixture(scope="module")
def accuracy():
    model, processor = load_model("demo")
    enable(model)
    cases = SCRIPT["draw_questions"](64)

    def of(policy: kvpolicy.Policy) -> float:
        said, _ = SCRIPT["answers"](model, processor, cases, policy)
        return sum(text == question.answer for text, (_, question) in zip(said, cases, strict=True)) / len(cases)

    return of


def test_the_full_cache_answers_new_layouts(accuracy) -> None:
    assert accuracy(kvpolicy.full()) >= 0.97


@pytest.mark.parametrize("name", ["elastic_cache", "h2o", "streaming_llm"])
def test_a_policy_that_may_keep_everything_loses_nothing(accuracy, name: str) -> None:
    assert accuracy(kvpolicy.RECIPES[name](keep=1.0)) == accuracy(kvpolicy.full())


def test_a_tight_budget_costs_answers(accuracy) -> None:
    assert accuracy(kvpolicy.streaming_llm(keep=0.2)) < 0.6


def test_the_interval_holds_the_share() -> None:
    assert SCRIPT["wilson"](50, 100) == "50.0% [40%, 60%]"  # textbook: 0.404 to 0.596
    assert SCRIPT["wilson"](0, 10).startswith("0.0% [0%, 28%")
