"""The program that shows a broken law: what it imports, and what its user must fill in."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import kvpolicy as kv
from kvpolicy.testing import Decode, Prefill, Request, Table, Trace
from kvpolicy.testing._reproducer import reproducer

TABLE = Table()


class Mode(Enum):
    LOUD = 1


class Plain:
    """Prints as no constructor call."""

    def score(self, view: kv.CacheView, step: kv.Step) -> kv.Scores:
        return view.keys[..., 0]


@dataclass(frozen=True)
class Wrapping:
    inner: Any = None
    other: Any = None


def double(value: float) -> float:
    return 2 * value


def lines(component: Any, example: Any = TABLE, backend: str = "torch") -> list[str]:
    """Those of the program, which runs up to the check itself."""
    script = reproducer("finite", component, example, backend)
    setting_up, _, call = script.rpartition("\n")
    exec(setting_up, {})
    assert call.startswith("checks.finite(component, example")
    return script.splitlines()


def test_what_is_imported_is_mentioned() -> None:
    policy = kv.streaming_llm(rows=2, sinks=1)  # its stages have defaults, which it does not print
    assert lines(policy) == [
        "from kvpolicy import FixedRows, Pipeline, Policy, Recency, TopK",
        "from kvpolicy.testing import Table, checks",
        "",
        f"component = {policy!r}",
        "example = Table()",
        "checks.finite(component, example)",
    ]
    assert lines(kv.TopK(), Request(), "numpy")[:2] == [
        "from kvpolicy import TopK",
        "from kvpolicy.testing import Request, checks",
    ]


def test_operations_are_imported_with_their_trace() -> None:
    assert lines(kv.full(), Trace())[1] == "from kvpolicy.testing import Trace, checks"
    trace = Trace(ops=(Prefill(2), Decode()))
    assert lines(kv.full(), trace)[1] == "from kvpolicy.testing import Decode, Prefill, Trace, checks"


def test_a_component_that_prints_as_no_call_is_to_be_filled_in() -> None:
    component = Plain()
    assert lines(component)[1:] == [
        f"from {__name__} import Plain",
        "",
        f"# Fill in how component is made: it prints as {repr(component)!r}, which is no constructor call.",
        "component = Plain()",
        "example = Table()",
        "checks.finite(component, example)",
    ]


def test_a_part_that_prints_as_no_call_is_a_variable_to_fill_in() -> None:
    stage, more = Plain(), Plain()
    pipeline = kv.Pipeline(schedule=kv.KeepRatio(0.5), score=stage)
    shown = "Pipeline(schedule=KeepRatio(keep=0.5), score=part_1)"
    assert lines(kv.Policy(prefill=pipeline, decode=pipeline))[4:7] == [
        f"# Fill in how part_1 is made: it prints as {repr(stage)!r}, which is no constructor call.",
        "part_1 = Plain()",
        f"component = Policy(prefill={shown}, decode={shown})",
    ]
    two = lines(Wrapping(stage, {"a": [more]}))
    assert [line for line in two if line.startswith("part_")] == ["part_1 = Plain()", "part_2 = Plain()"]
    assert "component = Wrapping(inner=part_1, other={'a': [part_2]})" in two


def test_what_cannot_be_imported_is_left_open() -> None:
    class Local:
        pass

    for value in (double, Local(), Plain):
        said = lines(Wrapping(value))
        assert "part_1 = ..." in said
        assert f"# Fill in how part_1 is made: it prints as {repr(value)!r}, which is no constructor call." in said
        assert f"from {__name__} import Wrapping" in said


def test_enums_and_infinite_numbers_are_written_as_python() -> None:
    said = lines(Wrapping(Mode.LOUD, (float("inf"), 1.0)))
    assert "component = Wrapping(inner=Mode.LOUD, other=(inf, 1.0))" in said
    assert {"from math import inf", f"from {__name__} import Mode, Wrapping"} < set(said)


def test_a_name_of_unknown_origin_is_told() -> None:
    class Array:
        def __repr__(self) -> str:
            return "array([0.0])"

    script = reproducer("finite", Wrapping(Array()), Table(), "numpy")
    assert "# import array, too: where it comes from is not known" in script.splitlines()
    assert "component = Wrapping(inner=array([0.0]), other=None)" in script
