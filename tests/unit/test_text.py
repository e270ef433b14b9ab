"""Policies written as text: what reads as the recipe's own call, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

import kvpolicy
from kvpolicy import Policy, PolicyError, from_text, full, h2o, head_kv, streaming_llm
from kvpolicy._check import shown


@pytest.mark.parametrize(
    ("text", "keep", "due"),
    [
        ("h2o(rows=8)", None, h2o(rows=8)),
        ("  h2o ( rows = 8 )\n", None, h2o(rows=8)),
        ("h2o(keep=0.3, recent=0.25)", None, h2o(keep=0.3, recent=0.25)),
        ("streaming_llm(memory='1 MiB', sinks=-0)", None, streaming_llm(memory="1 MiB", sinks=0)),
        ("head_kv(table=((1, 2), [3, 0.5]), rows=8)", None, head_kv(table=((1, 2), (3, 0.5)), rows=8)),
        ("full", None, full()),
        ("full()", None, full()),
        ("h2o", 0.2, h2o(keep=0.2)),
        ("h2o()", 0.2, h2o(keep=0.2)),
        ("h2o(recent=0.25)", 0.2, h2o(keep=0.2, recent=0.25)),
        ("full", 0.2, full()),  # it takes no budget
        ("h2o(keep=0.9)", 0.2, h2o(keep=0.9)),  # the text's own budget wins, whichever it is
        ("h2o(rows=8)", 0.2, h2o(rows=8)),
        ("h2o(memory=4096)", 0.2, h2o(memory=4096)),
    ],
)
def test_it_is_what_the_call_gives(text: str, keep: float | None, due: Policy) -> None:
    assert from_text(text, keep=keep) == due


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "3",
        "'h2o'",
        "h2o, snapkv",
        "h2o(",
        "h2o(8)",  # every argument has a name
        "h2o(*[8])",
        "h2o(**{'rows': 8})",
        "h2o(rows=7 + 1)",
        "h2o(rows=int('8'))",
        "h2o(rows=n)",
        "h2o(rows=8)(rows=8)",
        "kvpolicy.h2o(rows=8)",
        "h2o(rows=8); full()",
        "h2o\x00",
        "__import__('os').getcwd()",
        f"h2o(rows={2**1024})",  # an integer that no float reaches
        f"head_kv(rows=8, table=((1, {2**1024}),))",
        "h2o(rows={[]: 1})",
        "h2o(rows={{}})",
    ],
)
def test_what_is_no_plain_call_is_refused_and_never_evaluated(text: str) -> None:
    with pytest.raises(PolicyError) as caught:
        from_text(text, keep=0.2)
    assert str(caught.value) == (
        f"policy: {shown(text)} is neither a recipe nor a call of one with plain arguments. "
        f"Hint: h2o, or 'elastic_cache(last=8)'."
    )
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("h3o", "Hint: h2o."),
        ("H2O", "Hint: h2o."),
        ("ElasticCache(rows=8)", "Hint: elastic_cache."),
        ("print(sep='')", f"There are: {', '.join(kvpolicy.RECIPES)}."),
    ],
)
def test_a_recipe_that_does_not_exist_is_refused_with_what_may_be_meant(text: str, meant: str) -> None:
    with pytest.raises(PolicyError) as caught:
        from_text(text)
    assert str(caught.value) == f"no recipe {text.partition('(')[0]!r}. {meant}"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("h2o(rows=8, sinks=2)", r"^h2o\(sinks=...\): it takes keep, rows, memory, recent\.$"),
        ("full(keep=0.2)", r"^full\(keep=...\): it takes no arguments\.$"),
        ("head_kv(rows=8)", r"^head_kv\(\) needs table=\. Hint: 'head_kv\(table=\.\.\.\)' with a plain value\.$"),
        ("h2o(rows=8, rows=8)", r"rows= twice"),
        ("h2o", "exactly one of keep=, rows= and memory="),
        ("h2o(keep=20)", r"^h2o\(keep=20\): keep is a fraction"),
        ("h2o(rows='8')", r"^h2o\(rows='8'\): rows must be an integer"),
        ("h2o(memory='8 cm')", r"^h2o\(memory='8 cm'\): memory is a positive number of bytes"),
    ],
)
def test_arguments_that_the_recipe_does_not_take_are_named(text: str, says: str) -> None:
    with pytest.raises(PolicyError, match=says):
        from_text(text)


@pytest.mark.parametrize("text", [None, 3, 10**5000, b"h2o(rows=8)", ["h2o"]], ids=range(5))
def test_what_is_no_text_is_refused_alike(text: Any) -> None:
    with pytest.raises(PolicyError, match="neither a recipe nor a call") as caught:
        from_text(text)
    assert str(caught.value).startswith(f"policy: {shown(text)} is neither")


@pytest.mark.parametrize(
    "text",
    [
        "h2o(rows=" + "[" * 100_000,
        "h2o(rows=" + "-" * 100_000 + "1)",
        "h2o(rows='" + "9" * 100_000,
        "h" * 100_000,
        "h2o(" + "h" * 100_000 + "=8)",
    ],
    ids=["brackets", "signs", "a string", "a name", "an argument"],
)
def test_an_error_repeats_no_more_than_the_beginning_of_a_long_text(text: str) -> None:
    with pytest.raises(PolicyError) as caught:
        from_text(text)
    assert text[-100:] not in str(caught.value)
    assert len(str(caught.value)) < 600
