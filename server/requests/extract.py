"""Which text of a request can reach the model, and which fields are refused.

Every field is judged as text, known to carry none, or refused: `server/requests/fields.py` has the tables, and
`server/requests/messages.py` reads conversations. A field that is in no table and not in `IGNORED` (fields that vLLM
ignores) is judged: every string in it, keys included, at any depth. Pure: no I/O, no policy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

from lethe.corruption.prompt.message_parts import PROMPT_EMBEDS_MARKER
from lethe.server.errors import BadRequest, Unreadable
from lethe.server.requests import messages
from lethe.server.requests.fields import (
    EMBEDS,
    IGNORED,
    REFUSED_INSIDE,
    REFUSED_RELAYED,
    RELAYED,
    SERVER_TOOL,
    SERVER_TOOLS,
    SWITCHES,
    TABLES,
    Endpoint,
)
from lethe.server.requests.joined_texts import messages_without_separators
from lethe.server.requests.messages import DecodeIds, check_no_embeddings, embedding_kinds
from lethe.server.requests.output_constraints import output_constraints, preferred_tokens
from lethe.server.requests.request_text import RequestText, value_as_text, without_known_words
from lethe.server.requests.spelled_patterns import spelled_texts

# vLLM treats this field as absent when it is an empty list, so an empty list isn't refused here.
EMPTY_EMBEDS: Final = "prompt_embeds"
# The fields that the table of an endpoint lists.
KNOWN_FIELDS: Final = {
    endpoint: table.shown.union(table.judged, table.numeric, table.harmless, table.refused, table.walked)
    for endpoint, table in TABLES.items()
}

# Maximum number of tokens favoured by `logit_bias` or `allowed_token_ids` whose joined text is judged. Chosen: longer
# than any name that a client could force in this way. Names that they spell in another order are found in
# `server/steering/constraints.py`.
MAX_SPELLED_TOKENS: Final = 256
# Maximum number of separate texts in a request. Chosen: an agent's 2,100 round trips with tools have up to 12,600
# (ids, names, arguments, results). It bounds the work, since each text costs some, however short it is.
MAX_TEXTS: Final = 16_384


def extract_texts(endpoint: Endpoint, body: dict[str, Any], *, decode: DecodeIds | None = None) -> list[RequestText]:
    """Return all texts of a request that can reach the model.

    First the conversation, in the order in which the chat template shows it; then the other fields, in the body's
    order; then what patterns and grammars spell.
    decode: token ids → text, for completion prompts given as ids; without it they are refused. Bodies of relayed
    endpoints are checked and have no texts.
    Raises BadRequest for refused fields, client-made embeddings, prompts of an unknown form, and more than MAX_TEXTS
    texts.
    """
    if endpoint in RELAYED:
        _check_relayed_body(body)
        return []
    texts: list[RequestText] = []
    for text in _texts(endpoint, body, decode):
        if PROMPT_EMBEDS_MARKER in text.text:
            message = f"{text.place}: the text {PROMPT_EMBEDS_MARKER!r} is reserved"
            raise BadRequest(message, param=text.place, code="reserved_text")
        if len(texts) == MAX_TEXTS:
            raise BadRequest(f"the request has more than {MAX_TEXTS} texts", code="too_many_texts")
        texts.append(text)
    if any(PROMPT_EMBEDS_MARKER in message for message in messages_without_separators(texts)):
        raise BadRequest(f"the text {PROMPT_EMBEDS_MARKER!r} is reserved", param="messages", code="reserved_text")
    return texts


def _texts(endpoint: Endpoint, body: dict[str, Any], decode: DecodeIds | None) -> Iterator[RequestText]:
    table = TABLES[endpoint]
    for key, value in body.items():
        _check_field(key, value, table.refused)
    if endpoint == "responses":
        _check_tools(body.get("tools"))
    for key in table.walked:
        yield from _conversation_texts(endpoint, key, body.get(key), decode)
    for at, (key, value) in enumerate(body.items()):
        if key in ("logit_bias", "allowed_token_ids"):
            yield from _preferred_text(key, value, decode)
        if key in table.words:
            unknown = without_known_words(value, table.words[key])
            yield from value_as_text(key, unknown, message=True)
        elif key in IGNORED and key not in KNOWN_FIELDS[endpoint]:
            continue
        elif key not in KNOWN_FIELDS[endpoint]:
            check_no_embeddings(value, f"(unknown field {at})")
            yield from value_as_text(f"(unknown field {at})", {key: value})
        elif key not in table.harmless and key not in table.walked and key not in table.refused:
            if key in ("documents", "chat_template_kwargs"):
                check_no_embeddings(value, key)
            yield from value_as_text(key, value, message=key in table.shown)
    yield from _spelled_texts(body)


def _spelled_texts(body: Mapping[str, Any]) -> Iterator[RequestText]:
    """What the patterns and grammars of a request spell, without their notation."""
    for constraint in output_constraints(body):
        for text in spelled_texts(constraint):
            if text.strip() and text != constraint.text:
                yield RequestText(constraint.field, text)


def _preferred_text(key: str, value: Any, decode: DecodeIds | None) -> Iterator[RequestText]:
    """What the tokens that a request prefers spell, in their order. vLLM rejects ids that the model doesn't have."""
    tokens = list(preferred_tokens(key, value)[:MAX_SPELLED_TOKENS])
    if tokens and decode is not None:
        with suppress(ValueError, OverflowError):
            yield RequestText(key, decode(tokens))


def _conversation_texts(endpoint: Endpoint, key: str, value: Any, decode: DecodeIds | None) -> Iterator[RequestText]:
    """The texts of a field that has a reader of its own."""
    match endpoint, key:
        case "chat", _:
            return messages.chat_texts(value)
        case "batch", _:
            return messages.batch_texts(value)
        case "completions", _:
            return messages.prompt_texts(value, decode)
        case "responses", "instructions":
            return messages.instructions_texts(value)
        case "responses", "previous_input_messages":
            return messages.previous_messages_texts(value)
        case "responses", _:
            return messages.response_input_texts(value)
        case _, "system":
            return messages.anthropic_system_texts(value)
        case _:
            return messages.anthropic_texts(value)


def _check_field(key: str, value: Any, refused: Mapping[str, str]) -> None:
    """Raise BadRequest if the field is refused, or has a member that is."""
    is_off = value is None or (key in SWITCHES and value is False) or (key == EMPTY_EMBEDS and value == [])
    if key in refused and not is_off:
        raise BadRequest(f"the field {key!r} is refused: {refused[key]}", param=key, code="refused_field")
    refused_members = REFUSED_INSIDE.get(key)
    if refused_members is None:
        return
    if not isinstance(value, dict | None):
        raise Unreadable(f"{key} is not an object", param=key)
    for name in refused_members.keys() & (value or {}).keys():
        raise BadRequest(f"{key}[{name!r}] is refused: {refused_members[name]}", param=key, code="refused_field")


def _check_tools(tools: Any) -> None:
    """Raise BadRequest for a tool that vLLM would run itself."""
    for at, tool in enumerate(tools if isinstance(tools, list) else ()):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if isinstance(kind, str) and kind in SERVER_TOOLS:
            raise BadRequest(
                f"tools[{at}]: a tool of type {kind!r} is refused: {SERVER_TOOL}", param="tools", code="refused_field"
            )


def check_no_refused_field(endpoint: Endpoint, body: dict[str, Any]) -> None:
    """Raise BadRequest for what vLLM must not even be asked about: what it would load or run, anywhere in the body."""
    # What should be an object and is none has no members to refuse; vLLM says so.
    read = {key: value for key, value in body.items() if isinstance(value, dict) or key not in REFUSED_INSIDE}
    for key, value in read.items():
        _check_field(key, value, TABLES[endpoint].refused if endpoint in TABLES else REFUSED_RELAYED)
    _check_relayed_body(read)


def _check_relayed_body(body: dict[str, Any]) -> None:
    """Raise BadRequest for what vLLM would load or run: client-made embeddings, chat templates."""
    for key, value in body.items():
        _check_field(key, value, REFUSED_RELAYED)
    stack: list[Any] = [body]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            if refused := embedding_kinds(item):
                raise BadRequest(f"{refused[0]!r} is refused: {EMBEDS}", code="refused_field")
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)
