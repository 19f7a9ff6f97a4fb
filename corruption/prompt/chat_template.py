"""A chat template made into text, as `transformers` does it for vLLM: its Jinja environment, its names.

Templates are programs of whoever made the model, run on what clients send: in a sandbox, and they may raise
anything. Knows no tokenizer and no request.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

# Where a message that is to be continued ends; templates see it as the end of the message's text.
_END = "CONTINUE_FINAL_MESSAGE_TAG "


def render(
    template: str,
    messages: Sequence[dict[str, Any]],
    *,
    tools: Sequence[Any] | None = None,
    documents: Sequence[Any] | None = None,
    add_generation_prompt: bool = False,
    continue_final_message: bool | str = False,
    **variables: Any,
) -> str:
    """The conversation as the template shows it. The messages are not modified.

    continue_final_message: cut off behind the text of the last message, or of its field of that name. variables:
    whatever else the template may name, special tokens among it. Raises ValueError or TypeError for what
    `transformers` would refuse, and whatever the template raises.
    """
    if tools is not None and not all(isinstance(tool, dict) for tool in tools):
        raise ValueError("a tool is not an object")
    if documents is not None and not all(isinstance(document, dict) for document in documents):
        raise TypeError("a document is not an object")
    if continue_final_message and add_generation_prompt:
        raise ValueError("an open message can't be followed by the opening of another")
    last = None
    if continue_final_message:
        key = continue_final_message if isinstance(continue_final_message, str) else "content"
        if key not in template:
            raise ValueError(f"the template doesn't show {key!r}")
        messages, last = _opened(messages, key)
    shown = _compiled(template).render(
        messages=messages,
        tools=tools,
        documents=documents,
        add_generation_prompt=add_generation_prompt,
        **variables,
    )
    return shown if last is None else _cut(shown, last)


def _opened(messages: Sequence[dict[str, Any]], key: str) -> tuple[list[dict[str, Any]], str]:
    """The messages with a mark at the end of the last one's text, and that text."""
    *before, final = messages
    value = final.get(key)
    if isinstance(value, str):
        return [*before, {**final, key: value + _END}], value
    parts = list(value) if isinstance(value, list | tuple) else []
    for i in reversed(range(len(parts))):
        if "text" in parts[i]:
            text = parts[i]["text"]
            parts[i] = {**parts[i], "text": text + _END}
            return [*before, {**final, key: parts}], text
    raise ValueError("the last message has no text to go on with")


def _cut(shown: str, last: str) -> str:
    mark = _END.strip()
    if last.strip() not in shown or mark not in shown:
        raise ValueError("the template doesn't show the last message")
    at = shown.rindex(mark)
    # Without its space the mark was trimmed, and so would the text before it have been.
    return shown[:at] if shown.startswith(_END, at) else shown[:at].rstrip()


@lru_cache(maxsize=32)
def _compiled(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


class Generation(Extension):
    """`{% generation %}` marks what an assistant says, for training; it is shown as it stands."""

    tags = {"generation"}

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.CallBlock(
            self.call_method("_shown"), [], [], parser.parse_statements(("name:endgeneration",), drop_needle=True)
        ).set_lineno(line)

    def _shown(self, caller: Any) -> str:
        return str(caller())


def special_text(value: object) -> str | None:
    """The text of a special token as tokenizer_config.json gives it, plain or with its properties."""
    text = value.get("content") if isinstance(value, Mapping) else value
    return text if isinstance(text, str) else None
