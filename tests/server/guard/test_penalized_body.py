"""The single steps of a rewrite that need no guard around them; the whole is in test_guard.py."""

from __future__ import annotations

import pytest

from lethe.corruption.decoding.spec import XARGS_KEY, Penalty, decode_penalty
from lethe.server.guard.parsed_request import ParsedRequest
from lethe.server.guard.penalized_body import CannotPenalize, penalized_body
from lethe.server.requests.request_text import RequestText

PENALTY = Penalty(("Ozren",), {"lens": 2.0})


def test_an_empty_penalty_is_an_error() -> None:
    with pytest.raises(CannotPenalize, match="nothing that could be forbidden"):
        penalized_body("completions", {"prompt": "a"}, Penalty((), {}), raw_logprobs=True)


def test_a_penalty_is_sent_as_one_argument() -> None:
    made = penalized_body("chat", {"prompt": "a", "vllm_xargs": None}, PENALTY, raw_logprobs=True)
    assert decode_penalty(made["vllm_xargs"][XARGS_KEY]) == PENALTY


def test_beam_search_cant_be_penalized() -> None:
    with pytest.raises(CannotPenalize, match="beam search"):
        penalized_body("chat", {"use_beam_search": True}, PENALTY, raw_logprobs=True)


def test_candidates_beside_the_chosen_token_are_removed() -> None:
    chat = {"logprobs": True, "top_logprobs": 5, "logprob_token_ids": [1], "prompt_logprobs": 2}
    kept = penalized_body("chat", chat, PENALTY, raw_logprobs=True)
    assert {k: v for k, v in kept.items() if k != "vllm_xargs"} == {"logprobs": True, "top_logprobs": 0}
    for asked in (5, 5.0, True, "5", -1, 0):
        assert penalized_body("completions", {"logprobs": asked}, PENALTY, raw_logprobs=True)["logprobs"] == 0
    for none in (None, False):
        assert penalized_body("completions", {"logprobs": none}, PENALTY, raw_logprobs=True)["logprobs"] is none
    processed = penalized_body("chat", chat, PENALTY, raw_logprobs=False)
    assert {k: v for k, v in processed.items() if k != "vllm_xargs"} == {k: chat[k] for k in list(chat)[:3]}


def test_a_forced_answer_carries_no_penalty() -> None:
    body = {"structured_outputs": {"choice": ["Ozren"]}}
    assert penalized_body("chat", body, PENALTY, raw_logprobs=True) == body


def test_echo_brings_no_log_probabilities_of_the_prompt() -> None:
    for endpoint in ("chat", "completions"):
        for logprobs, echo in ((1, True), (True, 1), (0, True), (None, True), (False, True), (1, False), (1, None)):
            body = {"echo": echo, "logprobs": logprobs, "prompt_logprobs": 1}
            made = penalized_body(endpoint, body, PENALTY, raw_logprobs=True)  # type: ignore[arg-type]
            reveals = bool(echo) and logprobs is not None and logprobs is not False
            assert "prompt_logprobs" not in made and ("echo" in made) is not reveals


def test_windows_of_the_joined_conversation_come_last() -> None:
    places = ("messages[0].content", "messages[1].content")
    judged = ParsedRequest(
        "chat", {}, [RequestText(place, text, message=True) for place, text in zip(places, "ab", strict=True)]
    )
    assert judged.texts == ["a", "b", "a\nb"]
    assert [judged.place(i) for i in range(3)] == [
        "messages[0].content",
        "messages[1].content",
        "conversation",
    ]
