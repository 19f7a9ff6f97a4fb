"""Which text of a request can reach the model, and what is refused.

Every field is judged as text, known to carry none, or refused: `server/fields_table.py` says which. What
the tables don't know is judged: every string inside it, keys included, however deep. Pure: no I/O, no
policy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final, Literal

from server.errors import BadRequest
from server.fields_table import (
    EMBEDS,
    HARMLESS,
    KNOWN,
    MEDIA,
    MESSAGE_KEYS,
    OTHER_PARTS,
    REFUSED,
    REFUSED_INSIDE,
    REFUSED_PARTS,
    RESERVED,
    ROLES,
    SHOWN,
    TEXT_PARTS,
    WALKED,
    WORDS,
)

Endpoint = Literal["chat", "completions"]

# (message index, part index), the part index None where the content is one string.
Target = tuple[int, int | None]

# Each text costs at least one pass of the encoder, however short it is.
MAX_TEXTS: Final = 4096

# Characters at either end of a piece: more than a window of the encoder has, and as much as tells of a split word.
WINDOW: Final = 2000
SEAM: Final = 240
# What stands at a seam where a word was cut in two: a letter, then one that begins no sentence.
_SPLIT_WORD = re.compile(r"\w[^\W_]")


@dataclass(frozen=True)
class Text:
    """One piece of text that can reach the model."""

    place: str  # where it stands in the body, for audit and errors; never a name that the client made up
    text: str
    target: Target | None = None  # the message part it is, when its embeddings can be replaced
    message: bool = False  # shown to the model with the conversation, so it counts in the joined text
    role: str = ""  # of the message that it belongs to, if that has one of the known roles


def _strings(value: Any) -> Iterator[str]:
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
    for string in _strings(parsed):
        # An escape may make a lone surrogate, which no tokenizer takes.
        yield string.encode("utf-8", "replace").decode("utf-8")


def _field(place: str, value: Any, *, message: bool = False) -> Iterator[Text]:
    """A whole field as one text: what is split over several strings still counts as joined."""
    pieces = [piece for string in _strings(value) for piece in (string, *_decoded_json(string)) if piece]
    if pieces:
        yield Text(place, "\n".join(pieces), message=message)


def _is_media(key: str, value: Any) -> bool:
    """Whether a part's member is a picture or a sound sent along: its base64 is not text to the model."""
    if key == "input_audio":
        return isinstance(value, dict) and set(value) <= {"data", "format"}
    url = value.get("url") if isinstance(value, dict) and set(value) <= {"url", "detail"} else value
    return key in ("image_url", "audio_url", "video_url") and isinstance(url, str) and url.lower().startswith(MEDIA)


def _part(part: Any, place: str, target: Target) -> Iterator[Text]:
    if isinstance(part, str):
        yield Text(place, part, target, message=True)
        return
    if not isinstance(part, dict):
        yield from _field(place, part, message=True)
        return
    kind = part.get("type")
    embeds = REFUSED_PARTS.intersection({str(kind), *part})
    if embeds:
        raise BadRequest(
            f"{place}: a part of type {min(embeds)!r} is refused: {EMBEDS}", param=place, code="refused_field"
        )
    rest = {key: value for key, value in part.items() if not _is_media(key, value)}
    if isinstance(kind, str) and (kind in TEXT_PARTS or kind in OTHER_PARTS):
        del rest["type"]
        key = TEXT_PARTS.get(kind, "")
        if isinstance(rest.get(key), str):
            yield Text(f"{place}.{key}", rest.pop(key), target, message=True)
    yield from _field(place, rest, message=True)


def _message(message: Any, index: int) -> Iterator[Text]:
    place = f"messages[{index}]"
    if not isinstance(message, dict):
        yield from _field(place, message, message=True)
        return
    content = message.get("content")
    if isinstance(content, str):
        yield Text(f"{place}.content", content, (index, None), message=True)
    elif isinstance(content, list):
        for at, part in enumerate(content):
            yield from _part(part, f"{place}.content[{at}]", (index, at))
    else:
        yield from _field(f"{place}.content", content, message=True)
    role = message.get("role")
    if not (isinstance(role, str) and role in ROLES):
        yield from _field(f"{place}.role", role, message=True)
    # Names, tool calls with their arguments, reasoning: shown by templates.
    for at, (key, value) in enumerate(message.items()):
        if key in MESSAGE_KEYS:
            yield from _field(f"{place}.{key}", value, message=True)
        elif key not in ("role", "content"):
            yield from _field(f"{place}.(unknown key {at})", {key: value}, message=True)


def _messages(value: Any) -> Iterator[Text]:
    if not isinstance(value, list):
        yield from _field("messages", value, message=True)
        return
    for index, message in enumerate(value):
        role = message.get("role") if isinstance(message, dict) else None
        known = role if isinstance(role, str) and role in ROLES else ""
        for text in _message(message, index):
            yield replace(text, role=known)


def _prompt(value: Any, decode: Callable[[list[int]], str] | None) -> Iterator[Text]:
    """A completion prompt: text, token ids, or a list of either. vLLM would take "7" and 7.0 as ids too."""
    if isinstance(value, str):
        yield Text("prompt", value, (0, None), message=True)
    elif is_ids(value) and value:
        yield Text("prompt", _decoded(value, decode), (0, None), message=True)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            if not isinstance(item, str) and not is_ids(item):
                raise BadRequest(f"prompt[{i}] is neither text nor a list of token ids", param="prompt")
            text = item if isinstance(item, str) else _decoded(item, decode)
            yield Text(f"prompt[{i}]", text, (i, None), message=True)
    elif value is not None:
        raise BadRequest("prompt is neither text nor a list of token ids", param="prompt")


def is_ids(value: Any) -> bool:
    """Whether a prompt is one list of token ids."""
    return isinstance(value, list) and all(type(v) is int for v in value)


def _decoded(ids: list[int], decode: Callable[[list[int]], str] | None) -> str:
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


def _refuse(key: str, value: Any) -> None:
    if key in REFUSED and value is not None:
        raise BadRequest(f"the field {key!r} is refused: {REFUSED[key]}", param=key, code="refused_field")
    inside = REFUSED_INSIDE.get(key)
    if inside is None:
        return
    if not isinstance(value, dict | None):
        raise BadRequest(f"{key} is not an object", param=key)
    for name in inside.keys() & (value or {}).keys():
        raise BadRequest(f"{key}[{name!r}] is refused: {inside[name]}", param=key, code="refused_field")


def _texts(endpoint: Endpoint, body: dict[str, Any], decode: Callable[[list[int]], str] | None) -> Iterator[Text]:
    for at, (key, value) in enumerate(body.items()):
        _refuse(key, value)
        if key == WALKED[endpoint]:
            yield from _messages(value) if endpoint == "chat" else _prompt(value, decode)
        elif key not in KNOWN:
            yield from _field(f"(unknown field {at})", {key: value})
        elif key not in HARMLESS and not (isinstance(value, str) and value in WORDS.get(key, ())):
            yield from _field(key, value, message=key in SHOWN or key in WORDS)


def extract(
    endpoint: Endpoint, body: dict[str, Any], *, decode: Callable[[list[int]], str] | None = None
) -> list[Text]:
    """All text of a request that can reach the model, in the order in which it stands there.

    decode: token ids → text, for completion prompts given as ids; without it they are refused.
    Raises BadRequest for refused fields, embeddings of the client's own, prompts of unknown form, and
    more than MAX_TEXTS texts.
    """
    texts: list[Text] = []
    for text in _texts(endpoint, body, decode):
        if RESERVED in text.text:
            raise BadRequest(f"{text.place}: the text {RESERVED!r} is reserved", param=text.place, code="reserved_text")
        if len(texts) == MAX_TEXTS:
            raise BadRequest(f"the request has more than {MAX_TEXTS} texts", code="too_many_texts")
        texts.append(text)
    if any(RESERVED in whole for whole in _seamless(texts)):
        raise BadRequest(f"the text {RESERVED!r} is reserved", param="messages", code="reserved_text")
    return texts


def _seamless(texts: Iterable[Text]) -> list[str]:
    """Each message of several parts with nothing between them.

    vLLM joins parts by line breaks or hands them to the template, and templates print them one right
    after the other, some without the space around each. A word split over parts is whole only here.
    """
    parts: dict[int, list[str]] = {}
    for text in texts:
        if text.target is not None and text.target[1] is not None:
            parts.setdefault(text.target[0], []).append(text.text.strip())
    return ["".join(strings) for strings in parts.values() if len(strings) > 1]


def joined(texts: list[Text]) -> str | None:
    """The conversation as one text, so that a split question counts; None if it is one piece.

    Of long pieces only both ends: each piece is judged by itself, here counts what stands across them. The
    pieces of all roles, then those of the user alone (an answer between them parts nothing); then, where a word
    may be split over pieces, both again with nothing between.
    """
    pieces = [text for text in texts if text.message and text.text.strip()]
    if len(pieces) < 2:
        return None
    spoken = [text for text in pieces if text.target is not None]
    everyone = [text.text for text in spoken]
    user = [text.text for text in spoken if text.role == "user"]
    readings = ["\n".join(_ends(text.text, WINDOW) for text in pieces), *_seamless(texts)]
    if 1 < len(user) < len(pieces):
        readings.append("\n".join(_ends(text, WINDOW) for text in user))
    for said in (everyone, user):
        stripped = [text.strip() for text in said]
        if any(_SPLIT_WORD.search(f"{a[-1:]}{b[:1]}") for a, b in pairwise(stripped)):
            readings.append("".join(_ends(text, SEAM) for text in stripped))
    return "\n".join(dict.fromkeys(filter(None, readings)))


def _ends(text: str, size: int) -> str:
    """A text, or both ends of a long one."""
    return text if len(text) <= 2 * size else f"{text[:size]}\n{text[-size:]}"
