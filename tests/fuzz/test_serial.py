"""Policies as documents: every policy comes back as it was, or cannot be written, and the error names the argument."""

from __future__ import annotations

import base64
import json
import math
import tomllib
from dataclasses import InitVar, dataclass, field, is_dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from compositions.stages import FACTORS
from documents import ALLOW, BOTH, GRU, MINE, Doubled, Mine, NoDataclass, compositions, policies, scored, stages
from hypothesis import example, given
from stock import parts

import kvpolicy
from kvpolicy import (
    RECIPES,
    AttentionMass,
    Every,
    HeadTable,
    KeepRatio,
    MemoryBudget,
    Noise,
    Pipeline,
    Policy,
    PolicyError,
    Pooled,
    Recency,
    TopK,
    from_json,
    from_toml,
    to_json,
    to_toml,
)
from kvpolicy._serial_names import STOCK
from kvpolicy._serial_stages import DEEPEST

BUDGET = {"head_kv": {"keep": 0.2, "table": ((2, 1), (1, 1))}, "full": {}}


class TestRoundTrip:
    @pytest.mark.parametrize("name", RECIPES)
    @pytest.mark.parametrize(("write", "read"), BOTH)
    def test_recipes(self, name: str, write: Any, read: Any) -> None:
        policy = RECIPES[name](**BUDGET.get(name, {"keep": 0.2}))
        again = read(write(policy))
        assert (again, hash(again), repr(again)) == (policy, hash(policy), repr(policy))

    @given(policies)
    @example(scored(Mine(True)))  # equals the default, 1.0
    @example(scored(Mine(1)))
    def test_any_composition(self, policy: Policy) -> None:
        again = from_json(to_json(policy), allow=ALLOW)
        assert (again, hash(again), repr(again)) == (policy, hash(policy), repr(policy))
        assert [type(part) for part in parts(again)] == [type(part) for part in parts(policy)]
        assert from_json(to_json(policy, indent=None), allow=ALLOW) == policy

    @given(compositions | stages)
    def test_any_composition_in_toml(self, policy: Policy) -> None:
        again = from_toml(to_toml(policy))
        assert (again, hash(again), repr(again)) == (policy, hash(policy), repr(policy))

    def test_every_stage_that_is_exported(self) -> None:
        exported = {name for name in kvpolicy.__all__ if is_dataclass(getattr(kvpolicy, name))}
        data = set("Assignment CacheView Column LayerReport Pass Plan Queries Report Scored Selection Step".split())
        data |= {"Rows", "Session", "Weights"} & exported
        assert set(STOCK) == exported - data - {"Pipeline", "Policy"}
        drawn = {type(part).__name__ for options in FACTORS.values() for option in options for part in parts(option)}
        assert set(STOCK) == drawn | {"GRUController", "TopRecall"}, "a stage is missing from the compositions"

    @pytest.mark.parametrize(("write", "read"), BOTH)
    def test_numbers_of_numpy_become_plain_ones(self, write: Any, read: Any) -> None:
        given = Policy(
            prefill=Pipeline(schedule=KeepRatio(np.float64(0.1)), score=Noise(np.uint16(7))),  # type: ignore[arg-type]
            decode=Pipeline(schedule=KeepRatio(np.float32(0.1)), score=Recency()),  # type: ignore[arg-type]
            count_bias=np.True_,  # type: ignore[arg-type]
        )
        again = read(write(given))
        assert (again, hash(again)) == (given, hash(given))
        assert repr(again) == (
            "Policy(prefill=Pipeline(schedule=KeepRatio(keep=0.1), score=Noise(seed=7)), decode=Pipeline(schedule="
            "KeepRatio(keep=0.10000000149011612), score=Recency()), count_bias=True)"
        )

    def test_the_documents(self) -> None:
        policy = scored(AttentionMass(heads="mean"), allocate=HeadTable(((1, 0.5),)))
        assert json.loads(to_json(policy)) == {
            "format": "kvpolicy-policy",
            "version": 1,
            "policy": {
                "decode": {
                    "schedule": {"stage": "FixedRows", "rows": 4},
                    "score": {"stage": "AttentionMass", "heads": "mean"},
                    "allocate": {"stage": "HeadTable", "table": [[1.0, 0.5]]},
                }
            },
        }
        assert tomllib.loads(to_toml(policy)) == json.loads(to_json(policy))
        assert json.loads(to_json(scored(GRU)))["policy"]["decode"]["score"]["weights"] == {
            "base64": base64.b64encode(GRU.weights).decode()
        }
        assert json.loads(to_json(scored(Mine())))["policy"]["decode"]["score"] == {"stage": MINE}

    def test_a_default_may_be_written_out(self) -> None:
        text = to_json(Policy()).replace("{}", '{"prefill": null, "count_bias": false, "positions": "original"}')
        assert from_json(text) == Policy()


@dataclass(frozen=True)
class Secret(Mine):
    key: InitVar[int] = 0


@dataclass(init=False)
class OwnInit(NoDataclass):
    of: int

    def __init__(self, start: int) -> None:
        self.of = start


@dataclass(frozen=True)
class Staged(Mine):
    stage: int = 0


@dataclass(frozen=True)
class Derived(Mine):
    twice: float = field(init=False, default=0.0)


class TestRefusedToWrite:
    @pytest.mark.parametrize(
        ("score", "words"),
        [
            (NoDataclass(), "policy.decode.score: a file cannot hold .*NoDataclass.*dataclasses"),
            (Mine([1]), r"policy.decode.score.of: .*a list, a list.*tuples"),
            (Mine((1, {2: 3})), r"policy.decode.score.of\[1\]: .* a dict"),
            (Mine(rest=(TopK(), Fraction(1, 3))), r"policy.decode.score.rest\[1\]: .*Fraction\(1, 3\)"),
            (Mine(np.zeros(3)), r"policy.decode.score.of: .* a ndarray"),
            (Mine(np.timedelta64(3)), "policy.decode.score.of: .* a timedelta64"),
            (Mine(np.longdouble(3)), "policy.decode.score.of: .* a longdouble"),
            (Mine(1j), "policy.decode.score.of: .* a complex"),
            (Mine(math.inf), "policy.decode.score.of: inf .* finite"),
            (Mine(np.float32("nan")), "policy.decode.score.of: nan .* finite"),
            (Pooled(Mine((1.0, -math.inf))), r"policy.decode.score.scorer.of\[1\]: -inf .* finite"),
            (Mine(10**5000), "policy.decode.score.of: an integer of 16610 bits is too large"),
            (Mine("a\udc00"), r"policy.decode.score.of: 'a\\udc00' holds half a character"),
            (Mine(TopK), "policy.decode.score.of: .*TopK.*, a class"),
            (Mine(Policy()), "policy.decode.score.of: .* a Policy"),
            (Doubled(), r"policy.decode.score.of: given 2.0, Doubled makes 4.0 of it.*Hint: "),
            (Secret(), "policy.decode.score: Secret takes .*key.*Hint: "),
            (OwnInit(3), "policy.decode.score: OwnInit takes start, .*Hint: "),
            (Staged(), "policy.decode.score: Staged .* call no field 'stage'"),
        ],
    )
    def test_the_argument_is_named(self, score: Any, words: str) -> None:
        for write in (to_json, to_toml):
            with pytest.raises(PolicyError, match=words):
                write(scored(score))

    def test_a_none_that_is_no_default_has_no_place_in_toml(self) -> None:
        policy = scored(Mine(None))
        assert from_json(to_json(policy), allow=ALLOW) == policy
        with pytest.raises(PolicyError, match=r"policy\.decode\.score\.of: TOML has no None.*Hint: to_json"):
            to_toml(policy)

    def test_only_a_policy(self) -> None:
        for value in (None, Policy, scored(Recency()).decode, to_json(Policy())):
            for write in (to_json, to_toml):
                with pytest.raises(PolicyError, match=rf"{write.__name__}\(\) takes a Policy; got .*Hint"):
                    write(value)  # type: ignore[operator]

    def test_stages_in_stages_without_end(self) -> None:
        score: Any = Recency()
        for _ in range(DEEPEST):
            score = Mine(score)
        with pytest.raises(PolicyError, match=f"more than {DEEPEST} levels deep"):
            to_json(scored(score))

    def test_a_field_that_is_derived_is_left_out(self) -> None:
        assert from_json(to_json(scored(Derived(2.0))), allow=(Derived,)) == scored(Derived(2.0))


def test_memory_is_text_or_bytes() -> None:
    for memory in ("1.5 GB", 4096):
        policy = Policy(prefill=Pipeline(schedule=Every(2, MemoryBudget(memory)), score=Recency()))
        assert repr(from_toml(to_toml(policy))) == repr(policy)
