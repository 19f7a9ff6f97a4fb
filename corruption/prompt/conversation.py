"""Chat messages as vLLM passes them to the chat template, with chosen texts replaced.

It repeats what vLLM 0.32 does between the request and the template, as far as that changes the text around a content:
parts are joined by line breaks or kept as parts, the developer role becomes the system role, tool arguments are
parsed. It knows no tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lethe.corruption.prompt.content_format import ContentFormat
from lethe.corruption.prompt.message_parts import BILLING_HEADER, PartLocation, part_text
from lethe.corruption.spec import CorruptionError


def template_messages(
    messages: Sequence[Any], content_format: ContentFormat, replacements: Mapping[PartLocation, str]
) -> list[dict[str, Any]]:
    """Return the messages that the chat template gets. The input is not modified.

    replacements: the texts to put in place of others. Raises CorruptionError for messages that vLLM would refuse.
    """
    return [_template_message(m, message, content_format, replacements) for m, message in enumerate(messages)]


def developer_as_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages for a template without a developer role: one merged system message at the front."""
    if not any(message["role"] == "developer" for message in messages):
        return messages
    renamed = [
        {k: v for k, v in message.items() if k != "tools"} | {"role": "system"}
        if message["role"] == "developer"
        else message
        for message in messages
    ]
    system = [message for message in renamed if message["role"] == "system"]
    if renamed[0]["role"] == "system" and len(system) == 1:
        return renamed
    contents = [_as_string(message["content"]) for message in system]
    merged = {"role": "system", "content": "\n\n".join(content for content in contents if content)}
    return [merged, *(message for message in renamed if message["role"] != "system")]


def _template_message(
    m: int, message: Mapping[str, Any], content_format: ContentFormat, replacements: Mapping[PartLocation, str]
) -> dict[str, Any]:
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str):
        raise CorruptionError(f"messages[{m}] has no role")
    if content is None:
        parts: list[tuple[int | None, Any]] = []
    elif isinstance(content, str):
        parts = [(None, {"type": "text", "text": content})]
    elif isinstance(content, list):
        parts = list(enumerate(content))
    else:
        raise CorruptionError(f"messages[{m}].content is neither text nor a list of parts")
    converted = [_template_part(part, role, replacements.get((m, p))) for p, part in parts]
    visible = [part for part in converted if part is not None]
    out: dict[str, Any] = {"role": role}
    out["content"] = visible if content_format == "openai" else _as_string(visible)
    if role == "tool" and all(part["type"] == "text" for part in visible):
        out["content"] = _as_string(visible)
    return out | _other_fields(message)


def _template_part(part: object, role: str, replacement: str | None) -> dict[str, Any] | None:
    if not isinstance(part, dict):
        raise CorruptionError("a content part is not an object")  # vLLM refuses plain strings, too
    text = part_text(part)
    if text is None:
        # Not what vLLM shows, but the same in every rendering, which is all that locating a text needs.
        return {"type": str(part.get("type")).removeprefix("input_").removesuffix("_url").removesuffix("_embeds")}
    if replacement is not None:
        text = replacement
    elif role == "system" and text.startswith(BILLING_HEADER):
        text = text.partition("\n")[2]
        if not text:
            return None
    extra = {k: v for k, v in part.items() if k not in {"type", "text", "refusal", "thinking"}}
    return {"type": "text", "text": text} | extra


def _as_string(content: Any) -> str:
    """The parts as one text, media first, as vLLM joins them for templates that expect a string."""
    if isinstance(content, str):
        return content
    media = [f"<{part['type']}>" for part in content if part["type"] != "text"]
    return "\n".join(media + [part["text"] for part in content if part["type"] == "text"])


def _other_fields(message: Mapping[str, Any]) -> dict[str, Any]:
    """The other fields of a message that templates read."""
    out = {key: message[key] for key in ("name", "task") if isinstance(message.get(key), str)}
    if message["role"] == "assistant":
        if message.get("reasoning") is not None:
            out |= {"reasoning": message["reasoning"], "reasoning_content": message["reasoning"]}
        if message.get("tool_calls"):
            out["tool_calls"] = [_with_parsed_arguments(call) for call in message["tool_calls"]]
    elif message["role"] == "tool" and "tool_call_id" in message:
        out["tool_call_id"] = message["tool_call_id"]
    elif message["role"] == "developer":
        out["tools"] = message.get("tools")
    return out


def _with_parsed_arguments(call: Any) -> dict[str, Any]:
    """A tool call with its arguments as an object, as vLLM passes it; {} where they are not one."""
    if not isinstance(call, dict) or not isinstance(call.get("function"), dict):
        raise CorruptionError("a tool call has no function")
    arguments = call["function"].get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            arguments = {}
    if not isinstance(arguments, dict):
        arguments = {}
    return call | {"function": call["function"] | {"arguments": arguments}}
