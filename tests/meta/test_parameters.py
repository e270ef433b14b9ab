"""`parametrize_with_checks`, and the options of the plug-in, in a pytest of its own."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from kit import STAGES, TEST, OfLength, words

import kvpolicy as kv
from kvpolicy.testing import checks_of, parametrize_with_checks

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.usefixtures("few")

Run = Callable[..., pytest.RunResult]


class TestParameters:
    @pytest.fixture
    def run(self, pytester: pytest.Pytester) -> Run:
        """Run a file that holds these parameters to the laws."""

        def run(parameters: str, *options: str) -> pytest.RunResult:
            pytester.makepyfile(f"{STAGES}\n\n@parametrize_with_checks({parameters}){TEST}")
            return pytester.runpytest_inprocess("-p", "no:cacheprovider", "-rA", *options)

        return run

    def test_what_is_right_passes(self, run: Run) -> None:
        result = run("[Fine()]")
        laws = [name for name, check in checks_of(kv.KeepRatio(0.5)).items() if not isinstance(check, str)]
        result.assert_outcomes(passed=2 * len(laws))
        result.stdout.fnmatch_lines([f"PASSED *::test_laws[[]Fine-{laws[0]}-numpy[]]"])

    def test_one_fault_is_one_failure(self, run: Run) -> None:
        result = run('[OfLength()], backends=["numpy"]')
        result.assert_outcomes(failed=1, skipped=1, passed=len(self.laws()) - 2)
        result.stdout.fnmatch_lines(
            [
                "*OfLength() breaks padding_invariant: f(pad(x)) = f(x)*",
                "*checks.padding_invariant(component, example, backend='numpy')",
                "SKIPPED * not tried: padding_invariant fails, and comes first",
                "FAILED *::test_laws[[]OfLength-padding_invariant-numpy[]]*",
            ]
        )

    def test_all_rests_on_the_structural_laws(self, run: Run) -> None:
        result = run('[Zero()], backends=["numpy"]')
        result.assert_outcomes(failed=1, skipped=len(self.laws()) - 1)
        result.stdout.fnmatch_lines(["FAILED *::test_laws[[]Zero-well_formed-numpy[]]*"])

    def test_a_law_asked_for_alone_tells_what_it_rests_on(self, run: Run) -> None:
        result = run('[OfLength()], backends=["numpy"]', "-k", "batch_independent")
        result.assert_outcomes(failed=1, deselected=len(self.laws()) - 1)
        result.stdout.fnmatch_lines(["*OfLength() breaks padding_invariant: *"])

    def test_a_failure_that_is_expected(self, run: Run) -> None:
        both = '{"padding_invariant": "it counts padding", "batch_independent": "likewise"}'
        result = run(f'[OfLength()], backends=["numpy"], expected_failures={{"OfLength": {both}}}')
        result.assert_outcomes(xfailed=2, passed=len(self.laws()) - 2)
        result.stdout.fnmatch_lines(["XFAIL *::test_laws[[]OfLength-padding_invariant-numpy[]] - it counts padding*"])

    def test_a_law_that_holds_after_all_is_reported(self, run: Run) -> None:
        result = run('[Fine()], backends=["numpy"], expected_failures={"Fine": {"deterministic": "it was not"}}')
        result.assert_outcomes(failed=1, passed=len(self.laws()) - 1)
        result.stdout.fnmatch_lines(["*XPASS(strict)*it was not*"])

    def test_unknown_names_stop_the_run(self, pytester: pytest.Pytester) -> None:
        said = {
            '[Fine()], expected_failures={"Fin": {}}': "expected_failures['Fin']: no such component here. Hint: Fine.",
            '[Fine()], sizes={"Coarse": {}}': "sizes['Coarse']: no such component here. There are: Fine.",
            '[Fine()], expected_failures={"Fine": {"finit": ""}}': (
                "expected failure of 'finit': there is no such law. Hint: finite."
            ),
            '[Fine()], expected_failures={"Fine": {"finite": ""}}': (
                "expected failure of 'finite': it does not apply to Fine(rows=3)"
            ),
            '[Fine()], backends=["cupy"]': "backend='cupy': there is no such backend. Known: numpy, torch, triton.",
            '[Fine()], expected_failures={"Fine": ["finite"]}': (
                "expected_failures['Fine']=['finite']: it is a mapping. Hint: {'merge_convex': 'adds values'}."
            ),
            '[Fine()], sizes={"Fine": {"dim": 3}}': "Table(dim=3): dim must be even. Hint: 4.",
            "[np]": "'numpy' is a module; the kit checks an instance of a class in it.",
            "[3]": "3 is neither a Policy nor a stage",
            "[Fine]": "Fine is a class; the kit checks an instance. Hint: Fine(...).",
        }
        files = {f"test_{n}": f"{STAGES}\n\n@parametrize_with_checks({wrong}){TEST}" for n, wrong in enumerate(said)}
        pytester.makepyfile(**files)
        result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
        result.assert_outcomes(errors=len(said))
        assert not re.search(r"\.py:\d|Error: ", result.stdout.str())  # the message alone
        for line in said.values():
            assert f"test_laws: {line}" in words(result.stdout.str())

    def test_names(self, run: Run) -> None:
        result = run('{"short": Fine(1), "long": Fine(9)}, backends=["numpy"]', "-k", "well_formed")
        result.assert_outcomes(passed=2, deselected=2 * len(self.laws()) - 2)
        result.stdout.fnmatch_lines(
            ["PASSED *[[]short-well_formed-numpy[]]", "PASSED *[[]long-well_formed-numpy[]]"], consecutive=True
        )

    def test_equal_classes_are_named_by_what_they_print(self, run: Run) -> None:
        result = run('[Fine(1), Fine(9)], backends=["numpy"]', "-k", "well_formed")
        result.stdout.fnmatch_lines(["PASSED *[[]Fine(rows=1)-well_formed-numpy[]]"])

    def test_the_same_twice_is_an_error(self) -> None:
        with pytest.raises(kv.PolicyError, match=r"KeyNorm\(\) is given twice\. Hint: a mapping gives them names\."):
            parametrize_with_checks([kv.KeyNorm(), kv.KeyNorm()])

    @pytest.mark.parametrize(
        ("parameters", "said"),
        [
            ("[Fine(), Fine()]", "Fine(rows=3) is given twice. Hint: a mapping gives them names."),
            ("Fine()", "(Fine(rows=3)): it takes a list of components, or a mapping of names to them. Hint: [Fine("),
            ('[Fine()], backends="numpy"', "(backends='numpy'): backends is a list of names. Hint: ['numpy']."),
        ],
    )
    def test_slips_show_the_line_that_they_are_in(self, parameters: str, said: str, run: Run) -> None:
        result = run(parameters)
        result.assert_outcomes(errors=1)
        result.stdout.fnmatch_lines(["*in <module>", "*@parametrize_with_checks(*"])
        assert said in words(result.stdout.str())
        assert "_parametrize.py" not in result.stdout.str()

    def test_sizes_leave_laws_out(self, run: Run) -> None:
        result = run('[Fine()], backends=["numpy"], sizes={"Fine": {"batch": 1}}')
        result.assert_outcomes(passed=len(self.laws()) - 1)
        assert "batch_independent" not in result.stdout.str()

    def test_the_backend_is_an_option(self, run: Run) -> None:
        result = run('[Fine()], backends=["torch"]', "--kvpolicy-backend", "numpy", "-k", "well_formed")
        result.stdout.fnmatch_lines(["PASSED *[[]Fine-well_formed-numpy[]]"])
        assert "-torch]" not in result.stdout.str()

    def test_the_profile_is_an_option(self, run: Run) -> None:
        result = run("[Fine()]", "--kvpolicy-profile", "slow")
        result.assert_outcomes(errors=1)
        assert "test_laws: profile='slow': there are quick, dev, ci, nightly." in words(result.stdout.str())

    def laws(self) -> list[str]:
        """Those about a schedule without a limit."""
        about = checks_of(OfLength(), backend="numpy")
        return [name for name, check in about.items() if not isinstance(check, str)]
