"""What a command line may name as a policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from of_mine import ROWS, LoudValues

import kvpolicy
from kvpolicy import KeepRatio, Pipeline, Policy, PolicyError, TopK
from kvpolicy_hf.evaluate import Arm, EvaluationError, arms_of

FULL = Arm("full", 1.0, kvpolicy.full())


def test_recipes_at_every_budget_after_the_full_cache() -> None:
    assert arms_of(["h2o", "full", "elastic_cache(last=8)"], [0.5, 0.2]) == (
        FULL,
        Arm("h2o", 0.5, kvpolicy.h2o(keep=0.5)),
        Arm("h2o", 0.2, kvpolicy.h2o(keep=0.2)),
        Arm("elastic_cache(last=8)", 0.5, kvpolicy.elastic_cache(keep=0.5, last=8)),
        Arm("elastic_cache(last=8)", 0.2, kvpolicy.elastic_cache(keep=0.2, last=8)),
    )


def test_without_names_every_recipe_that_needs_a_budget_alone() -> None:
    named = kvpolicy.catalogue(keep=0.3)
    assert arms_of(None, [0.3]) == (FULL, *(Arm(name, 0.3, named[name]) for name in named if name != "full"))


def test_a_policy_with_its_own_budget_is_one_arm() -> None:
    assert arms_of(["h2o(rows=24)", "of_mine:ROWS"], [0.5, 0.2]) == (
        FULL,
        Arm("h2o(rows=24)", None, kvpolicy.h2o(rows=24)),
        Arm("ROWS", None, ROWS),
    )


def test_a_scorer_becomes_a_policy() -> None:
    pipeline = Pipeline(schedule=KeepRatio(0.2), score=LoudValues(power=2.0), select=TopK(recent=0.5))
    expected = Policy(prefill=pipeline, decode=pipeline)
    assert arms_of(["of_mine:LoudValues(power=2.0)"], [0.2])[1:] == (Arm("LoudValues(power=2.0)", 0.2, expected),)


def test_a_function_of_the_budget_makes_a_policy() -> None:
    assert arms_of(["of_mine:half_of_h2o"], [0.4])[1] == Arm("half_of_h2o", 0.4, kvpolicy.h2o(keep=0.2))
    assert arms_of(["of_mine:half_of_h2o(keep=0.4)"], [0.9])[1].keep is None


def test_policies_by_labels_of_ones_own() -> None:
    half = {"loud": LoudValues(power=2.0), "class": LoudValues, "made": lambda keep: kvpolicy.h2o(keep=keep / 2)}
    loud, plain = (arms_of([f"of_mine:LoudValues(power={power})"], [0.4])[1].policy for power in (2.0, 1.0))
    assert arms_of({**half, "own": ROWS, "name": "tova"}, [0.4]) == (
        FULL,
        Arm("loud", 0.4, loud),
        Arm("class", 0.4, plain),
        Arm("made", 0.4, kvpolicy.h2o(keep=0.2)),
        Arm("own", None, ROWS),
        Arm("name", 0.4, kvpolicy.tova(keep=0.4)),
    )


def test_arms_stay_what_they_are_beside_names() -> None:
    arm = Arm("h2o", 0.3, kvpolicy.h2o(keep=0.3))
    assert arms_of([arm, FULL, "tova"], [0.5]) == (FULL, arm, Arm("tova", 0.5, kvpolicy.tova(keep=0.5)))


@pytest.mark.parametrize(("ending", "write"), [("json", kvpolicy.to_json), ("toml", kvpolicy.to_toml)])
def test_a_file_of_a_policy(tmp_path: Path, ending: str, write: object) -> None:
    file = tmp_path / f"tuned.{ending}"
    file.write_text(write(kvpolicy.h2o(keep=0.3)), encoding="utf-8")  # type: ignore[operator]
    assert arms_of([str(file)], [0.5, 0.2]) == (FULL, Arm("tuned", None, kvpolicy.h2o(keep=0.3)))


@pytest.mark.parametrize(
    ("targets", "keeps", "error", "words"),
    [
        (["h2o"], [], EvaluationError, "keeps is empty"),
        (["h2o"], [0.5, 0.5], EvaluationError, r"keeps: \[0.5, 0.5\] has 0.5 twice"),
        (["h2o", "h2o"], [0.5], EvaluationError, "has 'h2o' twice"),
        ([LoudValues()], [0.5], EvaluationError, "has no label"),
        ({"mine": [1]}, [0.5], PolicyError, "policy 'mine' is a list, neither a policy nor a scorer"),
        (["h2o"], [0.5, 20], PolicyError, r"^keep=20: .*Hint: --keep 0.2, or keep=0.2, is 20%.$"),
        (["h20"], [0.5], PolicyError, "no recipe 'h20'"),
        (["nowhere.json"], [0.5], PolicyError, "nowhere.json"),
        (["of_mine:LIST"], [0.5], PolicyError, "is a list, neither a policy nor a scorer"),
        (["of_mine:Nobody"], [0.5], PolicyError, "has no 'Nobody'"),
        (["no_such_module:It"], [0.5], PolicyError, "no module 'no_such_module'"),
    ],
)
def test_what_is_no_policy(targets: Any, keeps: list[float], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        arms_of(targets, keeps)


def test_two_targets_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.json").write_text(kvpolicy.to_json(kvpolicy.h2o(keep=0.3)), encoding="utf-8")
    with pytest.raises(EvaluationError, match="'mine' twice"):
        arms_of([str(tmp_path / "a" / "mine.json"), str(tmp_path / "b" / "mine.json")], [0.5])
