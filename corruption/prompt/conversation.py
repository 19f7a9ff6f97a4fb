"""Chat messages as vLLM hands them to the chat template, with chosen texts replaced.

Follows what vLLM 0.32 does between the request and the template, as far as it changes text around a
content: parts joined by line breaks or kept as parts, developer turned into system, tool arguments
parsed. Knows no tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

import jinja2
from jinja2 import nodes

from lethe.corruption.prompt.chat_template import Generation
from lethe.corruption.spec import CorruptionError

TextTarget = tuple[int, int | None]
ContentFormat = Literal["string", "openai"]

# The key that holds the text of each kind of text part.
TEXT_KEYS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
}
BILLING_HEADER = "x-anthropic-billing-header"


def part_text(part: object) -> str | None:
    """The text of one content part; None for images, audio, and whatever else carries none."""
    if isinstance(part, dict) and isinstance(part.get("type"), str):
        text = part.get(TEXT_KEYS.get(part["type"], ""))
        return text if isinstance(text, str) else None
    return None


def replaceable_texts(messages: Sequence[Any]) -> dict[TextTarget, str]:
    """Every replaceable text: (message, part) → text; the part is None where content is a string."""
    found: dict[TextTarget, str] = {}
    for m, message in enumerate(messages):
        if not isinstance(message, dict):
            raise CorruptionError(f"messages[{m}] is not an object")
        content = message.get("content")
        if isinstance(content, str):
            found[m, None] = content
        elif isinstance(content, list):
            found |= {(m, p): text for p, part in enumerate(content) if (text := part_text(part)) is not None}
    return found


def template_messages(
    messages: Sequence[Any], content_format: ContentFormat, replacements: Mapping[TextTarget, str]
) -> list[dict[str, Any]]:
    """What the chat template sees. The input is not modified."""
    return [_message(m, message, content_format, replacements) for m, message in enumerate(messages)]


def developer_as_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For templates without a developer role: system messages instead, merged into one at the front."""
    if not any(message["role"] == "developer" for message in messages):
        return messages
    turned = [
        {k: v for k, v in message.items() if k != "tools"} | {"role": "system"}
        if message["role"] == "developer"
        else message
        for message in messages
    ]
    system = [message for message in turned if message["role"] == "system"]
    if turned[0]["role"] == "system" and len(system) == 1:
        return turned
    contents = [_joined(message["content"]) for message in system]
    merged = {"role": "system", "content": "\n\n".join(c for c in contents if c)}
    return [merged, *(message for message in turned if message["role"] != "system")]


def _message(
    m: int, message: Mapping[str, Any], content_format: ContentFormat, replacements: Mapping[TextTarget, str]
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
    seen = [_part(part, role, replacements.get((m, p))) for p, part in parts]
    kept = [part for part in seen if part is not None]
    out: dict[str, Any] = {"role": role}
    out["content"] = kept if content_format == "openai" else _joined(kept)
    if role == "tool" and all(part["type"] == "text" for part in kept):
        out["content"] = _joined(kept)
    return out | _extras(message)


def _part(part: object, role: str, replacement: str | None) -> dict[str, Any] | None:
    if not isinstance(part, dict):
        raise CorruptionError("a content part is not an object")  # vLLM refuses bare strings, too
    text = part_text(part)
    if text is None:
        # A stand-in: what surrounds a text has to be the same in every rendering, not to be right.
        return {"type": str(part.get("type")).removeprefix("input_").removesuffix("_url").removesuffix("_embeds")}
    if replacement is not None:
        text = replacement
    elif role == "system" and text.startswith(BILLING_HEADER):
        # vLLM drops this one line, so that a client's changing header doesn't spoil its prefix cache.
        text = text.partition("\n")[2]
        if not text:
            return None
    extra = {k: v for k, v in part.items() if k not in {"type", "text", "refusal", "thinking"}}
    return {"type": "text", "text": text} | extra


def _joined(content: Any) -> str:
    """Parts as one text, media first, as vLLM joins them for templates that expect a string."""
    if isinstance(content, str):
        return content
    media = [f"<{part['type']}>" for part in content if part["type"] != "text"]
    return "\n".join(media + [part["text"] for part in content if part["type"] == "text"])


def _extras(message: Mapping[str, Any]) -> dict[str, Any]:
    """The other fields of a message that templates read."""
    out = {key: message[key] for key in ("name", "task") if isinstance(message.get(key), str)}
    if message["role"] == "assistant":
        if message.get("reasoning") is not None:
            out |= {"reasoning": message["reasoning"], "reasoning_content": message["reasoning"]}
        if message.get("tool_calls"):
            out["tool_calls"] = [_tool_call(call) for call in message["tool_calls"]]
    elif message["role"] == "tool" and "tool_call_id" in message:
        out["tool_call_id"] = message["tool_call_id"]
    elif message["role"] == "developer":
        out["tools"] = message.get("tools")
    return out


def _tool_call(call: Any) -> dict[str, Any]:
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


@lru_cache(maxsize=32)
def content_format(template: str) -> ContentFormat:
    """Whether a template loops over the parts of a content ("openai") or expects a string.

    Follows values that come from a message's content through assignments and macro arguments, as vLLM
    does; `--chat-template-content-format` overrides both.
    """
    tree = jinja2.Environment(extensions=["jinja2.ext.loopcontrols", Generation]).parse(template)
    names = {"content"}
    for _ in range(8):  # assignments of assignments; deeper chains don't occur
        grown = names | _assigned(tree, names) | _passed(tree, names)
        if grown == names:
            break
        names = grown
    return "openai" if any(_is_content(loop.iter, names) for loop in tree.find_all(nodes.For)) else "string"


def _is_content(node: nodes.Node, names: set[str]) -> bool:
    while isinstance(node, (nodes.Filter, nodes.Test)) and node.node is not None:
        node = node.node
    if isinstance(node, nodes.Getitem):
        if isinstance(node.arg, nodes.Slice):
            return _is_content(node.node, names)
        return isinstance(node.arg, nodes.Const) and node.arg.value == "content"
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    return isinstance(node, nodes.Name) and node.name in names


def _assigned(tree: nodes.Template, names: set[str]) -> set[str]:
    return {
        assign.target.name
        for assign in tree.find_all(nodes.Assign)
        if isinstance(assign.target, nodes.Name) and _is_content(assign.node, names)
    }


def _passed(tree: nodes.Template, names: set[str]) -> set[str]:
    macros = {macro.name: [arg.name for arg in macro.args] for macro in tree.find_all(nodes.Macro)}
    found = set()
    for call in tree.find_all(nodes.Call):
        parameters = macros.get(call.node.name, []) if isinstance(call.node, nodes.Name) else []
        found |= {name for name, arg in zip(parameters, call.args, strict=False) if _is_content(arg, names)}
        found |= {pair.key for pair in call.kwargs if pair.key in parameters and _is_content(pair.value, names)}
    return found
