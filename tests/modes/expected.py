"""What every way of generating does under a policy: the one place that says it.

The tests beside this file are parametrised from here, and `python -m scripts.modes` writes the tables of
`docs/generation.md` from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["FAULTS", "MODES", "Mode", "modes_of"]


@dataclass(frozen=True)
class Mode:
    """One way of generating.

    Attributes:
        name: for people.
        test: ``file::function`` under tests/modes.
        options: of `generate`, where they can be written down.
        call: how it is called, where options do not say it.
        holds: what is the same as under the same policy run plainly.
        refused: words of the error, which comes before any token; empty: it is not refused.
        by: who refuses.
    """

    name: str
    test: str
    options: Mapping[str, Any] = field(default_factory=dict)
    call: str = ""
    holds: str = "token-identical"
    refused: str = ""
    by: str = "kvpolicy"

    def __repr__(self) -> str:
        return self.name


_DECODING = "test_decoding.py::test_it_is_plain_decoding"
_TURNS = "test_later_turns.py::test_turns"
_ASSISTED = "test_assisted.py::test_guesses_leave_no_trace"
_OUTPUTS = "test_outputs.py::test_outputs"
_REFUSED = "test_refused.py::test_before_any_token"
_UNASSISTED = "test_refused.py::test_guesses_that_cannot_be_exact"
_HUB = "requires `trust_remote_code=True`"
_TWO_CACHES = "Passing both `cache_implementation`"

MODES = [
    Mode("greedy, batch padded on the left", _DECODING),
    Mode("sampling", _DECODING, {"do_sample": True, "temperature": 1.3, "top_k": 30}),
    Mode("several sequences", _DECODING, {"do_sample": True, "num_return_sequences": 2}),
    Mode("beam search", _DECODING, {"num_beams": 2, "num_return_sequences": 2}),
    Mode("beam sampling", _DECODING, {"num_beams": 2, "do_sample": True, "top_k": 20}),
    Mode("prompt in chunks", _DECODING, {"prefill_chunk_size": 5}),
    Mode("prompt in chunks, beams", _DECODING, {"prefill_chunk_size": 8, "num_beams": 2}),
    Mode(
        "early end in a part of the batch", _DECODING, {"eos_token_id": [*range(4, 40)]}, "eos_token_id=[*range(4, 40)]"
    ),
    Mode("early end of beams", _DECODING, {"num_beams": 2, "eos_token_id": 77, "length_penalty": 0.5}),
    Mode("penalties and forbidden words", _DECODING, {"repetition_penalty": 1.4, "bad_words_ids": [[77], [99, 86]]}),
    Mode("constraints by allowed tokens", "test_decoding.py::test_allowed_tokens", call="prefix_allowed_tokens_fn=..."),
    Mode("stopping criteria", "test_decoding.py::test_stopping_criteria", call="stopping_criteria=..."),
    Mode("classifier-free guidance", "test_decoding.py::test_guidance", {"guidance_scale": 1.5}),
    Mode("embeddings for a prompt", "test_decoding.py::test_embeddings", call="inputs_embeds=..."),
    Mode("second and third turn", _TURNS, call="the same cache in each `generate`"),
    Mode("turns in chunks", _TURNS, {"prefill_chunk_size": 3}, "`cache.expect(inputs)`, `prefill_chunk_size=3`"),
    Mode("turns of one token", _TURNS, call="the same cache in each `generate`"),
    Mode("shared system prompt", "test_copies.py::test_copies_are_independent", call="`copy.deepcopy(cache)`"),
    Mode("prompt lookup", _ASSISTED, {"prompt_lookup_num_tokens": 3}),
    Mode("assistant model", _ASSISTED, call="assistant_model=..."),
    Mode("early exit of the model itself", _ASSISTED, {"assistant_early_exit": 2}),
    Mode(
        "assisted sampling",
        "test_assisted.py::test_sampled_guesses",
        call="assistant_model=..., do_sample=True",
        holds="logits identical, for the tokens that it drew",
    ),
    Mode("streaming", _OUTPUTS, call="streamer=TextIteratorStreamer(...)"),
    Mode("text-generation pipeline", _OUTPUTS, call="pipeline('text-generation', ...)(..., cache=cache)"),
    Mode(
        "image-text-to-text pipeline",
        "test_pictures.py::test_the_pipeline",
        call="pipeline('image-text-to-text', ...)(..., generate_kwargs={'cache': cache})",
    ),
    Mode("scores and logits", _OUTPUTS, call="return_dict_in_generate=True, output_scores=True, output_logits=True"),
    Mode("quantised weights", "test_weights.py::test_int8_weights", call="`torch.nn.Linear` replaced by int8 layers"),
    Mode("inference mode", "test_decoding.py::test_inference_mode", call="torch.inference_mode()"),
    Mode("quantised cache", _REFUSED, {"cache_implementation": "quantized"}, refused=_TWO_CACHES, by="transformers"),
    Mode("static cache", _REFUSED, {"cache_implementation": "static"}, refused=_TWO_CACHES, by="transformers"),
    Mode("offloaded cache", _REFUSED, {"cache_implementation": "offloaded"}, refused=_TWO_CACHES, by="transformers"),
    Mode("no cache", _REFUSED, {"use_cache": False}, refused="attends with use_cache=False"),
    Mode("contrastive search", _REFUSED, {"penalty_alpha": 0.6, "top_k": 4}, refused=_HUB, by="transformers"),
    Mode("DoLa", _REFUSED, {"dola_layers": "high"}, refused=_HUB, by="transformers"),
    Mode(
        "group beam search",
        _REFUSED,
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
        refused=_HUB,
        by="transformers",
    ),
    Mode(
        "constrained beam search",
        _REFUSED,
        {"num_beams": 2, "force_words_ids": [[5]]},
        refused=_HUB,
        by="transformers",
    ),
    Mode(
        "prompt lookup for a batch",
        _REFUSED,
        {"prompt_lookup_num_tokens": 3},
        refused="assisted generate is only supported for batch_size = 1",
        by="transformers",
    ),
    Mode(
        "continuous batching",
        "test_refused.py::test_continuous_batching",
        call="generate_batch(...)",
        refused="is not supported",
        by="transformers",
    ),
    Mode(
        "guesses, prompt of unknown length",
        _UNASSISTED,
        call="prompt_lookup_num_tokens=3, PolicyCache without inputs=",
        refused="does not know where the prompt ends",
    ),
    Mode(
        "guesses in a later turn",
        _UNASSISTED,
        call="prompt_lookup_num_tokens=3, a cache that holds tokens",
        refused="which assisted and prompt-lookup decoding would feed again",
    ),
    Mode(
        "guesses, layers that share a budget",
        _UNASSISTED,
        call="prompt_lookup_num_tokens=3 under d2o, vl_cache, air_cache",
        refused="waits until every layer has attended",
    ),
    Mode(
        "guesses of an encoder-decoder",
        "test_refused.py::test_encoder_decoders_make_no_guesses",
        call="prompt_lookup_num_tokens=3, an EncoderDecoderCache",
        refused="takes no tokens back from a PolicyCache",
    ),
]


def modes_of(test: str) -> list[Mode]:
    """Those that a test proves: its parameters."""
    return [mode for mode in MODES if mode.test == test]


# Silent faults that were found in other libraries, numbered as in the list of them: what happens there, and the tests
# by which it does not happen here.
FAULTS: dict[int, tuple[str, list[str]]] = {
    1: (
        "breaks on transformers from 5.4 on, whose attention is no longer given cache_position",
        ["tests/adapters/test_exactness.py::test_full_gives_the_plain_tokens"],
    ),
    2: (
        "padding on the left is kept as if it were tokens, and masks speak of columns that are gone",
        [
            "tests/modes/test_decoding.py::test_it_is_plain_decoding",
            "tests/adapters/test_eviction.py::test_a_row_of_a_padded_batch_is_the_row_alone",
        ],
    ),
    3: (
        "beams are reordered, but not what was observed of them",
        [
            "tests/modes/test_decoding.py::test_it_is_plain_decoding",
            "tests/adapters/test_eviction.py::test_reordered_beams_hold_what_their_own_tokens_give",
        ],
    ),
    4: (
        "tokens are taken back by logical length from a table that holds fewer rows",
        [
            "tests/modes/test_assisted.py::test_guesses_leave_no_trace",
            "tests/modes/test_refused.py::test_guesses_that_cannot_be_exact",
            "tests/adapters/test_errors.py::test_crop",
        ],
    ),
    5: (
        "a second turn feeds old tokens again, at wrong positions",
        [
            "tests/modes/test_later_turns.py::test_turns",
            "tests/modes/test_refused.py::test_guesses_that_cannot_be_exact",
        ],
    ),
    6: (
        "after a prefilled system prompt nothing is compressed; of a prompt in chunks only the first is",
        [
            "tests/modes/test_copies.py::test_later_context_is_compressed",
            "tests/modes/test_decoding.py::test_it_is_plain_decoding",
        ],
    ),
    7: (
        "scores come from queries that were computed outside the model, wrongly",
        [
            "tests/adapters/test_scores.py::test_mass_of_a_prompt_is_the_models_own_attention",
            "tests/families/test_families.py::test_mass_is_the_models_own",
        ],
    ),
    8: (
        "sliding-window layers crash",
        [
            "tests/modes/test_assisted.py::test_sliding_windows",
            "tests/adapters/test_eviction.py::test_a_prompt_in_chunks_is_the_prompt_whole",
        ],
    ),
    9: (
        "budgets of heads are simulated by fake keys: no memory is saved, and masks leak into other requests",
        [
            "tests/adapters/test_memory.py::test_reported_bytes_are_the_storage",
            "tests/adapters/test_eviction.py::test_requests_do_not_touch_each_other",
        ],
    ),
    10: (
        "with budgets of layers any pass of several tokens crashes, for all layers share one mask",
        ["tests/modes/test_later_turns.py::test_layers_of_different_length"],
    ),
    11: (
        "parts are put together that do not fit, and some of these give wrong numbers",
        [
            "tests/compositions/test_compositions.py::test_every_composition_is_built_or_refused_for_a_documented_reason",
            "tests/compositions/test_compositions.py::test_it_runs_and_keeps_the_invariants",
        ],
    ),
    12: (
        "importing it changes the attention of every model",
        ["tests/adapters/test_exactness.py::test_importing_changes_nothing_in_transformers"],
    ),
    13: (
        "in a quantised cache, eviction while decoding deletes every recent token",
        ["tests/modes/test_refused.py::test_before_any_token"],
    ),
    14: (
        "an exception in a scorer leaves the policy changed",
        ["tests/adapters/test_errors.py::test_a_scorer_that_goes_wrong_is_named"],
    ),
    15: (
        "merging makes a matrix of the rows that leave by the rows that stay",
        [
            "tests/unit/mergers/test_weighers.py::test_memory_is_linear_in_the_rows",
            "tests/unit/test_most_similar.py::test_its_memory_is_bounded_by_the_chunk",
        ],
    ),
    16: (
        "attention mass needs eager attention, and is not summed while decoding",
        [
            "tests/adapters/test_scores.py::test_no_pass_makes_a_matrix_of_queries_by_rows",
            "tests/adapters/test_scores.py::test_mass_goes_on_while_decoding",
        ],
    ),
    17: (
        "inputs are checked by assertions, which are gone under -O",
        ["tests/unit/test_policy.py::TestRefusals"],
    ),
}
