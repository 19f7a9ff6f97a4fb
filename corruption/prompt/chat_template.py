"""Render a chat template as `transformers` does for vLLM: with its Jinja environment and variable names.

Templates are programs from the model's publisher that run on client data. They run in a sandbox, and may raise any
exception. This module knows no tokenizer and no request.
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

# Marks where a message to be continued ends; templates see it as the end of the message's text. The same text as in
# `transformers`.
_CONTINUATION_MARK = "CONTINUE_FINAL_MESSAGE_TAG "


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
    """Return the conversation as the template renders it. The messages are not modified.

    continue_final_message: True ends the rendering after the text of the last message; a name, after that field of
    it. variables: other variables that the template may use, such as special tokens. Raises ValueError or TypeError
    for arguments that `transformers` would refuse, and any exception of the template.
    """
    if tools is not None and not all(isinstance(tool, dict) for tool in tools):
        raise ValueError("a tool is not an object")
    if documents is not None and not all(isinstance(document, dict) for document in documents):
        raise TypeError("a document is not an object")
    if continue_final_message and add_generation_prompt:
        raise ValueError("add_generation_prompt and continue_final_message exclude each other")
    last_text = None
    if continue_final_message:
        key = continue_final_message if isinstance(continue_final_message, str) else "content"
        if key not in template:
            raise ValueError(f"the template doesn't show {key!r}")
        messages, last_text = _with_continuation_mark(messages, key)
    rendered = _compile_template(template).render(
        messages=messages,
        tools=tools,
        documents=documents,
        add_generation_prompt=add_generation_prompt,
        **variables,
    )
    return rendered if last_text is None else _cut_at_mark(rendered, last_text)


def _with_continuation_mark(messages: Sequence[dict[str, Any]], key: str) -> tuple[list[dict[str, Any]], str]:
    """The messages with the mark after the last one's text, and that text."""
    *earlier, final = messages
    value = final.get(key)
    if isinstance(value, str):
        return [*earlier, {**final, key: value + _CONTINUATION_MARK}], value
    parts = list(value) if isinstance(value, list | tuple) else []
    for i in reversed(range(len(parts))):
        if "text" in parts[i]:
            text = parts[i]["text"]
            parts[i] = {**parts[i], "text": text + _CONTINUATION_MARK}
            return [*earlier, {**final, key: parts}], text
    raise ValueError("the last message has no text to continue")


def _cut_at_mark(rendered: str, last_text: str) -> str:
    mark = _CONTINUATION_MARK.strip()
    if last_text.strip() not in rendered or mark not in rendered:
        raise ValueError("the template doesn't show the last message")
    end = rendered.rindex(mark)
    # If the template trimmed the mark's space, it would have trimmed the text before the mark too.
    return rendered[:end] if rendered.startswith(_CONTINUATION_MARK, end) else rendered[:end].rstrip()


@lru_cache(maxsize=32)  # more templates than a gateway serves
def _compile_template(template: str) -> jinja2.Template:
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
    """Support `{% generation %}`, which marks an assistant's text for training; it is rendered unchanged."""

    tags = {"generation"}

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.CallBlock(
            self.call_method("_render_unchanged"),
            [],
            [],
            parser.parse_statements(("name:endgeneration",), drop_needle=True),
        ).set_lineno(line)

    def _render_unchanged(self, caller: Any) -> str:
        return str(caller())


def special_text(value: object) -> str | None:
    """Return the text of a special token of tokenizer_config.json, which is a string or an object; None for others."""
    text = value.get("content") if isinstance(value, Mapping) else value
    return text if isinstance(text, str) else None
