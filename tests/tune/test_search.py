"""The search on the demo's model: it finds, it judges on other samples, and it goes on where it stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import kvpolicy
from kvpolicy_hf.evaluate import EvaluationError, Subject, evaluate
from kvpolicy_hf.evaluate import batch as batch_module
from kvpolicy_hf.evaluate.run import subject_of
from kvpolicy_hf.tune import Tuned, tune

LITTLE: dict[str, Any] = {
    "keep": 0.4,
    "tasks": ["photo-where"],
    "recipes": ["h2o", "tova", "streaming_llm(sinks=2)", "k_norm"],
    "trials": 6,
    "candidates": 3,
    "answered": 4,
    "samples": 2,
    "rounds": 2,
    "records": 1,
    "test": 4,
}


@pytest.fixture(scope="module")
def demo() -> Subject:
    return subject_of("demo")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tuned")


@pytest.fixture(scope="module")
def tuned(demo: Subject, folder: Path) -> Tuned:
    return tune(demo, out=folder, **LITTLE)


def test_the_winner_is_the_best_composition_of_the_last_round(tuned: Tuned, folder: Path) -> None:
    size, ranked = tuned.rounds[-1]
    assert (len(tuned.rounds), size) == (2, 6)
    assert [value for _, value in ranked] == sorted((value for _, value in ranked), reverse=True)
    compositions = [name for name, _ in ranked if name not in LITTLE["recipes"]]
    recipes = [name for name, _ in ranked if name in LITTLE["recipes"]]
    assert (tuned.name, tuned.best_recipe) == (compositions[0], recipes[0])
    assert kvpolicy.from_json((folder / "winner.json").read_text(encoding="utf-8")) == tuned.winner


def test_a_third_goes_on_and_every_recipe_had_a_chance(tuned: Tuned) -> None:
    (_, first), (_, second) = tuned.rounds
    recipes = set(LITTLE["recipes"])
    assert recipes <= {name for name, _ in first}
    ours = [name for name, _ in first if name not in recipes]
    assert 3 <= len(ours) <= 6
    assert any(name.startswith("answered") for name in ours)
    assert len([name for name, _ in second if name not in recipes]) == -(-len(ours) // 3)
    best = [name for name, _ in first if name in recipes]
    assert {name for name, _ in second if name in recipes} == set(best[: -(-len(best) // 3)])


def test_it_is_judged_at_three_budgets_on_samples_that_the_search_did_not_see(tuned: Tuned, demo: Subject) -> None:
    arms = tuned.held_out.rows.select("policy", "keep").unique().sort("policy", "keep").rows()
    two = [(name, keep) for name in (tuned.name, tuned.best_recipe) for keep in (0.2, 0.4, 0.8)]
    assert arms == sorted([*two, ("full", 1.0)])
    asked = tuned.held_out.rows.filter(policy="full")["answer"].to_list()
    before = evaluate(demo, tasks=LITTLE["tasks"], policies=[], samples=6, records=0).rows["answer"].to_list()
    assert (len(asked), len(before)) == (4, 6)
    assert asked != before[:4]
    assert set(tuned.comparison["task"]) == {"photo-where", "all"}
    assert tuned.front["kept"].to_list() == sorted(tuned.front["kept"])
    assert tuned.front["value"].to_list() == sorted(tuned.front["value"])


def test_called_again_nothing_is_measured_twice(
    tuned: Tuned, demo: Subject, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("measured twice")

    monkeypatch.setattr(batch_module, "generate", refuse)
    again = tune(demo, out=folder, **LITTLE)
    assert (again.winner, again.rounds) == (tuned.winner, tuned.rounds)
    assert again.held_out.rows.equals(tuned.held_out.rows)


@pytest.mark.parametrize("name", ["trials", "candidates", "samples", "rounds", "records", "test"])
def test_numbers_that_are_none(demo: Subject, tmp_path: Path, name: str) -> None:
    with pytest.raises(EvaluationError, match=rf"tune\({name}=0\): {name} must be an integer >= 1"):
        tune(demo, out=tmp_path, **{**LITTLE, name: 0})


def test_a_budget_that_is_no_share(demo: Subject, tmp_path: Path) -> None:
    with pytest.raises(kvpolicy.PolicyError, match=r"^keep=20: .*Hint: --keep 0.2, or keep=0.2, is 20%.$"):
        tune(demo, out=tmp_path / "none", **{**LITTLE, "keep": 20})
    assert not (tmp_path / "none").exists()


def test_a_second_search_is_not_a_negative_one(demo: Subject, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"tune\(answered=-1\): answered must be an integer >= 0"):
        tune(demo, out=tmp_path, **{**LITTLE, "answered": -1})


@pytest.mark.parametrize(("recipes", "words"), [([], "nothing to beat"), (["h20"], "no recipe 'h20'")])
def test_recipes_that_are_none(demo: Subject, tmp_path: Path, recipes: list[str], words: str) -> None:
    with pytest.raises(kvpolicy.PolicyError, match=words):
        tune(demo, out=tmp_path, **{**LITTLE, "recipes": recipes})


def test_more_candidates_than_trials(demo: Subject, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"tune\(candidates=7\): only 6 compositions"):
        tune(demo, out=tmp_path, **{**LITTLE, "candidates": 7})
