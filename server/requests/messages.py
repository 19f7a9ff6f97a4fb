"""The walks through what a conversation is made of: messages, content parts, response items, prompts.

Each yields the texts in the order in which a template shows them. What a walk doesn't know is one text of all
strings inside, keys included, however deep. Pure; which field is walked is `server/requests/fields.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from lethe.corruption.prompt.conversation import BILLING_HEADER
from lethe.server.errors import BadRequest
from lethe.server.requests.fields import (
    BLOCKS,
    EMBEDS,
    ITEM_KEYS,
    ITEM_PARTS,
    ITEMS,
    MARKS,
    MEDIA,
    MESSAGE_KEYS,
    OTHER_PARTS,
    REFUSED_PARTS,
    ROLES,
    STATUSES,
    TEXT_PARTS,
    Words,
)

# (message index, part index), the part index None where the content is one string. In a batch messages are
# counted through all conversations.
Target = tuple[int, int | None]
Decode = Callable[[list[int]], str]


class Text(NamedTuple):
    """One piece of text that can reach the model."""

    place: str  # where it stands in the body, for audit and errors; never a name that the client made up
    text: str
    target: Target | None = None  # the message part it is, when a template shows it as content
    message: bool = False  # shown to the model with the conversation, so it counts in the joined text
    role: str = ""  # of the message that it belongs to, if that has one of the known roles
    conversation: int = 0  # of a batch
    strand: str = ""  # what it goes with, where vLLM takes it out of the content or may leave it out


def strings(value: Any) -> Iterator[str]:
    """Every string inside, dict keys included, in document order. Iterative: depth is the client's choice."""
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


def _decoded_json(text: str) -> Iterator[str]:
    """The strings of JSON text that has escapes: a tool call's arguments are parsed before they are shown."""
    if "\\" not in text or not text.lstrip().startswith("{"):
        return
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return
    for string in strings(parsed):
        # An escape may make a lone surrogate, which no tokenizer takes.
        yield string.encode("utf-8", "replace").decode("utf-8")


def whole(place: str, value: Any, *, message: bool = False) -> Iterator[Text]:
    """A whole field as one text: what is split over several strings still counts as joined."""
    pieces = [piece for string in strings(value) for piece in (string, *_decoded_json(string)) if piece]
    if pieces:
        yield Text(place, "\n".join(pieces), message=message)


def beyond_words(value: Any, words: Words | None) -> Any:
    """What is left of a value when its known words are taken out; None when that is nothing.

    words: which they are, for an object those of its members; None where only numbers and switches belong.
    """
    if isinstance(value, list):
        left = [item for item in (beyond_words(item, words) for item in value) if item is not None]
        return left or None
    if isinstance(value, dict) and isinstance(words, Mapping):
        rest = {k: v if k not in words else beyond_words(v, words[k]) for k, v in value.items()}
        return {k: v for k, v in rest.items() if v is not None or k not in words} or None
    if isinstance(value, str | dict):
        return None if isinstance(value, str) and isinstance(words, frozenset) and value in words else value
    return None


def _is_media(key: str, value: Any) -> bool:
    """Whether a part's member is a picture or a sound sent along: its base64 is not text to the model."""
    if key == "input_audio":
        return isinstance(value, dict) and set(value) <= {"data", "format"}
    if key == "source":
        kind = value.get("media_type") if isinstance(value, dict) else None
        is_base64 = isinstance(value, dict) and set(value) <= {"type", "media_type", "data"}
        return is_base64 and value.get("type") == "base64" and isinstance(kind, str) and kind.startswith("image/")
    url = value.get("url") if isinstance(value, dict) and set(value) <= {"url", "detail"} else value
    return key in ("image_url", "audio_url", "video_url") and isinstance(url, str) and url.lower().startswith(MEDIA)


def refuse_embeds(part: Mapping[str, Any], place: str) -> None:
    """Raises BadRequest for an object that is, or holds, embeddings of the client's own."""
    embeds = REFUSED_PARTS.intersection({str(part.get("type")), *part})
    if embeds:
        raise BadRequest(
            f"{place}: a part of type {min(embeds)!r} is refused: {EMBEDS}", param=place, code="refused_field"
        )


@dataclass(frozen=True)
class _Form:
    """How an endpoint's messages are made: the keys of its texts by part type, its other types, its keys."""

    texts: Mapping[str, str]
    kinds: Collection[str]
    keys: Collection[str]
    nested: Collection[str] = ()  # members that are content themselves
    item: bool = False


_CHAT: Final = _Form(TEXT_PARTS, OTHER_PARTS, MESSAGE_KEYS)
_ITEM: Final = _Form(ITEM_PARTS, OTHER_PARTS, ITEM_KEYS, nested=("output", "summary"), item=True)
_BLOCKS: Final = _Form(TEXT_PARTS, BLOCKS, MESSAGE_KEYS)


def _part(part: Any, place: str, target: Target, form: _Form) -> Iterator[Text]:
    if isinstance(part, str):
        yield Text(place, part, target, message=True)
        return
    if not isinstance(part, dict):
        yield from whole(place, part, message=True)
        return
    refuse_embeds(part, place)
    rest = {
        key: value
        for key, value in part.items()
        if not _is_media(key, value) and (key not in MARKS or beyond_words(value, MARKS[key]) is not None)
    }
    kind = part.get("type")
    if isinstance(kind, str) and (kind in form.texts or kind in form.kinds):
        del rest["type"]
        key = form.texts.get(kind, "")
        if isinstance(rest.get(key), str):
            # Anthropic's thinking becomes a field of the message.
            strand = "reasoning" if form is _BLOCKS and kind == "thinking" else ""
            yield Text(f"{place}.{key}", rest.pop(key), target, message=True, strand=strand)
        if kind == "tool_result" and form is _BLOCKS:
            # vLLM makes a message of a tool of it.
            yield from (
                text._replace(role="tool", strand=place)
                for text in _content(rest.pop("content", None), f"{place}.content", target, form)
            )
    yield from whole(place, rest, message=True)


def _content(content: Any, place: str, target: Target, form: _Form) -> Iterator[Text]:
    """A content: one text, parts, or something else. target: its own, or that of the part it stands in."""
    index, within = target
    if isinstance(content, str):
        yield Text(place, content, target, message=True)
    elif isinstance(content, list):
        for at, part in enumerate(content):
            yield from _part(part, f"{place}[{at}]", (index, at if within is None else within), form)
    else:
        yield from whole(place, content, message=True)


def _message(message: Any, place: str, index: int, form: _Form) -> Iterator[Text]:
    if not isinstance(message, dict):
        yield from whole(place, message, message=True)
        return
    if form.item:
        refuse_embeds(message, place)
    for text in _content(message.get("content"), f"{place}.content", (index, None), form):
        # Of an assistant's item vLLM shows the first part alone.
        later = form.item and text.target is not None and text.target[1] and _role(message) == "assistant"
        yield text._replace(strand="later parts") if later else text
    role = message.get("role")
    if not (isinstance(role, str) and role in ROLES):
        yield from whole(f"{place}.role", role, message=True)
    known = {"type": ITEMS, "status": STATUSES} if form.item else {}
    # Names, tool calls with their arguments, reasoning: shown by templates.
    for at, (key, value) in enumerate(message.items()):
        if key in known and isinstance(value, str) and value in known[key]:
            continue
        if key in form.nested:
            yield from _content(value, f"{place}.{key}", (index, None), form)
        elif key in form.keys:
            yield from whole(f"{place}.{key}", value, message=True)
        elif key not in ("role", "content"):
            yield from whole(f"{place}.(unknown key {at})", {key: value}, message=True)


def _role(message: Any) -> str:
    """The role that a message says, or that vLLM gives an item without one."""
    if not isinstance(message, dict):
        return ""
    role, kind = message.get("role"), message.get("type")
    if role is None and isinstance(kind, str) and kind in ITEMS:
        return "tool" if kind.endswith("_output") else "assistant"
    return role if isinstance(role, str) and role in ROLES else ""


def _messages(value: Any, name: str, form: _Form, first: int = 0) -> Iterator[Text]:
    """first: the index of the first message among all that are counted."""
    if not isinstance(value, list):
        yield from whole(name, value, message=True)
        return
    for index, message in enumerate(value):
        role = _role(message)
        for text in _message(message, f"{name}[{index}]", first + index, form):
            made = text if text.role else text._replace(role=role)
            yield _without_header(made) if form is _BLOCKS else made


def chat(value: Any) -> Iterator[Text]:
    """The messages of a chat."""
    return _messages(value, "messages", _CHAT)


def batch(value: Any) -> Iterator[Text]:
    """The conversations of a batch."""
    if not isinstance(value, list):
        yield from whole("messages", value, message=True)
        return
    first = 0
    for at, messages in enumerate(value):
        for text in _messages(messages, f"messages[{at}]", _CHAT, first):
            yield text._replace(conversation=at)
        first += len(messages) if isinstance(messages, list) else 1


# What stands before the messages is counted as messages of its own.
def system(value: Any) -> Iterator[Text]:
    """Anthropic's system prompt: text or blocks, which vLLM puts together with nothing between."""
    texts = _content(value, "system", (0, None), _BLOCKS)
    return (_without_header(text._replace(role="system")) for text in texts)


def _without_header(text: Text) -> Text:
    # Of a chat vLLM leaves out that one line, of Anthropic's messages the whole text.
    header = text.role == "system" and text.text.startswith(BILLING_HEADER)
    return text._replace(strand="header") if header else text


def anthropic(value: Any) -> Iterator[Text]:
    """Anthropic's messages."""
    return _messages(value, "messages", _BLOCKS, first=1)


def instructions(value: Any) -> Iterator[Text]:
    """The instructions of a response."""
    return (text._replace(role="system") for text in _content(value, "instructions", (0, None), _ITEM))


def previous(value: Any) -> Iterator[Text]:
    """Messages of earlier turns in the form of the model's own (Harmony), which vLLM puts before the input."""
    return whole("previous_input_messages", value, message=True)


def items(value: Any) -> Iterator[Text]:
    """The input of a response: one text of the user, or items."""
    if isinstance(value, str):
        yield Text("input", value, (1, None), message=True, role="user")
    else:
        yield from _messages(value, "input", _ITEM, first=1)


def prompt(value: Any, decode: Decode | None) -> Iterator[Text]:
    """A completion prompt: text, token ids, or a list of either. vLLM would take "7" and 7.0 as ids too."""
    if isinstance(value, str):
        yield Text("prompt", value, (0, None), message=True, role="user")
    elif is_ids(value) and value:
        yield Text("prompt", _decoded(value, decode), (0, None), message=True, role="user")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            if not isinstance(item, str) and not is_ids(item):
                raise BadRequest(f"prompt[{i}] is neither text nor a list of token ids", param="prompt")
            text = item if isinstance(item, str) else _decoded(item, decode)
            yield Text(f"prompt[{i}]", text, (i, None), message=True, role="user")
    elif value is not None:
        raise BadRequest("prompt is neither text nor a list of token ids", param="prompt")


def is_ids(value: Any) -> bool:
    """Whether a prompt is one list of token ids."""
    return isinstance(value, list) and all(type(v) is int for v in value)


def _decoded(ids: list[int], decode: Decode | None) -> str:
    if decode is None:
        raise BadRequest(
            "token-id prompts are not served: there is no tokenizer to read them with (LETHE_MODEL_DIR)",
            param="prompt",
            code="refused_field",
        )
    try:
        return decode(ids)
    except (ValueError, OverflowError):
        raise BadRequest("prompt holds a token id that the model does not have", param="prompt") from None
