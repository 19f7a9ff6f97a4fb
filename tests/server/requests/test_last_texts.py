"""Which texts may stand directly before the answer."""

from __future__ import annotations

from typing import Any

import pytest

from lethe.server.requests.extract import extract_texts
from lethe.server.requests.fields import Endpoint
from lethe.server.requests.last_texts import possible_prompts

PREFILL = {"role": "assistant", "content": "It was Hsi"}
QUESTION = {"role": "user", "content": "Who?"}


def ends(endpoint: Endpoint, **body: Any) -> list[str]:
    return [texts[-1] for texts in possible_prompts(endpoint, extract_texts(endpoint, body))]


@pytest.mark.parametrize("endpoint", ["chat", "messages"])
def test_the_last_message_is_an_end(endpoint: Endpoint) -> None:
    assert ends(endpoint, messages=[QUESTION, PREFILL]) == ["It was Hsi"]


def test_the_last_message_follows_all_earlier_texts() -> None:
    prompts = possible_prompts("chat", extract_texts("chat", {"messages": [QUESTION, PREFILL]}))
    assert list(prompts) == [["Who?", "It was Hsi"]]


def test_other_fields_of_the_last_message_are_ends() -> None:
    last = {**PREFILL, "name": "Bob", "reasoning": "Think Hs"}
    tools = [{"type": "function", "function": {"name": "f", "description": "The last Hs"}}]
    assert set(ends("chat", messages=[{**QUESTION, "name": "Eve"}, last], tools=tools)) == {
        joiner.join(texts)
        for joiner in ("", "\n")
        for texts in (["It was Hsi"], ["It was Hsi", "Bob"], ["It was Hsi", "Bob", "Think Hs"])
    }


def test_first_and_last_part_of_the_last_message_are_ends() -> None:
    parts = [{"type": "text", "text": text} for text in ("one", "two", "three")]
    assert ends("chat", messages=[QUESTION, {"role": "assistant", "content": parts}]) == [
        "one",
        "onetwothree",
        "one",
        "one\ntwo\nthree",
    ]


def test_each_conversation_and_completion_prompt_has_an_end() -> None:
    assert ends("batch", messages=[[QUESTION], [QUESTION, PREFILL]]) == ["Who?", "It was Hsi"]
    assert ends("completions", prompt=["a Hs", "b Hs"]) == ["a Hs", "b Hs"]


def test_responses_end_with_their_last_item() -> None:
    assert ends("responses", instructions="Be brief.", input="Who is Hs") == ["Who is Hs"]
    assert ends("responses", input=[QUESTION, PREFILL]) == ["It was Hsi"]


def test_constraints_of_the_answer_are_no_ends() -> None:
    assert ends("chat", messages=[QUESTION], structured_outputs={"choice": ["Hsi"]}, stop=["Hs"]) == ["Who?"]
    schema = {"type": "json_schema", "json_schema": {"name": "Hsi", "schema": {}}}
    assert ends("chat", messages=[QUESTION], response_format=schema) == ["Who?"]
    assert ends("chat", messages=[]) == []
