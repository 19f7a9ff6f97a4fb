"""Messages as vLLM passes them to the template (tests/integration/test_embeds_roundtrip.py compares with vLLM)."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from lethe.corruption.prompt.conversation import developer_as_system, template_messages
from lethe.corruption.prompt.message_parts import BILLING_HEADER
from lethe.corruption.spec import CorruptionError

IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}


def text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def template_message(message: dict[str, Any], content_format: Any = "string", replacements: Any = ()) -> dict[str, Any]:
    before = copy.deepcopy(message)
    (out,) = template_messages([message], content_format, dict(replacements))
    assert message == before
    return out


def test_parts_are_joined_by_line_breaks_with_media_in_front() -> None:
    message = {"role": "user", "content": [text_part("a"), IMAGE, text_part("b")]}
    assert template_message(message)["content"] == "<image>\na\nb"
    assert template_message(message, replacements={(0, 2): "X"}.items())["content"] == "<image>\na\nX"


def test_part_templates_get_parts() -> None:
    message = {"role": "user", "content": [text_part("a") | {"cache": 1}, IMAGE]}
    assert template_message(message, "openai")["content"] == [text_part("a") | {"cache": 1}, {"type": "image"}]
    assert template_message({"role": "user", "content": "a"}, "openai")["content"] == [text_part("a")]
    assert template_message({"role": "assistant", "content": None}, "openai")["content"] == []


def test_the_text_of_a_tool_message_is_always_a_string() -> None:
    message = {"role": "tool", "tool_call_id": "1", "content": [text_part("a"), text_part("b")]}
    assert template_message(message, "openai") == {"role": "tool", "content": "a\nb", "tool_call_id": "1"}
    assert template_message(message | {"content": [text_part("a"), IMAGE]}, "openai")["content"][1] == {"type": "image"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [('{"a": 1}', {"a": 1}), ({"a": 1}, {"a": 1}), ("", {}), (None, {}), ("[]", {}), ("{broken", {})],
)
def test_tool_arguments_are_parsed(arguments: object, expected: dict[str, int]) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    out = template_message({"role": "assistant", "content": None, "tool_calls": [call]})
    assert out["tool_calls"] == [call | {"function": {"name": "f", "arguments": expected}}]


def test_names_and_reasoning_are_passed_on() -> None:
    out = template_message({"role": "assistant", "content": "a", "name": "bob", "reasoning": "r", "tool_calls": []})
    assert out == {
        "role": "assistant",
        "content": "a",
        "name": "bob",
        "reasoning": "r",
        "reasoning_content": "r",
    }


def test_the_billing_line_of_a_system_message_is_dropped() -> None:
    assert template_message({"role": "system", "content": f"{BILLING_HEADER}: 1\nBe kind."})["content"] == "Be kind."
    assert template_message({"role": "system", "content": f"{BILLING_HEADER}: 1"})["content"] == ""
    assert (
        template_message({"role": "user", "content": f"{BILLING_HEADER}: 1\na"})["content"] == f"{BILLING_HEADER}: 1\na"
    )


def test_developer_messages_merge_into_one_system_message() -> None:
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
def test_messages_that_vllm_would_refuse_are_refused(message: dict[str, Any]) -> None:
    with pytest.raises(CorruptionError):
        template_message(message)
