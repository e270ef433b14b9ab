"""However the tokens are handed out: as scores and logits, as a stream, through a pipeline."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from expected import Mode, modes_of
from models import FIRST_WORD, VOCABULARY
from ours import COUNT, POLICIES, ROWS, SETTINGS
from plain import Plain
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast, TextIteratorStreamer, pipeline

from kvpolicy_hf import PolicyCache
from kvpolicy_hf._transformers import as_argument

PlainOf = Callable[[str], Plain]
IDS: list[int] = ROWS[0]["input_ids"][0].tolist()


def tokenizer() -> PreTrainedTokenizerFast:
    """Every token is a word: w4, w5, ..."""
    words = {"<pad>": 0, **{f"w{number}": number for number in range(1, VOCABULARY)}, "<unk>": VOCABULARY}
    made = Tokenizer(WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", unk_token="<unk>")


def text(ids: list[int]) -> str:
    return " ".join(f"w{token}" for token in ids)


def scores_and_logits(plain: Plain, cache: PolicyCache) -> list[int]:
    names = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True, "output_attentions": True}
    out = plain.model.generate(**ROWS[0], **SETTINGS, **names, past_key_values=cache)
    tokens: list[int] = out.sequences[0, len(IDS) :].tolist()
    history = (tuple(IDS), *((token,) for token in tokens))
    due = torch.stack([plain.logits(history[: number + 1]) for number in range(COUNT)])
    torch.testing.assert_close(torch.cat(out.logits), due, atol=1e-4, rtol=1e-4)
    due[:, :FIRST_WORD] = -torch.inf
    torch.testing.assert_close(torch.cat(out.scores), due, atol=1e-4, rtol=1e-4)
    assert out.past_key_values is cache
    assert set(out.attentions) == {()}  # as under sdpa: none are made
    return tokens


def streaming(plain: Plain, cache: PolicyCache) -> list[int]:
    streamer = TextIteratorStreamer(tokenizer(), skip_prompt=True)
    call: dict[str, Any] = {**ROWS[0], **SETTINGS, "past_key_values": cache, "streamer": streamer}
    thread = threading.Thread(target=plain.model.generate, kwargs=call)
    thread.start()
    said = "".join(streamer)
    thread.join()
    return [int(word[1:]) for word in said.split()]


def text_generation(plain: Plain, cache: PolicyCache) -> list[int]:
    run = pipeline("text-generation", model=plain.model, tokenizer=tokenizer(), device="cpu")
    (out,) = run(text(IDS), **SETTINGS, **as_argument(cache), return_full_text=False)
    return [int(word[1:]) for word in out["generated_text"].split()]


WAYS = {
    "scores and logits": scores_and_logits,
    "streaming": streaming,
    "text-generation pipeline": text_generation,
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("mode", modes_of("test_outputs.py::test_outputs"), ids=repr)
def test_outputs(mode: Mode, policy: str, plain_of: PlainOf) -> None:
    plain = plain_of(policy)
    cache = PolicyCache(plain.model, plain.policy, inputs=ROWS[0])
    assert WAYS[mode.name](plain, cache) == plain.greedy((tuple(IDS),), COUNT, FIRST_WORD)
