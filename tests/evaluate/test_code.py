"""What tells one's own code apart in the ledger."""

from __future__ import annotations

import sys
from dataclasses import make_dataclass
from pathlib import Path
from typing import Any

import pytest
from of_mine import Echo, LoudValues

import kvpolicy
from kvpolicy import KeepRatio, Pipeline, Policy, Pooled
from kvpolicy_hf.evaluate import TASKS
from kvpolicy_hf.evaluate.code import code_of


def test_what_comes_with_kvpolicy_has_none() -> None:
    catalogue = kvpolicy.catalogue(keep=0.2)
    assert {code_of(policy) for policy in (*catalogue.values(), *TASKS.values())} == {""}


def test_a_stage_is_found_wherever_it_is() -> None:
    inside: Any = Pooled(LoudValues())
    policies = [
        Policy(**{phase: Pipeline(schedule=KeepRatio(0.2), score=score)})
        for phase in ("prefill", "decode")
        for score in (LoudValues(), inside)
    ]
    (code,) = {code_of(one) for one in (*policies, LoudValues(power=2.0), Echo())}
    assert code.startswith(" code ")


def test_a_base_in_another_module_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "derived_for_code.py").write_text("import base_for_code\nclass Derived(base_for_code.Base): ...\n")

    def code(base: str) -> str:
        (tmp_path / "base_for_code.py").write_text(base)
        for name in ("base_for_code", "derived_for_code"):
            sys.modules.pop(name, None)
        import derived_for_code  # type: ignore[import-not-found]

        made = code_of(derived_for_code.Derived())
        (tmp_path / "base_for_code.py").write_text("# edited while it runs\n")
        assert code_of(derived_for_code.Derived()) == made
        return made

    first, second = code("class Base: ...\n"), code("class Base: x = 1\n")
    assert first != second
    assert code("class Base: ...\n") == first


def test_without_source_there_is_none() -> None:
    made = make_dataclass("Made", [("power", float, 1.0)], namespace={"__module__": "no_such_module"}, frozen=True)
    assert code_of(made()) == ""
