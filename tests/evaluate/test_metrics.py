"""How answers are compared."""

from __future__ import annotations

import math

import pytest

from kvpolicy_hf.evaluate import metrics


def test_exact_is_about_words() -> None:
    assert metrics.exact("a1  fish\n", "a1 fish") == 1.0
    assert metrics.exact("a1 fish a2", "a1 fish") == metrics.exact("", "a1 fish") == 0.0


def test_rouge_l_is_the_f1_of_the_longest_common_subsequence() -> None:
    # "the cat sat" in "the cat on the mat sat": 3 of 3 words found, 3 of 6 wanted
    assert metrics.rouge_l("the cat sat", "the cat on the mat sat") == pytest.approx(2 * 1 * 0.5 / 1.5)
    assert metrics.rouge_l("", "") == metrics.rouge_l("...", "...") == 1.0
    assert metrics.rouge_l("", "a") == metrics.rouge_l("a", "") == metrics.rouge_l("b", "a") == 0.0


def test_the_first_token_that_differs() -> None:
    assert [metrics.same_until(said, [1, 2, 3]) for said in ([1, 2, 3], [1, 9, 3], [9], [], [1, 2, 3, 4], [1])] == [
        3,
        1,
        0,
        0,
        3,
        1,
    ]


def test_agreement_is_a_share_of_places() -> None:
    assert metrics.agreement([1, 9, 3, 9], [1, 2, 3, 4]) == 0.5
    with pytest.raises(ValueError, match="zip"):
        metrics.agreement([1], [1, 2])


def test_kept_likelihood_is_a_geometric_mean_per_token() -> None:
    assert metrics.kept_likelihood(3.0, 3.0, 5) == 1.0
    assert metrics.kept_likelihood(2 * math.log(2), 0.0, 2) == pytest.approx(0.5)
    assert metrics.kept_likelihood(0.0, math.log(2), 1) == pytest.approx(2.0)
