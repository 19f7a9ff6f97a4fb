"""The OpenAPI document of the client port, generated from the fields tables and the routes.

It describes what the gateway itself reads, refuses and answers. Other constraints on a field are vLLM's: the gateway
judges fields that it doesn't know and forwards them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any, Final

from lethe.server import errors
from lethe.server.errors import GatewayError
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
    FieldsTable,
)
from lethe.server.settings import Settings

Schema = dict[str, Any]

DESCRIPTION: Final = """\
A gateway in front of vLLM. Every request is judged; one that is not flagged is forwarded byte for byte, and the \
response is relayed byte for byte. A body is one JSON object in UTF-8, without duplicate keys, NaN, numbers past \
64 bits, lone surrogates, or anything after the object."""

_NUMBERS: Final = "Numbers or booleans; a string in it is judged."
_OTHER: Final = "Anything else: every string in it is judged, and vLLM decides whether it is valid."
_SUMMARIES: Final[Mapping[str, str]] = {
    "chat": "A chat completion",
    "batch": "Chat completions of several conversations",
    "completions": "A completion",
    "responses": "A response",
    "messages": "A message",
    "count_tokens": "The number of tokens of a message",
    "tokenize": "The token ids of a text",
    "detokenize": "The text of token ids",
    "embeddings": "Embeddings of text",
    "score": "The similarity of texts",
    "rerank": "Texts ranked by relevance to a query",
    "pooling": "The output of a pooling model",
}
_STREAMED: Final = frozenset({"chat", "batch", "completions", "responses", "messages"})


def openapi_document(routes: Iterable[tuple[str, str, Endpoint | None]], settings: Settings) -> Schema:
    """The document. routes: path, method, and endpoint (None: `/v1/models`, which has no body)."""
    has_keys = settings.keys is not None
    paths: dict[str, Schema] = {}
    used: set[Endpoint] = set()
    for path, method, endpoint in routes:
        if endpoint is not None:
            used.add(endpoint)
        paths[path] = {method.lower(): _operation(path, endpoint, has_keys)}
    state: Schema = {"content": {"application/json": {"schema": {"type": "object"}}}}
    paths["/health"] = {"get": {"summary": "Whether the gateway is running", "security": [],
                                "responses": {"200": {"description": "It is running.", **state}}}}  # fmt: skip
    paths["/ready"] = {"get": {"summary": "Whether a replica is ready", "security": [],
                               "responses": {"200": {"description": "A replica is ready.", **state},
                                             "503": {"description": "No replica is ready.", **state}}}}  # fmt: skip
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
        "security": [{"bearer": []}, {"key": []}] if has_keys else [],
    }


# Routes


def _operation(path: str, endpoint: Endpoint | None, has_keys: bool) -> Schema:
    content: Schema = {"application/json": {}}
    if endpoint in _STREAMED:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    success = {"200": {"description": "vLLM's response.", "content": content, "headers": _REQUEST_ID}}
    operation: Schema = {
        "summary": _SUMMARIES[endpoint] if endpoint else "The available models",
        "responses": success
        | {str(error.status): error_schema(error, path) for error in _errors_of(endpoint, has_keys)},
    }
    if endpoint is not None:
        schema = {"$ref": f"#/components/schemas/{endpoint}"}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return operation


def _errors_of(endpoint: Endpoint | None, has_keys: bool) -> list[type[GatewayError]]:
    """The errors that a route may answer with, by status."""
    kinds: list[type[GatewayError]] = [
        errors.TooSlow, errors.TooLarge, errors.UrlTooLong, errors.HeadTooLarge, GatewayError, errors.UpstreamFailed,
        errors.Overloaded, errors.UpstreamTimeout, errors.BadRequest,
    ]  # fmt: skip
    if has_keys:
        kinds += [errors.Unauthorized, errors.NotFound, errors.RateLimited]
    return sorted(kinds, key=lambda error: error.status)


_STATUS_DESCRIPTIONS: Final[Mapping[int, str]] = {
    400: "The request is invalid, has a field or value that is refused, or a policy refuses it (`refuse.as: error`).",
    401: "The API key is missing or unknown.",
    404: "The key may not use that model.",
    408: "The request did not arrive in time.",
    409: "The request conflicts with the current state.",
    413: "The body is too large.",
    414: "The URL is too long.",
    429: "The key's limits are reached.",
    431: "The headers are too large.",
    500: "An internal error of the gateway.",
    502: "vLLM can't be reached, or closed the connection too early.",
    503: "The gateway's limits are reached, or no replica can answer.",
    504: "vLLM sent nothing in time.",
}
_REQUEST_ID: Final = {"x-request-id": {"schema": {"type": "string"}}}


def error_schema(error: type[GatewayError], path: str = "") -> Schema:
    """The response of an error. path: of the route, which decides between OpenAI's and Anthropic's form."""
    name = "AnthropicError" if errors.dialect_of(path) == "anthropic" else "Error"
    headers: Schema = {"x-should-retry": {"required": True, "schema": {"enum": ["true", "false"]}}, **_REQUEST_ID}
    if error.status in (429, 503):
        headers["retry-after"] = {"schema": {"type": "string", "pattern": "^[0-9]+$"}}
    schema = {"$ref": f"#/components/schemas/{name}"}
    return {
        "description": _STATUS_DESCRIPTIONS[error.status],
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
        fields |= {name: _without_members(members) for name, members in REFUSED_INSIDE.items()}
        description = "Not judged: the response has no generated text. Embeddings from clients are refused everywhere."
        return {"type": "object", "description": description, "properties": fields}
    table = TABLES[endpoint]
    fields = {name: _walked(endpoint, name, settings) for name in table.walked}
    fields |= {name: _judged(endpoint, table, name) for name in sorted(table.shown | table.judged | set(table.words))}
    fields |= {name: {"description": _NUMBERS} for name in sorted(table.numeric)}
    fields |= {name: {"description": f"Not judged: {reason}."} for name, reason in table.harmless.items()}
    fields |= {name: _refused(name, reason) for name, reason in table.refused.items()}
    description = "A field that is not listed is judged and forwarded."
    return {"type": "object", "description": description, "properties": fields, "additionalProperties": True}


def _refused(name: str, reason: str) -> Schema:
    off: Schema = {"enum": [None, False]} if name in SWITCHES else {"type": "null"}
    return {**off, "description": f"Refused: {reason}."}


def _without_members(refused: Mapping[str, str], prefix: str = "") -> Schema:
    """An object in which some members are refused. refused: member → reason."""
    reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
    return {
        "type": ["object", "null"],
        "description": f"{prefix}Refused in it: {reasons}.",
        "properties": dict.fromkeys(refused, False),
    }


def _judged(endpoint: Endpoint, table: FieldsTable, name: str) -> Schema:
    if name in REFUSED_INSIDE:
        return _without_members(REFUSED_INSIDE[name], "Judged. ")
    if name in table.words:
        return {"description": "One of a few known words; anything else is judged."}
    if endpoint == "responses" and name == "tools":
        tool = {"properties": {"type": {"not": {"enum": sorted(SERVER_TOOLS)}}}}
        return {"description": f"Judged. Of these types refused: {SERVER_TOOL}.", **_list_of(tool)}
    return {"description": "Judged: every string in it."}


def _walked(endpoint: Endpoint, name: str, settings: Settings) -> Schema:
    match endpoint, name:
        case "batch", _:
            return _or_other("array", {"items": _ref("Messages")}, "The conversations, each judged separately.")
        case "completions", _:
            ids = {"type": "array", "items": {"type": "integer", "minimum": 0}}
            single: list[Schema] = [{"type": "string"}, *([ids] if settings.model_dir else [])]
            several = {"type": "array", "items": {"anyOf": single}}
            description = "Text, or token ids (if LETHE_MODEL_DIR is set), or a list of either. Judged."
            return {"description": description, "anyOf": [*single, several, {"type": "null"}]}
        case "responses", "previous_input_messages":
            return {"description": "Judged: every string in it."}
        case "responses", "input":
            return _ref("Items")
        case _, "system" | "instructions":
            return _ref("Content")
    return _ref("Messages")


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _or_other(kind: str, schema: Schema, description: str) -> Schema:
    """A schema for values of one JSON type; values of other types are allowed, too."""
    return {
        "description": description,
        "anyOf": [{"type": kind, **schema}, {"not": {"type": kind}, "description": _OTHER}],
    }


def _list_of(item: Schema) -> Schema:
    """A list whose objects have the schema `item`; other items, and values that are no list, are allowed."""
    items = {"anyOf": [{"type": "object", **item}, {"not": {"type": "object"}}]}
    return {"anyOf": [{"type": "array", "items": items}, {"not": {"type": "array"}}]}


_NO_EMBEDS: Final = {
    "propertyNames": {"not": {"enum": sorted(REFUSED_PARTS)}},
    "properties": {"type": {"not": {"enum": sorted(REFUSED_PARTS)}}},
}
_MESSAGE: Final = {"role": {"description": "Judged, unless it is a known role."}, "content": _ref("Content")}
_PIECES: Final[dict[str, Schema]] = {
    "Content": _or_other("array", {"items": _ref("Part")}, "Text or a list of parts."),
    "Part": _or_other("object", _NO_EMBEDS, "Text, or an object; embeddings from clients are refused."),
    "Message": _or_other("object", {"properties": _MESSAGE}, "One message; its other fields are judged, too."),
    "Messages": _or_other("array", {"items": _ref("Message")}, "The conversation."),
    "Item": _or_other(
        "object",
        {
            **_NO_EMBEDS,
            "properties": {
                **_NO_EMBEDS["properties"],  # type: ignore[dict-item]  # a literal, see above
                **_MESSAGE,
                "output": _ref("Content"),
                "summary": _ref("Content"),
            },
        },
        "A message, a tool call, its output, or reasoning.",
    ),
    "Items": _or_other("array", {"items": _ref("Item")}, "The user's text, or a list of items."),
}
