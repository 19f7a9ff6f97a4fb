"""Messages as vLLM hands them to the template (tests/integration/test_embeds_roundtrip.py asks vLLM)."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from lethe.corruption.prompt.conversation import (
    BILLING_HEADER,
    developer_as_system,
    part_text,
    replaceable_texts,
    template_messages,
)
from lethe.corruption.spec import CorruptionError

IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}


def text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def shown(message: dict[str, Any], content_format: Any = "string", replaced: Any = ()) -> dict[str, Any]:
    before = copy.deepcopy(message)
    (out,) = template_messages([message], content_format, dict(replaced))
    assert message == before
    return out


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (text_part("a"), "a"),
        ({"type": "input_text", "text": "a"}, "a"),
        ({"type": "refusal", "refusal": "no"}, "no"),
        ({"type": "thinking", "thinking": "hm"}, "hm"),
        ({"type": "text"}, None),
        ({"type": "text", "text": 3}, None),
        ({"type": ["text"], "text": "a"}, None),
        (IMAGE, None),
        ("a", None),
    ],
)
def test_the_text_of_a_part(part: object, expected: str | None) -> None:
    assert part_text(part) == expected


def test_every_replaceable_text_has_an_address() -> None:
    messages = [
        {"role": "system", "content": "a"},
        {"role": "user", "content": [IMAGE, text_part("b")]},
        {"role": "x"},
    ]
    assert replaceable_texts(messages) == {(0, None): "a", (1, 1): "b"}


def test_parts_are_joined_by_line_breaks_with_media_in_front() -> None:
    message = {"role": "user", "content": [text_part("a"), IMAGE, text_part("b")]}
    assert shown(message)["content"] == "<image>\na\nb"
    assert shown(message, replaced={(0, 2): "X"}.items())["content"] == "<image>\na\nX"


def test_templates_that_take_parts_get_parts() -> None:
    message = {"role": "user", "content": [text_part("a") | {"cache": 1}, IMAGE]}
    assert shown(message, "openai")["content"] == [text_part("a") | {"cache": 1}, {"type": "image"}]
    assert shown({"role": "user", "content": "a"}, "openai")["content"] == [text_part("a")]
    assert shown({"role": "assistant", "content": None}, "openai")["content"] == []


def test_a_tools_text_is_always_a_string() -> None:
    message = {"role": "tool", "tool_call_id": "1", "content": [text_part("a"), text_part("b")]}
    assert shown(message, "openai") == {"role": "tool", "content": "a\nb", "tool_call_id": "1"}
    assert shown(message | {"content": [text_part("a"), IMAGE]}, "openai")["content"][1] == {"type": "image"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [('{"a": 1}', {"a": 1}), ({"a": 1}, {"a": 1}), ("", {}), (None, {}), ("[]", {}), ("{broken", {})],
)
def test_tool_arguments_are_parsed(arguments: object, expected: dict[str, int]) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    out = shown({"role": "assistant", "content": None, "tool_calls": [call]})
    assert out["tool_calls"] == [call | {"function": {"name": "f", "arguments": expected}}]


def test_names_and_reasoning_are_passed_on() -> None:
    out = shown({"role": "assistant", "content": "a", "name": "bob", "reasoning": "r", "tool_calls": []})
    assert out == {
        "role": "assistant",
        "content": "a",
        "name": "bob",
        "reasoning": "r",
        "reasoning_content": "r",
    }


def test_the_billing_line_of_a_system_message_is_dropped() -> None:
    assert shown({"role": "system", "content": f"{BILLING_HEADER}: 1\nBe kind."})["content"] == "Be kind."
    assert shown({"role": "system", "content": f"{BILLING_HEADER}: 1"})["content"] == ""
    assert shown({"role": "user", "content": f"{BILLING_HEADER}: 1\na"})["content"] == f"{BILLING_HEADER}: 1\na"


def test_developer_messages_merge_into_one_system_message_at_the_front() -> None:
    messages = [
        {"role": "system", "content": "a"},
        {"role": "user", "content": "u"},
        {"role": "developer", "content": [text_part("b"), text_part("c")], "tools": None},
    ]
    merged = {"role": "system", "content": "a\n\nb\nc"}
    assert developer_as_system(messages) == [merged, messages[1]]
    alone = [{"role": "developer", "content": "a", "tools": None}, messages[1]]
    assert developer_as_system(alone) == [{"role": "system", "content": "a"}, messages[1]]
    assert developer_as_system(messages[:2]) == messages[:2]


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": None, "tool_calls": ["x"]},
        {"role": "assistant", "content": None, "tool_calls": [{"function": "f"}]},
        {"role": None, "content": "a"},
        {"role": "user", "content": {"text": "a"}},
        {"role": "user", "content": ["a"]},
    ],
)
def test_what_vllm_would_refuse_is_refused(message: dict[str, Any]) -> None:
    with pytest.raises(CorruptionError):
        shown(message)
