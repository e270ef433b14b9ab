"""The space of compositions: whatever is chosen is a policy, and every choice makes a difference."""

from __future__ import annotations

import optuna
import pytest
from optuna.trial import FixedTrial

import kvpolicy
from kvpolicy import KeepRatio, LikePrompt, Pipeline, Policy, TopK
from kvpolicy_hf.tune import suggest
from kvpolicy_hf.tune.space import starts

PLAIN = {
    "score": "mass",
    "heads": "each",
    "allocate": "uniform",
    "first": 0,
    "last": 0,
    "recent": 0.5,
    "merge": "drop",
    "decode": "as the prompt",
}


def made(keep: float = 0.3, *, pictures: bool = False, **choices: object) -> Policy:
    return suggest(FixedTrial({**PLAIN, **choices}), pictures=pictures)(keep)


def test_h2o_is_in_it() -> None:
    pipeline = Pipeline(schedule=KeepRatio(0.3), score=kvpolicy.AttentionMass(), select=TopK(recent=0.5))
    decode = Pipeline(
        schedule=KeepRatio(0.3), score=kvpolicy.AttentionMass(), allocate=LikePrompt(), select=TopK(recent=0.5)
    )
    assert made() == Policy(prefill=pipeline, decode=decode)
    assert made(0.1) == made(keep=0.1) != made()


def test_snapkv_is_in_it() -> None:
    found = made(score="pooled", window=32, kernel=7, pool="mean", recent=0.0, decode="never")
    assert found == kvpolicy.snapkv(keep=0.3)


@pytest.mark.parametrize("pictures", [False, True])
def test_a_search_begins_with_published_compositions(pictures: bool) -> None:
    names = ["h2o", "snapkv", "expected_attention", *(["air_cache", "vl_cache"] if pictures else [])]
    found = [suggest(FixedTrial(one), pictures=pictures)(0.3) for one in starts(pictures=pictures)]
    due = [getattr(kvpolicy, name)(keep=0.3) for name in names]
    assert found[0].prefill == due[0].prefill  # while decoding, quotas are those of the prompt, which are as equal
    assert found[1:] == due[1:]


def test_what_the_prompt_protects_the_answer_protects_by_recency() -> None:
    found = made(pictures=True, first=4, last=8, text=True)
    assert found.prefill is not None
    assert found.decode is not None
    assert found.prefill.select == TopK(first=4, last=8, recent=0.5, text=True)
    assert found.decode.select == TopK(first=4, recent=0.5, text=True)


def test_merging_into_the_nearest_leaves_protected_rows_alone() -> None:
    found = made(
        merge="nearest", **{"weigh by count": "mean"}, merge_keys=False, count_bias=True, first=1, last=4, decode="mass"
    )
    assert found.prefill is not None
    assert found.prefill.merge == kvpolicy.Fold(kvpolicy.NearestPosition(1, 4), kvpolicy.Mean(), keys=False)
    assert found.count_bias


@pytest.mark.parametrize("pictures", [False, True])
def test_every_draw_is_a_policy_or_refused_by_name(pictures: bool) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found: set[Policy] = set()
    refused = 0
    for _ in range(300):
        trial = study.ask()
        try:
            found.add(suggest(trial, pictures=pictures)(0.2))
        except kvpolicy.PolicyError:
            refused += 1
        study.tell(trial, 0.0)
    assert len(found) > 200
    assert refused < 60
    selectors = [policy.prefill.select for policy in found if policy.prefill]
    assert {select.text for select in selectors if isinstance(select, TopK)} == {False, pictures}
