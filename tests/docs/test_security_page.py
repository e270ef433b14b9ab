"""What SECURITY.md promises of files that others wrote: reading them runs nothing of theirs."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import kvpolicy
from kvpolicy import PolicyError
from kvpolicy._serial_names import STOCK
from kvpolicy.cli import app
from kvpolicy_hf.loading import LoadingError, load_model
from kvpolicy_hf.simulate import RecordError, load_record


class Trap:
    """Unpickling it leaves a file."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return spring, (str(self.sprung),)


def spring(path: str) -> None:
    Path(path).write_text("code was run", encoding="utf-8")


@pytest.fixture
def sprung(tmp_path: Path) -> Path:
    """Is there once code of a file was run."""
    return tmp_path / "sprung"


@pytest.fixture
def module(tmp_path: Path, sprung: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the working directory that leaves the file when it is imported."""
    (tmp_path / "trap_module.py").write_text(
        f"from pathlib import Path\nPath({str(sprung)!r}).touch()\nclass Stage: ...\n", encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "trap_module", raising=False)
    return "trap_module"


def document(stage: str) -> str:
    policy = {"decode": {"schedule": {"stage": "FixedRows", "rows": 4}, "score": {"stage": stage}}}
    return json.dumps({"format": "kvpolicy-policy", "version": 1, "policy": policy})


def test_the_trap_works(tmp_path: Path, sprung: Path, module: str) -> None:
    pickle.loads(pickle.dumps(Trap(sprung)))
    assert sprung.exists()
    sprung.unlink()
    CliRunner().invoke(app, ["check", f"{module}:Stage"])  # the command line that runs code, because it is asked to
    assert sprung.exists()


class TestPolicies:
    def test_a_file_imports_nothing(self, sprung: Path, module: str) -> None:
        with pytest.raises(PolicyError, match="not imported"):
            kvpolicy.from_json(document(f"{module}:Stage"))
        assert not sprung.exists()
        assert module not in sys.modules

    def test_nor_does_the_command_that_reads_it(self, tmp_path: Path, sprung: Path, module: str) -> None:
        (tmp_path / "mine.json").write_text(document(f"{module}:Stage"), encoding="utf-8")
        result = CliRunner().invoke(app, ["eval", "demo", "--policy", "mine.json"])
        assert result.exit_code == 2
        assert not sprung.exists()

    def test_stages_are_what_kvpolicy_exports_as_such(self) -> None:
        assert set(STOCK) <= set(kvpolicy.__all__)
        assert all(kind.__module__.startswith("kvpolicy.") for kind in STOCK.values())

    @pytest.mark.parametrize("value", ["__import__('pathlib').Path('sprung').touch()", "(lambda: 1)()", "[].append"])
    def test_text_is_not_evaluated(self, value: str, sprung: Path, module: str) -> None:
        with pytest.raises(PolicyError, match="plain arguments"):
            kvpolicy.from_text(f"h2o(keep={value})")
        assert not sprung.exists()


def test_a_controller_is_not_unpickled(tmp_path: Path, sprung: Path) -> None:
    trap: Any = np.empty(1, dtype=object)
    trap[0] = Trap(sprung)
    np.savez(tmp_path / "controller.npz", format=trap)
    with pytest.raises(PolicyError, match="no controller can be read"):
        kvpolicy.GRUController.from_file(tmp_path / "controller.npz")
    assert not sprung.exists()


def test_a_record_is_not_unpickled(tmp_path: Path, sprung: Path) -> None:
    torch.save(Trap(sprung), tmp_path / "record.safetensors")
    with pytest.raises(RecordError, match="not a safetensors file"):
        load_record(tmp_path / "record.safetensors")
    assert not sprung.exists()


class TestModels:
    def test_code_beside_the_weights_is_not_run(self, tmp_path: Path, sprung: Path, module: str) -> None:
        config = {"model_type": "trapped", "auto_map": {"AutoConfig": f"{module}.Stage"}}
        (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
        with pytest.raises(LoadingError, match="contains custom code"):
            load_model(tmp_path)
        assert not sprung.exists()

    def test_weights_are_not_unpickled(self, tmp_path: Path, sprung: Path) -> None:
        tiny = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1}
        config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 8} | tiny
        (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
        torch.save(Trap(sprung), tmp_path / "pytorch_model.bin")
        with pytest.raises((pickle.UnpicklingError, OSError, ValueError)):
            AutoModelForCausalLM.from_pretrained(tmp_path)
        assert not sprung.exists()
