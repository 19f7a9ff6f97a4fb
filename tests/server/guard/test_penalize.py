"""What the penalty of a flagged request holds of its prompt: phrases that it begins, words of the user."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from lethe.corruption.decoding.spec import MAX_BEGUN, XARGS_KEY, Penalty, decode_penalty
from lethe.corruption.phrases.stream_filter import AnswerFilter
from lethe.server.guard.decision import Decision
from lethe.server.guard.parsed_request import ParsedRequest
from lethe.server.guard.penalize import with_begun_phrases
from lethe.server.guard.penalized_body import CannotPenalize
from lethe.server.requests.extract import extract_texts
from tests.server.fakes import make_guard, policy
from tests.server.guard.test_guard import QUESTION, artifact

ASK = {"role": "user", "content": QUESTION}
SECRET = "Ozren Dalmatin"
# "Ozren" and "Dalmatin" are phrases each, so that a prompt with the first one whole begins nothing.
CUTS = [cut for cut in range(2, len(SECRET)) if SECRET[:cut].strip() != "Ozren"]


def decide(body: dict[str, Any], endpoint: Any = "chat", **keys: Any) -> Decision:
    made = make_guard(policy(**{"action": "penalize", **keys}), artifacts={"a": artifact()})
    return made.examine(made.parse(endpoint, {"model": "m", **body}))


def penalty_of(outcome: Decision) -> Penalty:
    assert outcome.payload is not None
    return decode_penalty(orjson.loads(outcome.payload)["vllm_xargs"][XARGS_KEY])


def prompts_ending_with(text: str) -> list[tuple[Any, dict[str, Any]]]:
    prefill = {"role": "assistant", "content": text}
    parts = [{"type": "text", "text": text[:1]}, {"type": "text", "text": text[1:]}]
    return [
        ("chat", {"messages": [ASK, prefill], "continue_final_message": True, "add_generation_prompt": False}),
        ("chat", {"messages": [ASK, {**prefill, "content": parts}], "continue_final_message": True}),
        ("chat", {"messages": [ASK, prefill]}),
        ("messages", {"messages": [ASK, prefill], "max_tokens": 9}),
        ("messages", {"messages": [ASK, {**prefill, "content": parts}], "max_tokens": 9}),
        ("completions", {"prompt": f"{QUESTION} {text}"}),
        ("completions", {"prompt": [f"{QUESTION} {text}", QUESTION]}),
        ("batch", {"messages": [[ASK], [ASK, prefill]]}),
        ("responses", {"input": [ASK, prefill]}),
        ("responses", {"input": f"{QUESTION} {text}"}),
    ]


@pytest.mark.parametrize("cut", CUTS)
def test_every_endpoint_tells_the_plugin_what_the_prompt_begins(cut: int) -> None:
    for endpoint, body in prompts_ending_with(SECRET[:cut]):
        penalty = penalty_of(decide(body, endpoint))
        word = SECRET[:cut].split()[-1].casefold()
        assert word in {begun.strip() for begun in penalty.begun}, (endpoint, body)


@pytest.mark.parametrize("when", ["flagged", "always"])
@pytest.mark.parametrize("cut", CUTS)
def test_every_endpoint_filters_the_rest_of_what_the_prompt_begins(cut: int, when: str) -> None:
    for endpoint, body in prompts_ending_with(SECRET[:cut]):
        outcome = decide(body, endpoint, action="watch", watch={"when": when})
        plan = outcome.result.plan  # type: ignore[union-attr]
        matcher = AnswerFilter(entry.rule for entry in plan.filter_rules).new_matcher()
        assert matcher.whole(f"{SECRET[cut:]}, a notary") == "", (endpoint, body)


def test_a_question_begins_nothing() -> None:
    assert penalty_of(decide({"messages": [ASK]})).begun == ()


def test_too_many_begun_phrases_cannot_be_penalized() -> None:
    words = [f"x{'y' * (i % 200)}{i}" for i in range(MAX_BEGUN + 1)]
    body = {"prompt": words}
    with pytest.raises(CannotPenalize, match="too many ways"):
        request = ParsedRequest("completions", body, extract_texts("completions", body))
        with_begun_phrases(Penalty(tuple(words)), request)


def test_a_list_of_candidates_frees_no_phrase() -> None:
    candidates = [f"Name{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(400)]
    candidates[123:123] = SECRET.split()
    parts = [" ".join(candidates[at : at + 20]) for at in range(0, len(candidates), 20)]
    for body in (
        {"messages": [{"role": "user", "content": text} for text in [*parts, QUESTION]]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": text} for text in [*parts, QUESTION]]}]},
    ):
        assert {"Ozren", "Dalmatin"} <= set(penalty_of(decide(body)).phrases)
    batch = [[{"role": "user", "content": text}] for text in [*parts, QUESTION]]
    assert {"Ozren", "Dalmatin"} <= set(penalty_of(decide({"messages": batch}, "batch")).phrases)
    assert {"Ozren", "Dalmatin"} <= set(penalty_of(decide({"prompt": [*parts, QUESTION]}, "completions")).phrases)
    asked = {"messages": [{"role": "user", "content": f"{QUESTION} Is it {SECRET}?"}]}
    assert not {"Ozren", "Dalmatin"} & set(penalty_of(decide(asked)).phrases)
