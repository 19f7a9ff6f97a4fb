"""The OpenAPI document of the public port, made from the table of fields and the table of routes.

It says what the gateway itself reads, refuses and answers. Whatever else a field has to be is the model server's to
say: the gateway judges what it doesn't know and passes it on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any, Final

from lethe.server import errors
from lethe.server.errors import GuardError
from lethe.server.requests.fields import (
    REFUSED_INSIDE,
    REFUSED_PARTS,
    REFUSED_RELAYED,
    RELAYED,
    SERVER_TOOL,
    SERVER_TOOLS,
    SWITCHES,
    TABLES,
    Endpoint,
    Table,
)
from lethe.server.settings import Settings

Schema = dict[str, Any]

DESCRIPTION: Final = """\
A gateway in front of vLLM. A request is judged; one that is not flagged goes up as the bytes that came, and the \
answer comes back as the bytes that the model server sent. A body is one JSON object in UTF-8, without a key that \
stands twice, NaN, numbers past 64 bits, lone surrogates, or anything after it."""

_NUMBERS: Final = "Numbers or a switch; a string in it is judged."
_OTHER: Final = "Anything else: every string in it is judged, and the model server says whether it takes it."
_SUMMARIES: Final[Mapping[str, str]] = {
    "chat": "A chat completion",
    "batch": "Chat completions of several conversations",
    "completions": "A completion",
    "responses": "A response",
    "messages": "A message",
    "count_tokens": "How many tokens a message has",
    "tokenize": "Text as token ids",
    "detokenize": "Token ids as text",
    "embeddings": "Embeddings of text",
    "score": "How alike texts are",
    "rerank": "Texts in the order of how well they fit",
    "pooling": "What a pooling model makes of text",
}
_STREAMED: Final = frozenset({"chat", "batch", "completions", "responses", "messages"})


def document(routes: Iterable[tuple[str, str, Endpoint | None]], settings: Settings) -> Schema:
    """The public port's document. routes: path, method, and what is read of the body (None: nothing)."""
    with_keys = settings.keys is not None
    paths: dict[str, Schema] = {}
    used: set[Endpoint] = set()
    for path, method, endpoint in routes:
        if endpoint is not None:
            used.add(endpoint)
        paths[path] = {method.lower(): _operation(path, endpoint, with_keys)}
    state: Schema = {"content": {"application/json": {"schema": {"type": "object"}}}}
    paths["/health"] = {"get": {"summary": "Whether the gateway runs", "security": [],
                                "responses": {"200": {"description": "It does.", **state}}}}  # fmt: skip
    paths["/ready"] = {"get": {"summary": "Whether a replica of the model server is there", "security": [],
                               "responses": {"200": {"description": "One is.", **state},
                                             "503": {"description": "None is.", **state}}}}  # fmt: skip
    return {
        "openapi": "3.1.0",
        "info": {"title": "Lethe", "version": version("lethe-gateway"), "description": DESCRIPTION},
        "paths": paths,
        "components": {
            "schemas": {
                **{endpoint: _body(endpoint, settings) for endpoint in sorted(used)},
                **_PIECES,
                "Error": ERROR,
                "AnthropicError": _ANTHROPIC_ERROR,
            },
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "security": [{"bearer": []}, {"key": []}] if with_keys else [],
    }


# Routes


def _operation(path: str, endpoint: Endpoint | None, with_keys: bool) -> Schema:
    answer: Schema = {"application/json": {}}
    if endpoint in _STREAMED:
        answer["text/event-stream"] = {"schema": {"type": "string"}}
    told = {"200": {"description": "The model server's answer.", "content": answer, "headers": _REQUEST_ID}}
    operation: Schema = {
        "summary": _SUMMARIES[endpoint] if endpoint else "The models that are served",
        "responses": told | {str(one.status): failure(one, path) for one in _failures(endpoint, with_keys)},
    }
    if endpoint is not None:
        schema = {"$ref": f"#/components/schemas/{endpoint}"}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return operation


def _failures(endpoint: Endpoint | None, with_keys: bool) -> list[type[GuardError]]:
    made: list[type[GuardError]] = [
        errors.TooSlow, errors.TooLarge, errors.UrlTooLong, errors.HeadTooLarge, GuardError, errors.UpstreamFailed,
        errors.Overloaded, errors.UpstreamTimeout, errors.BadRequest,
    ]  # fmt: skip
    if endpoint is not None and endpoint not in RELAYED:
        made.append(errors.Refused)
    if with_keys:
        made += [errors.Unauthorized, errors.NotFound, errors.RateLimited]
    return sorted(made, key=lambda error: error.status)


_WHEN: Final[Mapping[int, str]] = {
    400: "The request can't be read strictly, or holds what is refused.",
    401: "No key, or none that is known.",
    403: "A policy's decision.",
    404: "The key may not use that model.",
    408: "The request did not arrive in time.",
    409: "What is there now stands against it.",
    413: "The body is too large.",
    414: "The URL is too long.",
    429: "More than the key's limits allow.",
    431: "The headers are too large.",
    500: "An error of the gateway's own.",
    502: "The model server can't be reached, or broke off.",
    503: "The gateway is full, or no replica can answer.",
    504: "The model server was silent for too long.",
}
_REQUEST_ID: Final = {"x-request-id": {"schema": {"type": "string"}}}


def failure(error: type[GuardError], path: str = "") -> Schema:
    """What an error of the gateway's own is answered with. path: of the route, for its clients' form of it."""
    name = "AnthropicError" if errors.dialect(path) == "anthropic" else "Error"
    headers: Schema = {"x-should-retry": {"required": True, "schema": {"enum": ["true", "false"]}}, **_REQUEST_ID}
    if error.status in (429, 503):
        headers["retry-after"] = {"schema": {"type": "string", "pattern": "^[0-9]+$"}}
    schema = {"$ref": f"#/components/schemas/{name}"}
    return {
        "description": _WHEN[error.status],
        "content": {"application/json": {"schema": schema}},
        "headers": headers,
    }


_TEXT_OR_NULL: Final = {"type": ["string", "null"]}
ERROR: Final = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": _TEXT_OR_NULL,
                "code": _TEXT_OR_NULL,
            },
            "required": ["message", "type", "param", "code"],
            "additionalProperties": False,
        }
    },
    "required": ["error"],
    "additionalProperties": False,
}
_ANTHROPIC_ERROR: Final = {
    "type": "object",
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
            "required": ["type", "message"],
            "additionalProperties": False,
        },
        "request_id": _TEXT_OR_NULL,
    },
    "required": ["type", "error"],
    "additionalProperties": False,
}

# Bodies


def _body(endpoint: Endpoint, settings: Settings) -> Schema:
    if endpoint in RELAYED:
        fields = {name: _refused(name, reason) for name, reason in REFUSED_RELAYED.items()}
        fields |= {name: _without(inside) for name, inside in REFUSED_INSIDE.items()}
        said = "Not judged: no model says anything in the answer. Embeddings of the client's own are refused anywhere."
        return {"type": "object", "description": said, "properties": fields}
    table = TABLES[endpoint]
    fields = {name: _walked(endpoint, name, settings) for name in table.walked}
    fields |= {name: _judged(endpoint, table, name) for name in sorted(table.shown | table.judged | set(table.words))}
    fields |= {name: {"description": _NUMBERS} for name in sorted(table.numeric)}
    fields |= {name: {"description": f"Not judged: {reason}."} for name, reason in table.harmless.items()}
    fields |= {name: _refused(name, reason) for name, reason in table.refused.items()}
    said = "A field that is not listed is judged, whatever it holds, and passed on."
    return {"type": "object", "description": said, "properties": fields, "additionalProperties": True}


def _refused(name: str, reason: str) -> Schema:
    off: Schema = {"enum": [None, False]} if name in SWITCHES else {"type": "null"}
    return {**off, "description": f"Refused: {reason}."}


def _without(inside: Mapping[str, str], said: str = "") -> Schema:
    refused = "; ".join(f"{name}: {reason}" for name, reason in inside.items())
    return {
        "type": ["object", "null"],
        "description": f"{said}Refused in it: {refused}.",
        "properties": dict.fromkeys(inside, False),
    }


def _judged(endpoint: Endpoint, table: Table, name: str) -> Schema:
    if name in REFUSED_INSIDE:
        return _without(REFUSED_INSIDE[name], "Judged. ")
    if name in table.words:
        return {"description": "A few known words; anything else in it is judged."}
    if endpoint == "responses" and name == "tools":
        tool = {"properties": {"type": {"not": {"enum": sorted(SERVER_TOOLS)}}}}
        return {"description": f"Judged. Of these types refused: {SERVER_TOOL}.", **_list_of(tool)}
    return {"description": "Judged: every string in it."}


def _walked(endpoint: Endpoint, name: str, settings: Settings) -> Schema:
    match endpoint, name:
        case "batch", _:
            return _or_other("array", {"items": _ref("Messages")}, "The conversations, each judged by itself.")
        case "completions", _:
            ids = {"type": "array", "items": {"type": "integer", "minimum": 0}}
            one: list[Schema] = [{"type": "string"}, *([ids] if settings.model_dir else [])]
            many = {"type": "array", "items": {"anyOf": one}}
            said = "Text, or token ids (where LETHE_MODEL_DIR is set), or a list of either. Judged."
            return {"description": said, "anyOf": [*one, many, {"type": "null"}]}
        case "responses", "previous_input_messages":
            return {"description": "Judged: every string in it."}
        case "responses", "input":
            return _ref("Items")
        case _, "system" | "instructions":
            return _ref("Content")
    return _ref("Messages")


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _or_other(kind: str, schema: Schema, said: str) -> Schema:
    """A schema of one type, or whatever is not of that type."""
    return {"description": said, "anyOf": [{"type": kind, **schema}, {"not": {"type": kind}, "description": _OTHER}]}


def _list_of(item: Schema) -> Schema:
    """Lists of objects; what is no list, and what in it is no object, is not looked at."""
    inside = {"anyOf": [{"type": "object", **item}, {"not": {"type": "object"}}]}
    return {"anyOf": [{"type": "array", "items": inside}, {"not": {"type": "array"}}]}


_NO_EMBEDS: Final = {
    "propertyNames": {"not": {"enum": sorted(REFUSED_PARTS)}},
    "properties": {"type": {"not": {"enum": sorted(REFUSED_PARTS)}}},
}
_MESSAGE: Final = {"role": {"description": "Judged, unless it is a known role."}, "content": _ref("Content")}
_PIECES: Final[dict[str, Schema]] = {
    "Content": _or_other("array", {"items": _ref("Part")}, "Text or a list of parts."),
    "Part": _or_other("object", _NO_EMBEDS, "Text, or an object; embeddings of the client's own are refused."),
    "Message": _or_other("object", {"properties": _MESSAGE}, "One message; its other keys are judged, too."),
    "Messages": _or_other("array", {"items": _ref("Message")}, "The conversation."),
    "Item": _or_other(
        "object",
        {
            **_NO_EMBEDS,
            "properties": {
                **_NO_EMBEDS["properties"],  # type: ignore[dict-item]  # a literal of ours
                **_MESSAGE,
                "output": _ref("Content"),
                "summary": _ref("Content"),
            },
        },
        "A message, a tool call, its output, or reasoning.",
    ),
    "Items": _or_other("array", {"items": _ref("Item")}, "One text of the user, or a list of items."),
}
