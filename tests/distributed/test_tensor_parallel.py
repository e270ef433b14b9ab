"""Two processes that share the heads of a model, loaded as transformers does: the tokens and the rows of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from workloads import POLICIES, new_model, run

HERE = Path(__file__).parent
ALIKE = ["elastic_cache", "mean", "tova", "slots"]  # all heads of a layer are to keep the same rows
Found = list[dict[str, Any]]


def test_two_ranks(tmp_path: Path) -> None:
    """One test, because starting the ranks takes longer than all that they do."""
    found = ranks(tmp_path)
    each_has_half_of_the_heads(found)
    for name in POLICIES:
        tokens_and_rows_are_those_of_one_process(found, name)
    for name in ALIKE:
        all_heads_keep_the_same_rows(found, name)
    heads_that_compete_keep_different_numbers(found)
    what_cannot_be_exact_is_refused(found)
    assert all(one["copied"] for one in found), "a copied cache runs in the same group"


def ranks(folder: Path) -> Found:
    """What each rank found."""
    new_model().save_pretrained(folder / "model")
    new_model(kv_heads=3).save_pretrained(folder / "odd")
    command = [sys.executable, str(HERE / "ranks.py"), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}  # two processes of the CPU
    started = [subprocess.Popen([*command, str(rank)], env=environment, stderr=subprocess.PIPE) for rank in range(2)]
    for process in started:
        errors = process.communicate(timeout=240)[1]
        assert process.returncode == 0, errors.decode()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def each_has_half_of_the_heads(found: Found) -> None:
    assert [one["local heads"] for one in found] == [2, 2]
    assert {len(heads) for one in found for layer in one["full"]["held"] for heads in layer} == {2}


def tokens_and_rows_are_those_of_one_process(found: Found, name: str) -> None:
    alone = run(new_model(), POLICIES[name])
    assert [one[name]["tokens"] for one in found] == [alone["tokens"]] * 2, name
    layers = zip(*(one[name]["held"] for one in found), strict=True)
    assert [[mine + theirs for mine, theirs in zip(*rows, strict=True)] for rows in layers] == alone["held"], name


def all_heads_keep_the_same_rows(found: Found, name: str) -> None:
    for rows in zip(*(one[name]["held"] for one in found), strict=True):
        for mine, theirs in zip(*rows, strict=True):
            assert all(head == mine[0] for head in [*mine, *theirs]), name


def heads_that_compete_keep_different_numbers(found: Found) -> None:
    assert len({len(head) for one in found for head in one["adaptive"]["held"][0][0]}) > 1


def what_cannot_be_exact_is_refused(found: Found) -> None:
    for one in found:
        assert one["three heads"].startswith("UnsupportedModelError: tp_size=2 does not divide the 3 key/value heads")
        assert one["a press"].startswith("UnsupportedModelError: from_press(SimpleNamespace(...)) may combine the")
