"""What was measured survives a kill, whole units only."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvpolicy_hf.evaluate import EvaluationError
from kvpolicy_hf.evaluate.ledger import Ledger, Unit

ONE, TWO = Unit("t: T()", 0, 2, "h2o"), Unit("t: T()", 2, 4, "h2o")


def test_units_come_back_with_all_that_was_said_of_them(tmp_path: Path) -> None:
    Ledger(tmp_path).add(ONE, [{"nats": 0.1, "said": "ü\n"}, {"nats": None}], top=[[1], []])
    Ledger(tmp_path, process=3).add(TWO, failure="why")
    assert Ledger(tmp_path, process=1).done == {
        ONE: {"rows": [{"nats": 0.1, "said": "ü\n"}, {"nats": None}], "top": [[1], []]},
        TWO: {"rows": [], "failure": "why"},
    }


def test_a_line_that_was_cut_short_is_done_again(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.add(ONE, [{"nats": 1.0}])
    ledger.add(TWO, [{"nats": 2.0}])
    whole = ledger.file.read_bytes()
    for cut in range(len(whole) // 2 + 1, len(whole)):
        ledger.file.write_bytes(whole[:cut])
        again = Ledger(tmp_path)
        assert set(again.done) == {ONE}
        again.add(TWO, [{"nats": 2.0}])
        assert again.file.read_bytes() == whole


def test_a_cut_line_of_another_process_stays_its_own_to_mend(tmp_path: Path) -> None:
    other = Ledger(tmp_path, process=1)
    other.add(ONE)
    with other.file.open("ab") as file:
        file.write(b'{"unit": {"ta')
    before = other.file.read_bytes()
    assert set(Ledger(tmp_path).done) == {ONE}
    assert other.file.read_bytes() == before


@pytest.mark.parametrize("line", ["{}", "[1]", '{"unit": {"task": "t"}}', "no JSON"])
def test_what_is_no_unit_is_not_passed_over(tmp_path: Path, line: str) -> None:
    (tmp_path / "units-000.jsonl").write_text(line + "\n", encoding="utf-8")
    with pytest.raises(EvaluationError, match=r"line 1 of .*units-000\.jsonl"):
        Ledger(tmp_path)
