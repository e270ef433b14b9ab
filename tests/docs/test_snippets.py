"""The code in README and docs runs as it stands there."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from types import CodeType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import is_hypothesis_test
from pages import PAGES, ROOT, Block, blocks, name, runs_in_the_build
from transformers import LlamaConfig, LlamaForCausalLM

from kvpolicy_hf.demo.scenes import draw
from kvpolicy_hf.loading import load_model

# Users are shown a name of the cache that warns of nothing; our other tests have one for every version of transformers.
pytestmark = pytest.mark.filterwarnings("error:`past_key_values` is deprecated:FutureWarning")

RUNNABLE = [page for page in PAGES if any(not block.skip for block in blocks(page)) and not runs_in_the_build(page)]


@pytest.fixture
def namespace() -> dict[str, Any]:
    """What the pages take for granted: a text model, a vision-language model, and their inputs."""
    vlm, processor = load_model("demo")
    tokenizer = processor.tokenizer
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=None,
    )
    return {
        "__name__": "snippet",
        "model": LlamaForCausalLM(config).eval(),
        "vlm": vlm,
        "processor": processor,
        "tokenizer": tokenizer,
        "image": draw(np.random.default_rng(0), "photo").image,
        "inputs": tokenizer("what is the password ? " * 4, return_tensors="pt"),
    }


@pytest.mark.parametrize("page", RUNNABLE, ids=name)
def test_every_block_of_a_page_runs(
    page: Path, namespace: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)  # what a page writes goes with the test
    modules = {Path(block.title).stem for block in blocks(page) if block.title}
    try:
        for block in blocks(page):
            code = _compiled(block, page)
            if block.title:
                (tmp_path / block.title).write_text(block.code, encoding="utf-8")
            if not block.skip:
                exec(code, namespace)
        for test in [value for value in namespace.values() if is_hypothesis_test(value)]:
            test()
    finally:
        for module in modules:
            sys.modules.pop(module, None)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_only_blocks_that_download_are_skipped(page: Path) -> None:
    for block in blocks(page):
        assert not block.skip or ".from_pretrained(" in block.code, f"{name(page)}:{block.line} could run"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_block_escapes_the_test(page: Path) -> None:
    fences = re.findall(r"^[ \t>]*(?:```|~~~)\s*(?:py|python)\b", page.read_text(encoding="utf-8"), re.M | re.I)
    assert len(fences) == len(blocks(page)), "write python blocks as ```python, not indented"


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "index.md"], ids=name)
def test_the_scorer_is_the_one_in_the_examples(page: Path) -> None:
    example = (ROOT / "examples" / "02_own_scorer.py").read_text(encoding="utf-8")
    (shown,) = [code for block in blocks(page) if (code := _class("LoudValues", block.code))]
    assert shown == _class("LoudValues", example)


def test_the_scorer_is_the_one_of_the_project() -> None:
    project = ROOT / "examples" / "own_policies" / "src" / "own_policies" / "scorers.py"
    (shown,) = [code for block in blocks(ROOT / "README.md") if (code := _class("LoudValues", block.code))]
    assert shown == _class("LoudValues", project.read_text(encoding="utf-8"))


def test_the_scorer_is_short() -> None:
    shown = [block.code for block in blocks(ROOT / "README.md") if "class LoudValues" in block.code]
    assert len([line for code in shown for line in code.splitlines() if line.strip()]) <= 10


def _compiled(block: Block, page: Path) -> CodeType:
    """The block at its own line of the page, so that an error names it."""
    return compile("\n" * (block.line - 1) + block.code, str(page), "exec", dont_inherit=True)


def _class(wanted: str, source: str) -> str | None:
    """The source of a class, decorators included; None if it is not there."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and node.name == wanted:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            return "\n".join(source.splitlines()[first - 1 : node.end_lineno])
    return None
