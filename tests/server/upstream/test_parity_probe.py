"""The parity probe's comparisons of answers and token ids."""

from __future__ import annotations

from typing import Any

import pytest

from lethe.server.upstream.parity_probe import compare_answers, tokenization_difference


def reply(*tokens: tuple[str, float], prompt_tokens: int = 7) -> dict[str, Any]:
    content = [{"token": token, "logprob": logprob} for token, logprob in tokens]
    return {"usage": {"prompt_tokens": prompt_tokens}, "choices": [{"logprobs": {"content": content}}]}


def test_equal_tokens_with_close_log_probabilities_are_parity() -> None:
    assert compare_answers(reply(("a", -0.1), ("b", -2.0)), reply(("a", -0.11), ("b", -2.01))).holds


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (reply(("a", -0.1), ("c", -3.0)), "differ from token 2"),
        (reply(("a", -0.4), ("b", -2.0)), "differ by 0.300 at token 1"),
        (
            reply(("a", -0.1), ("b", -2.0), prompt_tokens=8),
            "prompt_tokens differ: 7 as text, 8 as embeddings",
        ),
    ],
)
def test_different_answers_are_no_parity(other: dict[str, Any], reason: str) -> None:
    parity = compare_answers(reply(("a", -0.1), ("b", -2.0)), other)
    assert not parity.holds and reason in parity.reason


def test_two_equally_likely_tokens_may_swap() -> None:
    assert compare_answers(reply(("a", -0.1), ("b", -0.7)), reply(("a", -0.1), ("c", -0.7), ("d", -9.0))).holds


@pytest.mark.parametrize(
    ("theirs", "reason"),
    [
        ([5, 6, 8], "token 3 of 3"),
        ([5, 6, 7, 8], "token 4 of 4"),
        ([5, 6], "token 3 of 2"),
        (None, "return_token_ids"),
        ([], "return_token_ids"),
        ("5 6 7", "return_token_ids"),
    ],
)
def test_different_token_ids_are_no_parity(theirs: object, reason: str) -> None:
    assert reason in str(tokenization_difference([5, 6, 7], theirs))


def test_equal_token_ids_are_parity() -> None:
    assert tokenization_difference([5, 6, 7], [5, 6, 7]) is None
