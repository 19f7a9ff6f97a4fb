"""The texts of a request, and how a JSON value of any form becomes one text. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from lethe.corruption.prompt.message_parts import PartLocation
from lethe.server.requests.fields import Words


class RequestText(NamedTuple):
    """One text of a request that can reach the model."""

    place: str  # path in the body, for audit and error messages; never a key that the client invented
    text: str
    part_location: PartLocation | None = None  # the message part that holds it, if a template shows it as content
    message: bool = False  # shown to the model with the conversation, so it is part of the joined texts
    role: str = ""  # role of its message, if it is a known one
    conversation: int = 0  # index of the conversation in a batch
    detached_group: str = (
        ""  # texts of the same group stay together when vLLM moves or removes them; "": stays in place
    )


def all_strings(value: Any) -> Iterator[str]:
    """Every string in the value, dict keys included, in document order. Not recursive: clients choose the depth."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            for key, inner in reversed(item.items()):
                stack.extend((inner, key))
        elif isinstance(item, list):
            stack.extend(reversed(item))


def _strings_of_json(text: str) -> Iterator[str]:
    """The strings of JSON text with escapes: templates show a tool call's arguments parsed."""
    if "\\" not in text or not text.lstrip().startswith("{"):
        return
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return
    for string in all_strings(parsed):
        # An escape may make a lone surrogate, which no tokenizer accepts.
        yield string.encode("utf-8", "replace").decode("utf-8")


def value_as_text(place: str, value: Any, *, message: bool = False) -> Iterator[RequestText]:
    """One text of all strings in a value, so that words split over several strings are judged together."""
    pieces = [piece for string in all_strings(value) for piece in (string, *_strings_of_json(string)) if piece]
    if pieces:
        yield RequestText(place, "\n".join(pieces), message=message)


def without_known_words(value: Any, words: Words | None) -> Any:
    """Return the value without its known words; None if nothing remains.

    words: the known words, or, for an object, those of its members; None if only numbers and booleans are expected.
    """
    if isinstance(value, list):
        items = [item for item in (without_known_words(item, words) for item in value) if item is not None]
        return items or None
    if isinstance(value, dict) and isinstance(words, Mapping):
        members = {k: v if k not in words else without_known_words(v, words[k]) for k, v in value.items()}
        return {k: v for k, v in members.items() if v is not None or k not in words} or None
    if isinstance(value, str | dict):
        return None if isinstance(value, str) and isinstance(words, frozenset) and value in words else value
    return None
