"""Which text of a request can reach the model, and what is refused.

Every field is judged as text, known to carry none, or refused: `server/requests/fields.py` says which, and
`server/requests/messages.py` walks through conversations. What the tables don't know is judged: every string inside
it, keys included, however deep. Pure: no I/O, no policy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby, pairwise
from typing import Any, Final

from lethe.corruption.prompt.conversation import BILLING_HEADER
from lethe.server.errors import BadRequest
from lethe.server.requests import messages as walk
from lethe.server.requests.fields import (
    EMBEDS,
    REFUSED_INSIDE,
    REFUSED_PARTS,
    REFUSED_RELAYED,
    RELAYED,
    RESERVED,
    SERVER_TOOL,
    SERVER_TOOLS,
    SWITCHES,
    TABLES,
    Endpoint,
)
from lethe.server.requests.messages import Decode, Target, Text, is_ids

__all__ = ["RELAYED", "Endpoint", "Target", "Text", "extract", "is_ids", "joined"]

# What a table knows of an endpoint's fields at all.
KNOWN: Final = {
    endpoint: table.shown.union(table.judged, table.numeric, table.harmless, table.refused, table.walked)
    for endpoint, table in TABLES.items()
}

# Each text costs at least one pass of the encoder, however short it is.
MAX_TEXTS: Final = 4096

# Characters at either end of a piece: as many as a window of the encoder has, and as much as tells of a split word.
WINDOW: Final = 1000
SEAM: Final = 240
# Characters of a conversation that are read together, and those that the next stretch has again.
STRETCH: Final = 1500
SHARED: Final = 750
# What stands at a seam where a word was cut in two: a letter, then one that begins no sentence.
_SPLIT_WORD = re.compile(r"\w[^\W_]")


def _refuse(key: str, value: Any, refused: Mapping[str, str]) -> None:
    off = value is None or (key in SWITCHES and value is False)
    if key in refused and not off:
        raise BadRequest(f"the field {key!r} is refused: {refused[key]}", param=key, code="refused_field")
    inside = REFUSED_INSIDE.get(key)
    if inside is None:
        return
    if not isinstance(value, dict | None):
        raise BadRequest(f"{key} is not an object", param=key)
    for name in inside.keys() & (value or {}).keys():
        raise BadRequest(f"{key}[{name!r}] is refused: {inside[name]}", param=key, code="refused_field")


def _refuse_server_tools(tools: Any) -> None:
    for at, tool in enumerate(tools if isinstance(tools, list) else ()):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if isinstance(kind, str) and kind in SERVER_TOOLS:
            raise BadRequest(
                f"tools[{at}]: a tool of type {kind!r} is refused: {SERVER_TOOL}", param="tools", code="refused_field"
            )


def _walked(endpoint: Endpoint, key: str, value: Any, decode: Decode | None) -> Iterator[Text]:
    match endpoint, key:
        case "chat", _:
            return walk.chat(value)
        case "batch", _:
            return walk.batch(value)
        case "completions", _:
            return walk.prompt(value, decode)
        case "responses", "instructions":
            return walk.instructions(value)
        case "responses", "previous_input_messages":
            return walk.previous(value)
        case "responses", _:
            return walk.items(value)
        case _, "system":
            return walk.system(value)
        case _:
            return walk.anthropic(value)


def _texts(endpoint: Endpoint, body: dict[str, Any], decode: Decode | None) -> Iterator[Text]:
    table = TABLES[endpoint]
    for key, value in body.items():
        _refuse(key, value, table.refused)
    if endpoint == "responses":
        _refuse_server_tools(body.get("tools"))
    for key in table.walked:
        yield from _walked(endpoint, key, body.get(key), decode)
    known = KNOWN[endpoint]
    for at, (key, value) in enumerate(body.items()):
        if key in table.words:
            yield from walk.whole(key, walk.beyond_words(value, table.words[key]), message=True)
        elif key not in known:
            yield from walk.whole(f"(unknown field {at})", {key: value})
        elif key not in table.harmless and key not in table.walked and key not in table.refused:
            yield from walk.whole(key, value, message=key in table.shown)


def _check_relayed(body: dict[str, Any]) -> None:
    """Raises BadRequest for what vLLM would load or run: embeddings of the client's own, templates."""
    for key, value in body.items():
        _refuse(key, value, REFUSED_RELAYED)
    stack: list[Any] = [body]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            found = REFUSED_PARTS.intersection({str(item.get("type")), *item})
            if found:
                raise BadRequest(f"{min(found)!r} is refused: {EMBEDS}", code="refused_field")
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)


def extract(endpoint: Endpoint, body: dict[str, Any], *, decode: Decode | None = None) -> list[Text]:
    """All text of a request that can reach the model, in the order in which a template shows it; of a relayed one none.

    decode: token ids → text, for completion prompts given as ids; without it they are refused.
    Raises BadRequest for refused fields, embeddings of the client's own, prompts of unknown form, and
    more than MAX_TEXTS texts.
    """
    if endpoint in RELAYED:
        _check_relayed(body)
        return []
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
    parts: dict[tuple[int, str | None], list[str]] = {}
    for text in texts:
        if text.target is not None and text.target[1] is not None:
            # As they stand in the body, and without what vLLM may take out from between.
            for strand in (None, text.strand):
                parts.setdefault((text.target[0], strand), []).append(_shown(text).strip())
    return list(dict.fromkeys("".join(strings) for strings in parts.values() if len(strings) > 1))


def joined(texts: list[Text]) -> tuple[str, ...]:
    """The conversation in stretches that overlap, so that a split question counts; none if it is one piece.

    Of long pieces only both ends: each piece is judged by itself, here counts what stands across them. The
    pieces of all roles, then the contents, those of the user and those of the system alone (what stands between them
    parts nothing); then, around places where a word may be split over pieces, the same with nothing between. Each
    conversation of a batch by itself. One turn more leaves all stretches but the last as they were, and those were
    judged before.
    """
    by_conversation = groupby(texts, key=lambda text: text.conversation)
    readings = [reading for _, group in by_conversation for reading in _readings(list(group))]
    stretches = (stretch for parts, seam in readings for stretch in _stretches(parts, seam))
    return tuple(stretch for stretch in dict.fromkeys(stretches) if stretch.strip())


def _stretches(parts: list[str], seam: str) -> Iterator[str]:
    """Neighbouring parts with `seam` between, about STRETCH characters at a time, about SHARED of them once more."""
    start = 0
    while start < len(parts):
        end, size = start, 0
        # What follows a long part follows its end.
        while end < len(parts) and (size < STRETCH or size - len(parts[start]) < SHARED):
            size += len(parts[end])
            end += 1
        yield seam.join(parts[start:end])
        if end == len(parts):
            return
        first, size = end - 1, len(parts[end - 1])
        while first - 1 > start and size < SHARED:
            first -= 1
            size += len(parts[first])
        start = first


def _readings(texts: list[Text]) -> list[tuple[list[str], str]]:
    """Parts that may be read one after the other, and what stands between them."""
    pieces = [text for text in texts if text.message and text.text.strip()]
    if len(pieces) < 2:
        return []
    spoken = [text for text in pieces if text.target is not None and not text.strand]
    everyone = [_shown(text) for text in spoken]
    user = [_shown(text) for text in spoken if text.role == "user"]
    # Templates and vLLM gather these at the front.
    system = [_shown(text) for text in spoken if text.role in ("system", "developer")]
    readings = [([_ends(text.text, WINDOW) for text in pieces], "\n"), *(([whole], "") for whole in _seamless(texts))]
    if spoken and len(spoken) < pieces.index(spoken[-1]) - pieces.index(spoken[0]) + 1:
        # Something else stands between, that the template may not show.
        readings.append(([_ends(text, WINDOW) for text in everyone], "\n"))
    for said in (user, system):
        if 1 < len(said) < len(pieces):
            readings.append(([_ends(text, WINDOW) for text in said], "\n"))
    for said in (everyone, user, system):
        readings += ((parts, "") for parts in _around_split_words([text.strip() for text in said if text.strip()]))
    return readings


def _around_split_words(said: list[str]) -> Iterator[list[str]]:
    """Texts between which a word may be split, with nothing between, and some of what stands around them."""
    split = [bool(_SPLIT_WORD.search(f"{a[-1:]}{b[:1]}")) for a, b in pairwise(said)]
    parts = [_ends(text, SEAM) for text in said]
    near = [a or b for a, b in zip(_after(parts, split), _after(parts[::-1], split[::-1])[::-1], strict=True)]
    parted = [part if whole else f"\n{part}" for part, whole in zip(parts, [True, *split], strict=False)]
    for wanted, group in groupby(range(len(parts)), key=near.__getitem__):
        if wanted:
            yield [parted[i] for i in group]


def _after(parts: list[str], split: list[bool]) -> list[bool]:
    """Which parts stand, at least in part, among the SEAM characters after a place where a word may be split."""
    found, left = [], 0
    for part, opened in zip(parts, [False, *split], strict=False):
        left = SEAM if opened else left
        found.append(left > 0)
        left -= len(part)
    return found


def _shown(text: Text) -> str:
    """A text as it may stand beside others: without a header that vLLM leaves out."""
    header = text.role == "system" and text.text.startswith(BILLING_HEADER)
    return text.text.partition("\n")[2] if header else text.text


def _ends(text: str, size: int) -> str:
    """A text, or both ends of a long one."""
    return text if len(text) <= 2 * size else f"{text[:size]}\n...\n{text[-size:]}"
