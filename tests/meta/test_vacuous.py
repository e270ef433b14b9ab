"""A pass that proves little is told: no example made the component drop a row."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from typer.testing import CliRunner

import kvpolicy as kv
from kvpolicy.cli import app
from kvpolicy.testing import Check, VacuousPassWarning, checks_of

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.usefixtures("few")

NEVER = kv.streaming_llm(rows=40, sinks=1)  # no example has as many


def told(component: Any, law: str, **options: Any) -> Check:
    check = checks_of(component, backend="numpy", profile="ci", **options)[law]
    assert isinstance(check, Check)
    return check


@pytest.mark.parametrize(
    ("component", "law", "sizes"),
    [
        (NEVER, "within_quota", {}),
        (kv.Pipeline(schedule=kv.FixedRows(40), score=kv.Recency()), "within_quota", {}),
        (kv.TopK(), "within_quota", {"quota": 20}),
        (kv.Drop(), "keeps_selected", {"quota": 20}),
        (kv.MostSimilar(), "keeps_selected", {"tokens": 1, "quota": 1}),
    ],
    ids=["policy", "pipeline", "selector", "merger", "assigner"],
)
def test_nothing_ever_left(component: Any, law: str, sizes: Any) -> None:
    check = told(component, law, sizes=sizes)
    assert not check.vacuous  # not known yet
    with pytest.warns(
        VacuousPassWarning, match=r"no example made .* drop a row.*Hint: smaller arguments, or larger"
    ) as caught:
        check(component)
    assert check.vacuous
    assert repr(component) in str(caught[0].message)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("component", "law", "sizes"),
    [
        (kv.streaming_llm(rows=2, sinks=1), "within_quota", {}),
        (NEVER, "within_quota", {"prompt": 50}),
        (kv.TopK(), "within_quota", {}),
        (kv.Drop(), "keeps_selected", {}),
        (NEVER, "finite", {}),  # another law says so
        (kv.full(), "within_quota", {}),  # is not meant to drop anything
        (kv.KeyNorm(), "finite", {}),
    ],
)
def test_something_left_or_need_not(component: Any, law: str, sizes: Any) -> None:
    check = told(component, law, sizes=sizes)
    check(component)  # a warning would be an error
    assert not check.vacuous


def test_the_command_says_so_once_and_warns_of_nothing() -> None:
    options = ["--backend", "numpy", "--backend", "torch", "--law", "within_quota"]
    with warnings.catch_warnings(record=True) as caught:
        result = CliRunner(env={"COLUMNS": "160"}).invoke(app, ["check", "streaming_llm(rows=40)", *options])
    said = "no example made it drop a row, so laws about dropping say nothing of it."
    assert (result.exit_code, caught) == (0, [])
    assert result.stdout.count(said) == 1
    assert "such as --size prompt=20." in " ".join(result.stdout.split())
    assert said not in CliRunner().invoke(app, ["check", "streaming_llm(rows=5)", *options]).stdout


def test_pytest_lists_the_warning(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from kvpolicy import streaming_llm
        from kvpolicy.testing import parametrize_with_checks

        @parametrize_with_checks([streaming_llm(rows=40)], backends=["numpy"])
        def test_laws(component, check):
            check(component)
        """
    )
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-k", "within_quota or finite", "-W", "always")
    assert result.parseoutcomes()["warnings"] == 1
    result.stdout.fnmatch_lines(["*VacuousPassWarning: no example made Policy(*"])
