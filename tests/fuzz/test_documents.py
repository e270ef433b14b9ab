"""Documents that are no policies: the error names the place, the value and the fix."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from documents import BOTH, GOOD, MINE, Doubled, Mine, NoDataclass, scored, written

from kvpolicy import PolicyError, Pooled, Shared, from_json, from_toml, to_json
from kvpolicy._serial_stages import DEEPEST

TOML = "format = 'kvpolicy-policy'\nversion = 1\n"
GRU = {"stage": "GRUController", "dim": 1, "size": 1}
LISTS: list[Any] = []  # in one another, deeper than a document may be
for _ in range(DEEPEST):
    LISTS = [LISTS]


class TestRefusedToRead:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", "no JSON: .* line 1, column 1"),
            ('{"format": \n nonsense}', "no JSON: .* line 2, column 2"),
            (GOOD + "x", "no JSON: Extra data at line 1"),
            ("\ufeff" + GOOD, "no JSON: .*BOM"),
            ("[" * 100_000, "document: nested too deeply"),
            ('{"policy":' * 100_000, "document: nested too deeply"),
            ("3", "document: its root is 3; .*format, version, policy"),
            ("[1]", "document: its root is a list"),
            ("null", "document: its root is None"),
            ("{}", "document: it lacks the key 'format'"),
            (GOOD.replace("kvpolicy-policy", "kvpolicy-record"), "^format: 'kvpolicy-record' is not 'kvpolicy-policy'"),
            (GOOD.replace("1", "2", 1), "^version: 2 is not 1, the only version"),
            (GOOD.replace("1", "true", 1), "^version: True is not 1"),
            (GOOD.replace("1", '"1"', 1), "^version: '1' is not 1"),
            (GOOD.replace("version", "verison"), "document: unknown key 'verison'.*Hint: version"),
            (GOOD.replace("}}}", "}}, "), "no JSON: .* line 1"),
            (GOOD.replace('"version"', '"format": "x", "version"'), "document: the key 'format' is given twice"),
            (GOOD.replace('"rows"', '"rows": 5, "rows"'), r"policy\.decode\.schedule: the key 'rows' is given twice"),
            (GOOD.replace('"decode"', '"decode": null, "decode"'), "^policy: the key 'decode' is given twice"),
            (GOOD.replace('"rows"', '"row"'), r"policy\.decode\.schedule: FixedRows .* 'row'; .* rows.*Hint: rows"),
            (GOOD.replace('"decode"', '"dekode"'), "^policy: Policy has no argument 'dekode'.*Hint: decode"),
            (GOOD.replace('"rows": 4', '"stage": "FixedRows"'), "key 'stage' is given twice"),
            (GOOD.replace(', "rows": 4', ""), r"policy\.decode\.schedule: FixedRows needs the argument 'rows'"),
            (written(score={"heads": "mean"}), r"policy\.decode\.score: this table names no stage.*Hint: .*'stage'"),
            (written(score={"stage": "AttentionMas"}), r"score\.stage: no stage 'AttentionMas'.*Hint: AttentionMass"),
            (written(score={"stage": "Policy"}), r"policy\.decode\.score\.stage: no stage 'Policy'"),
            (written(score={"stage": "from_json"}), r"policy\.decode\.score\.stage: no stage 'from_json'"),
            (written(score={"stage": ["TopK"]}), r"policy\.decode\.score\.stage: a list is no name"),
            (written(score={"stage": "os:system"}), "stage: 'os:system' is no stage .*not imported.*Hint: allow="),
            (written(score="Recency"), r"policy\.decode: Pipeline\(score='Recency'\).*Hint: .* stage = 'Recency'"),
            (written(score=3), r"policy\.decode: Pipeline\(score=3\): int .*score"),
            (written(score=["Recency"]), r"policy\.decode: Pipeline\(score=\('Recency',\)\)"),
            (written(score=None), r"policy\.decode: Pipeline\(score=None\)"),
            (written(score={"stage": "TopK"}), r"policy\.decode: Pipeline\(score=TopK\(\)\): TopK does not implement"),
            (written(stage="Pipeline"), r"policy\.decode: Pipeline has no argument 'stage'"),
            (GOOD.replace('"decode"', '"count_bias": 1, "decode"'), r"^policy: Policy\(count_bias=1\): .* True, False"),
            (GOOD.replace("4", "4.0"), r"policy\.decode\.schedule: FixedRows\(rows=4.0\): rows must be an integer"),
            (GOOD.replace("4", "true"), r"policy\.decode\.schedule: FixedRows\(rows=True\): rows must be an integer"),
            (GOOD.replace("4", "{}"), r"policy\.decode\.schedule\.rows: this table names no stage"),
            (GOOD.replace("4", '{"stage": "TopK"}'), r"policy\.decode\.schedule: FixedRows\(rows=TopK\(\)\)"),
            (GOOD.replace("4", "NaN"), r"policy\.decode\.schedule\.rows: nan .*finite"),
            (GOOD.replace("4", "1e999"), r"policy\.decode\.schedule\.rows: inf .*finite"),
            (GOOD.replace("4", "9" * 400), r"policy\.decode\.schedule\.rows: an integer of 1329 bits is too large"),
            (GOOD.replace("4", "9" * 5000), r"policy\.decode\.schedule\.rows: inf .*finite"),
            (GOOD.replace("4", '"\\ud800"'), r"policy\.decode\.schedule\.rows: .*half a character"),
            (written(select=LISTS), rf"policy\.decode\.select\[0\].*more than {DEEPEST} levels"),
            (written(score=GRU | {"weights": {"base64": "*"}}),
             r"policy\.decode\.score\.weights\.base64: '\*' is no base64"),
            (written(score=GRU | {"weights": {"base64": ["AAAA"]}}),
             r"policy\.decode\.score\.weights\.base64: a list is no base64"),
            (written(score=GRU | {"weights": {"base64": "AAAA"}}),
             r"policy\.decode\.score: GRUController\(dim=1, size=1\) takes .* bytes"),
            # Found by tests/fuzz/test_mutations.py: what these constructors raise is no PolicyError of their own.
            (written(allocate={"stage": "ByVariance", "exempt": 3}), r"decode\.allocate: ByVariance\(exempt=3\)"),
            (written(schedule={"stage": "MemoryBudget", "memory": "9" * 400 + "MB"}),
             r"policy\.decode\.schedule: MemoryBudget\("),
        ],
        ids=lambda value: ascii(value)[:40],
    )  # fmt: skip
    def test_the_place_is_named(self, text: str, words: str) -> None:
        with pytest.raises(PolicyError, match=words) as caught:
            from_json(text)
        assert len(str(caught.value)) < 1500

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("format = ", r"no TOML: .*line 1, column 10|no TOML: .*at end of document"),
            ("format = 1\nformat = 2", "no TOML: Cannot overwrite a value"),
            ("format = 1\nversion 2", "no TOML: .*line 2, column 9"),
            ("a = " + "[" * 100_000, "document: nested too deeply"),
            ("a = 1" + "0" * 5000, "document: a number cannot be read: "),
            ("", "document: it lacks the key 'format'"),
            (TOML + "policy" + ".prefill" * 300 + " = 1", r"^policy\.prefill: .*'prefill'"),
            (TOML.replace("1", "0x" + "f" * 9000) + "[policy]", "^version: an integer of 36000 bits"),
            (TOML + "[policy]\ncount_bias = 2026-01-01", r"^policy\.count_bias: .*a date,"),
            (TOML + "[policy]\ncount_bias = inf", r"^policy\.count_bias: inf .*finite"),
            (TOML + "[[policy]]", "^policy: a list is no Policy"),
            (TOML + "policy = 0x" + "f" * 9000, "^policy: an integer of 36000 bits"),
        ],
        ids=lambda value: ascii(value)[:40],
    )  # fmt: skip
    def test_the_place_is_named_in_toml(self, text: str, words: str) -> None:
        with pytest.raises(PolicyError, match=words):
            from_toml(text)

    @pytest.mark.parametrize("read", [from_json, from_toml])
    def test_only_text(self, read: Any) -> None:
        for value in (None, b"{}", 3, Path("policy.json"), {}):
            with pytest.raises(PolicyError, match=rf"{read.__name__}\(\) takes text; got .*Hint: .*read_text"):
                read(value)

    def test_a_users_stage_needs_to_be_allowed(self) -> None:
        text = to_json(scored(Pooled(Mine(2.0))))
        with pytest.raises(PolicyError, match=rf"policy\.decode\.score\.scorer\.stage: '{MINE}' .*Hint: allow="):
            from_json(text)
        with pytest.raises(PolicyError, match=f"allowed: {Doubled.__module__}:Doubled. Hint: allow="):
            from_json(text, allow=(Doubled,))
        assert from_json(text, allow=[Doubled, Mine]) == scored(Pooled(Mine(2.0)))

    def test_what_may_be_allowed(self) -> None:
        @dataclass(frozen=True)
        class Twin(Mine):
            pass

        Twin.__module__, Twin.__qualname__ = Mine.__module__, "Mine"
        for allow in (Mine, 3, "Mine", (Mine(),), (NoDataclass,), (MINE,), (Mine, Twin)):
            with pytest.raises(PolicyError, match=r"from_json\(allow=.*Hint: allow"):
                from_json(GOOD, allow=allow)  # type: ignore[arg-type]

    def test_a_constructor_that_fails_in_its_own_way(self) -> None:
        text = written(score={"stage": f"{Doubled.__module__}:Doubled", "of": None})
        with pytest.raises(PolicyError, match=r"policy\.decode\.score: Doubled\(of=None\) cannot be made: unsupported"):
            from_json(text, allow=(Doubled,))

    def test_wrappers_in_wrappers(self) -> None:
        """As deep as they may be they are read and written at once; one more is refused."""
        score: dict[str, Any] = {"stage": "WindowMass", "window": 7}
        for _ in range(DEEPEST - len("policy decode score window".split())):
            score = {"stage": "Shared", "scorer": score}
        deep = from_json(written(score=score))
        assert deep.decode is not None
        assert isinstance(deep.decode.score, Shared)
        assert deep.decode.score.window == 7
        for write, read in BOTH:
            again = read(write(deep))
            assert (again, hash(again), repr(again)) == (deep, hash(deep), repr(deep))
        with pytest.raises(PolicyError, match=rf"^policy\.decode\.score[.\w]+\.window: more than {DEEPEST} levels"):
            from_json(written(score={"stage": "Shared", "scorer": score}))
