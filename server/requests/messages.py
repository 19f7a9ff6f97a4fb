"""Readers of conversations: messages, content parts, response items, prompts.

Each yields the texts in the order in which the chat template shows them. A value of unknown form becomes one text of
all strings in it, keys included, at any depth. Pure; which reader reads which field is decided in
`server/requests/extract.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from lethe.corruption.prompt.message_parts import BILLING_HEADER, TEXT_PARTS, PartLocation
from lethe.server.errors import BadRequest, Unreadable
from lethe.server.requests.fields import (
    BLOCKS,
    DATA_URL,
    EMBEDS,
    EMBEDS_SUFFIX,
    FILE_PARTS,
    IGNORED_ANYWHERE,
    ITEM_KEYS,
    ITEM_PARTS,
    ITEMS,
    MARKS,
    MEDIA_TYPE,
    MEDIA_URLS,
    MESSAGE_KEYS,
    OTHER_ITEMS,
    OTHER_PARTS,
    REFUSED_PARTS,
    ROLES,
    STATUSES,
    STRUCTURED_KEYS,
    TOOL_CALL,
    TOOL_INPUT,
    UNKNOWN_KIND,
)
from lethe.server.requests.request_text import RequestText, value_as_text, without_known_words

DecodeIds = Callable[[list[int]], str]


def _without_media(key: str, value: Any) -> Any:
    """A member of a part without the images and sounds in it, whose base64 is no text to the model; None if all is.

    Members beside them are judged, and so is the address of a picture that is not in the request.
    """
    if key == "input_audio" and isinstance(value, dict):
        known = {"data", "format"}
    elif key == "source" and isinstance(value, dict) and value.get("type") == "base64":
        has_type = isinstance(value.get("media_type"), str) and MEDIA_TYPE.fullmatch(value["media_type"])
        known = {"type", "data", *(("media_type",) if has_type else ())}
    elif key in MEDIA_URLS and isinstance(value, dict) and _is_data_url(value.get("url")):
        known = {"url", "detail"}
    else:
        return None if key in MEDIA_URLS and _is_data_url(value) else value
    return {name: member for name, member in value.items() if name not in known} or None


def _is_data_url(url: Any) -> bool:
    """Whether an address holds the data itself, in base64: vLLM decodes it, whatever media type it states."""
    return isinstance(url, str) and DATA_URL.match(url) is not None


def embedding_kinds(part: Mapping[str, Any]) -> list[str]:
    """The kinds of client-made embeddings that an object is, by its type, or has as members."""
    names = {str(part.get("type")), *part}
    return sorted(name for name in names if name in REFUSED_PARTS or name.endswith(EMBEDS_SUFFIX))


def check_no_embeddings(value: Any, place: str) -> None:
    """Raise BadRequest if the value is or holds client-made embeddings, at any depth outside a tool's own input."""
    stack: list[Any] = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            if embeds := embedding_kinds(item):
                raise BadRequest(
                    f"{place}: a part of type {embeds[0]!r} is refused: {EMBEDS}", param=place, code="refused_field"
                )
            is_call = item.get("type") == TOOL_CALL
            stack += [inner for key, inner in item.items() if not (is_call and key == TOOL_INPUT)]
        elif isinstance(item, list):
            stack += item


def _check_kind(kind: Any, known: Collection[str], place: str) -> None:
    """Raise BadRequest for a kind that isn't known. What is no text can't be a kind, and vLLM rejects it."""
    if isinstance(kind, str) and kind not in known:
        raise BadRequest(f"{place}: a part of an unknown type: {UNKNOWN_KIND}", param=place, code="refused_field")


@dataclass(frozen=True)
class MessageFormat:
    """The form of an endpoint's messages."""

    text_keys: Mapping[str, str]  # part type → key of its text
    other_parts: Collection[str]  # types of parts without a text
    keys: Collection[str]  # keys of a message
    nested: Collection[str] = ()  # keys whose values are content themselves
    is_item: bool = False  # whether messages are items of the Responses API

    @cached_property
    def kinds(self) -> frozenset[str]:
        """All types that a part may have."""
        return FILE_PARTS.union(self.text_keys, self.other_parts)


_CHAT_FORMAT: Final = MessageFormat(TEXT_PARTS, OTHER_PARTS, MESSAGE_KEYS)
_ITEM_FORMAT: Final = MessageFormat(ITEM_PARTS, OTHER_PARTS, ITEM_KEYS, nested=("output", "summary"), is_item=True)
_ANTHROPIC_FORMAT: Final = MessageFormat(TEXT_PARTS, BLOCKS, MESSAGE_KEYS)


def _part_texts(part: Any, place: str, part_location: PartLocation, form: MessageFormat) -> Iterator[RequestText]:
    if isinstance(part, str):
        yield RequestText(place, part, part_location, message=True)
        return
    check_no_embeddings(part, place)
    if not isinstance(part, dict):
        yield from value_as_text(place, part, message=True)
        return
    _check_kind(part.get("type"), form.kinds, place)
    members = {
        key: rest
        for key, value in part.items()
        for rest in [_without_media(key, value)]
        if (rest is not None or value is None)
        and (key not in MARKS or without_known_words(value, MARKS[key]) is not None)
    }
    kind = part.get("type")
    if isinstance(kind, str) and (kind in form.text_keys or kind in form.other_parts):
        del members["type"]
        key = form.text_keys.get(kind, "")
        if isinstance(members.get(key), str):
            # vLLM moves Anthropic's thinking into a field of the message.
            group = "reasoning" if form is _ANTHROPIC_FORMAT and kind == "thinking" else ""
            yield RequestText(f"{place}.{key}", members.pop(key), part_location, message=True, detached_group=group)
        if kind == "tool_result" and form is _ANTHROPIC_FORMAT:
            # vLLM makes a message of role tool from it.
            yield from (
                text._replace(role="tool", detached_group=place)
                for text in _content_texts(members.pop("content", None), f"{place}.content", part_location, form)
            )
    yield from value_as_text(place, members, message=True)


def _content_texts(content: Any, place: str, part_location: PartLocation, form: MessageFormat) -> Iterator[RequestText]:
    """The texts of a content: one text, parts, or another form.

    part_location: the content's own, or that of the enclosing part.
    """
    index, within = part_location
    if isinstance(content, str):
        yield RequestText(place, content, part_location, message=True)
    elif isinstance(content, list):
        for at, part in enumerate(content):
            yield from _part_texts(part, f"{place}[{at}]", (index, at if within is None else within), form)
    else:
        check_no_embeddings(content, place)
        yield from value_as_text(place, content, message=True)


def _message_texts(message: Any, place: str, index: int, form: MessageFormat) -> Iterator[RequestText]:
    if not isinstance(message, dict):
        check_no_embeddings(message, place)
        yield from value_as_text(place, message, message=True)
        return
    check_no_embeddings(_without_content(message), place)
    if form.is_item:
        _check_kind(message.get("type"), ITEMS | OTHER_ITEMS, place)
    for text in _content_texts(message.get("content"), f"{place}.content", (index, None), form):
        # vLLM shows only the first part of an assistant's item.
        is_later_part = (
            form.is_item and text.part_location is not None and text.part_location[1] and _role(message) == "assistant"
        )
        yield text._replace(detached_group="later parts") if is_later_part else text
    role = message.get("role")
    if not (isinstance(role, str) and role in ROLES):
        yield from value_as_text(f"{place}.role", role, message=True)
    known = {"type": ITEMS, "status": STATUSES} if form.is_item else {}
    # Names, tool calls with their arguments, reasoning: shown by templates.
    for at, (key, value) in enumerate(message.items()):
        if (key in known and isinstance(value, str) and value in known[key]) or key in IGNORED_ANYWHERE:
            continue
        if key in form.keys and key not in STRUCTURED_KEYS and key not in form.nested:
            _check_kinds(value, form.kinds, f"{place}.{key}")
        if key in form.nested:
            yield from _content_texts(value, f"{place}.{key}", (index, None), form)
        elif key in form.keys:
            yield from value_as_text(f"{place}.{key}", value, message=True)
        elif key not in ("role", "content"):
            yield from value_as_text(f"{place}.(unknown key {at})", {key: value}, message=True)


def _without_content(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message without its content, whose parts are checked one by one, with a place of their own."""
    return {key: value for key, value in message.items() if key != "content"}


def _check_kinds(value: Any, known: Collection[str], place: str) -> None:
    """Raise BadRequest if a field that is usually text holds a part of an unknown kind, as `content` may do."""
    for part in value if isinstance(value, list) else [value]:
        if isinstance(part, dict):
            _check_kind(part.get("type"), known, place)


def _role(message: Any) -> str:
    """The role of a message, or the one that vLLM gives to an item without a role; "" for an unknown one."""
    if not isinstance(message, dict):
        return ""
    role, kind = message.get("role"), message.get("type")
    if role is None and isinstance(kind, str) and kind in ITEMS:
        return "tool" if kind.endswith("_output") else "assistant"
    return role if isinstance(role, str) and role in ROLES else ""


def _messages_texts(value: Any, name: str, form: MessageFormat, first: int = 0) -> Iterator[RequestText]:
    """The texts of a list of messages. first: index of the first message."""
    if not isinstance(value, list):
        yield from value_as_text(name, value, message=True)
        return
    for index, message in enumerate(value):
        role = _role(message)
        for text in _message_texts(message, f"{name}[{index}]", first + index, form):
            with_role = text if text.role else text._replace(role=role)
            yield _mark_billing_header(with_role) if form is _ANTHROPIC_FORMAT else with_role


def chat_texts(value: Any) -> Iterator[RequestText]:
    """The texts of a chat's messages."""
    return _messages_texts(value, "messages", _CHAT_FORMAT)


def batch_texts(value: Any) -> Iterator[RequestText]:
    """The texts of a batch's conversations."""
    if not isinstance(value, list):
        yield from value_as_text("messages", value, message=True)
        return
    first = 0
    for at, messages in enumerate(value):
        for text in _messages_texts(messages, f"messages[{at}]", _CHAT_FORMAT, first):
            yield text._replace(conversation=at)
        first += len(messages) if isinstance(messages, list) else 1


def anthropic_system_texts(value: Any) -> Iterator[RequestText]:
    """The texts of Anthropic's system prompt, which counts as message 0. vLLM joins its blocks without a separator."""
    texts = _content_texts(value, "system", (0, None), _ANTHROPIC_FORMAT)
    return (_mark_billing_header(text._replace(role="system")) for text in texts)


def _mark_billing_header(text: RequestText) -> RequestText:
    # vLLM removes this line from a chat, and the whole text from Anthropic's messages.
    has_header = text.role == "system" and text.text.startswith(BILLING_HEADER)
    return text._replace(detached_group="header") if has_header else text


def anthropic_texts(value: Any) -> Iterator[RequestText]:
    """The texts of Anthropic's messages, counted from 1."""
    return _messages_texts(value, "messages", _ANTHROPIC_FORMAT, first=1)


def instructions_texts(value: Any) -> Iterator[RequestText]:
    """The texts of a response's instructions, which count as message 0."""
    return (text._replace(role="system") for text in _content_texts(value, "instructions", (0, None), _ITEM_FORMAT))


def previous_messages_texts(value: Any) -> Iterator[RequestText]:
    """Messages of earlier turns in the model's own format (Harmony), which vLLM puts before the input."""
    check_no_embeddings(value, "previous_input_messages")
    return value_as_text("previous_input_messages", value, message=True)


def response_input_texts(value: Any) -> Iterator[RequestText]:
    """The texts of a response's input: one text of the user, or items, counted from 1."""
    if isinstance(value, str):
        yield RequestText("input", value, (1, None), message=True, role="user")
    else:
        yield from _messages_texts(value, "input", _ITEM_FORMAT, first=1)


def prompt_texts(value: Any, decode: DecodeIds | None) -> Iterator[RequestText]:
    """The texts of a completion prompt: text, token ids, or a list of either.

    Stricter than vLLM, which takes "7" and 7.0 as ids too. Raises BadRequest for any other form.
    """
    if isinstance(value, str):
        yield RequestText("prompt", value, (0, None), message=True, role="user")
    elif is_token_ids(value) and value:
        yield RequestText("prompt", _decode_ids(value, decode), (0, None), message=True, role="user")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            if not isinstance(item, str) and not is_token_ids(item):
                raise Unreadable(f"prompt[{i}] is neither text nor a list of token ids", param="prompt")
            text = item if isinstance(item, str) else _decode_ids(item, decode)
            yield RequestText(f"prompt[{i}]", text, (i, None), message=True, role="user")
    elif value is not None:
        raise Unreadable("prompt is neither text nor a list of token ids", param="prompt")


def is_token_ids(value: Any) -> bool:
    """Whether a prompt is one list of token ids."""
    return isinstance(value, list) and all(type(v) is int for v in value)


def _decode_ids(ids: list[int], decode: DecodeIds | None) -> str:
    if decode is None:
        raise BadRequest(
            "token-id prompts are not served: the gateway has no tokenizer to decode them (LETHE_MODEL_DIR)",
            param="prompt",
            code="refused_field",
        )
    try:
        return decode(ids)
    except (ValueError, OverflowError):
        raise Unreadable("prompt holds a token id that the model does not have", param="prompt") from None
