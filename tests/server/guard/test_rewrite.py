"""The single steps of a rewrite that need no guard around them; the whole is in test_guard.py."""

from __future__ import annotations

import pytest

from lethe.corruption.decoding.spec import XARGS_KEY, Penalty, decode_penalty
from lethe.server.guard.rewrite import CannotGuard, Judged, penalize
from lethe.server.requests.extract import Text

PENALTY = Penalty(("Ozren",), {"lens": 2.0})


def test_an_empty_penalty_guards_nothing() -> None:
    with pytest.raises(CannotGuard, match="nothing that could be forbidden"):
        penalize("completions", {"prompt": "a"}, Penalty((), {}), raw_logprobs=True)


def test_a_penalty_travels_as_one_argument() -> None:
    made = penalize("chat", {"prompt": "a", "vllm_xargs": None}, PENALTY, raw_logprobs=True)
    assert decode_penalty(made["vllm_xargs"][XARGS_KEY]) == PENALTY


def test_beam_search_would_drop_the_penalty() -> None:
    with pytest.raises(CannotGuard, match="beam search"):
        penalize("chat", {"use_beam_search": True}, PENALTY, raw_logprobs=True)


def test_candidates_beside_the_chosen_token_would_tell_what_is_forbidden() -> None:
    chat = {"logprobs": True, "top_logprobs": 5, "logprob_token_ids": [1], "prompt_logprobs": 2}
    kept = penalize("chat", chat, PENALTY, raw_logprobs=True)
    assert {k: v for k, v in kept.items() if k != "vllm_xargs"} == {"logprobs": True, "top_logprobs": 0}
    for asked in (5, 5.0, True, "5", -1, 0):
        assert penalize("completions", {"logprobs": asked}, PENALTY, raw_logprobs=True)["logprobs"] == 0
    for none in (None, False):
        assert penalize("completions", {"logprobs": none}, PENALTY, raw_logprobs=True)["logprobs"] is none
    processed = penalize("chat", chat, PENALTY, raw_logprobs=False)
    assert {k: v for k, v in processed.items() if k != "vllm_xargs"} == {k: chat[k] for k in list(chat)[:3]}


def test_choices_that_are_forbidden_are_not_offered() -> None:
    body = {"structured_outputs": {"choice": ["Ozren Dalmatin", "nobody"], "x": 1}}
    made = penalize("chat", body, PENALTY, raw_logprobs=True)
    assert made["structured_outputs"] == {"choice": ["nobody"], "x": 1}
    with pytest.raises(CannotGuard, match="every choice"):
        penalize("chat", {"structured_outputs": {"choice": ["Ozren"]}}, PENALTY, raw_logprobs=True)


def test_the_joined_conversation_is_the_last_text() -> None:
    places = ("messages[0].content", "messages[1].content")
    judged = Judged("chat", {}, [Text(place, text, message=True) for place, text in zip(places, "ab", strict=True)])
    assert judged.texts == ["a", "b", "a\nb"]
    assert [judged.place(i) for i in range(3)] == [
        "messages[0].content",
        "messages[1].content",
        "conversation",
    ]
