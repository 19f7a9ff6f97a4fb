"""The parity probe's comparison, and the watch over an upstream that goes and comes."""

from __future__ import annotations

from typing import Any

import pytest

from lethe.server.upstream.parity_probe import compare, differs


def reply(*tokens: tuple[str, float], prompt_tokens: int = 7) -> dict[str, Any]:
    content = [{"token": token, "logprob": logprob} for token, logprob in tokens]
    return {"usage": {"prompt_tokens": prompt_tokens}, "choices": [{"logprobs": {"content": content}}]}


def test_the_same_tokens_at_nearly_the_same_probability_are_parity() -> None:
    assert compare(reply(("a", -0.1), ("b", -2.0)), reply(("a", -0.11), ("b", -2.01))).holds


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (reply(("a", -0.1), ("c", -3.0)), "part at token 2"),
        (reply(("a", -0.4), ("b", -2.0)), "differ by 0.300 at token 1"),
        (
            reply(("a", -0.1), ("b", -2.0), prompt_tokens=8),
            "prompt_tokens differ: 7 as text, 8 as embeddings",
        ),
    ],
)
def test_another_answer_is_no_parity(other: dict[str, Any], reason: str) -> None:
    found = compare(reply(("a", -0.1), ("b", -2.0)), other)
    assert not found.holds and reason in found.reason


def test_two_candidates_that_are_equally_likely_may_swap() -> None:
    assert compare(reply(("a", -0.1), ("b", -0.7)), reply(("a", -0.1), ("c", -0.7), ("d", -9.0))).holds


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
def test_other_token_ids_are_no_parity(theirs: object, reason: str) -> None:
    assert reason in str(differs([5, 6, 7], theirs))


def test_the_same_token_ids_are_parity() -> None:
    assert differs([5, 6, 7], [5, 6, 7]) is None
