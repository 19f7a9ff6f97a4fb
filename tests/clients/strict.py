"""Reads what the gateway answered as strictly as the published types of OpenAI and Anthropic allow.

The clients build their objects without checking: a field that is missing or of another type goes unnoticed until
somebody uses it. Here nothing is converted, and what the documents call required has to be there, null or not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Literal

import anthropic.types
import openai.types
import openai.types.chat
import openai.types.responses
from openai.types.shared import ErrorObject
from pydantic import TypeAdapter, ValidationError

from lethe.server.errors import dialect_of
from tests.clients.tap import Exchange


class CompletionChunk(openai.types.Completion):
    """A piece of a streamed completion. The published type has no null there, what OpenAI sends has."""

    class Choice(openai.types.CompletionChoice):
        finish_reason: Literal["stop", "length", "content_filter"] | None  # type: ignore[assignment]

    choices: list[Choice]  # type: ignore[assignment]


# path → the type of a whole answer, and of a stream's events.
TYPES: dict[str, tuple[Any, Any]] = {
    "/v1/chat/completions": (openai.types.chat.ChatCompletion, openai.types.chat.ChatCompletionChunk),
    "/v1/completions": (openai.types.Completion, CompletionChunk),
    "/v1/responses": (openai.types.responses.Response, openai.types.responses.ResponseStreamEvent),
    "/v1/messages": (anthropic.types.Message, anthropic.types.RawMessageStreamEvent),
    "/v1/messages/count_tokens": (anthropic.types.MessageTokensCount, None),
}

# Keys that OpenAI's documents require although the Python types let them be missing: of the object, of each choice.
REQUIRED: dict[Any, tuple[set[str], set[str]]] = {
    openai.types.chat.ChatCompletion: (
        {"id", "object", "created", "model", "choices"}, {"finish_reason", "index", "message", "logprobs"}
    ),
    openai.types.chat.ChatCompletionChunk: (
        {"id", "object", "created", "model", "choices"}, {"delta", "finish_reason", "index"}
    ),
    CompletionChunk: (
        {"id", "object", "created", "model", "choices"}, {"finish_reason", "index", "logprobs", "text"}
    ),
    openai.types.Completion: (
        {"id", "object", "created", "model", "choices"}, {"finish_reason", "index", "logprobs", "text"}
    ),
}  # fmt: skip


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def check(exchange: Exchange) -> None:
    """Raises AssertionError where an answer is not what the official clients of its route are promised."""
    path = exchange.path.partition("?")[0]
    assert exchange.status, f"{path}: no answer"
    assert 0 < len(exchange.headers["x-request-id"]) <= 128, path
    if not (exchange.whole or exchange.body.endswith(b"data: [DONE]\n\n")):
        return  # the client has left: some need no more than the status
    if exchange.status >= 400:
        error(exchange)
    elif path == "/v1/models":
        _models(exchange.body)
    elif path in TYPES:
        whole, part = TYPES[path]
        if exchange.headers["content-type"].startswith("text/event-stream"):
            STREAMS[dialect_of(path)](list(events(exchange.body)), part, json.loads(exchange.asked))
        else:
            assert exchange.headers["content-type"] == "application/json"
            told(whole, exchange.body)


def told(kind: Any, raw: bytes | str) -> Any:
    """`raw` as the published type `kind`, nothing converted."""
    value = json.loads(raw)
    try:
        _adapter(kind).validate_json(raw, strict=True)
    except ValidationError as wrong:
        raise AssertionError(f"{wrong}\nin {value}") from None
    top, of_choice = REQUIRED.get(kind, (set(), set()))
    assert top <= value.keys(), (kind, top - value.keys())
    for choice in value.get("choices", []):
        assert of_choice <= choice.keys(), (kind, of_choice - choice.keys())
    return value


def error(exchange: Exchange) -> None:
    """An error as its route's clients read it. The codes of vLLM's own are numbers; they pass as they are."""
    path = exchange.path.partition("?")[0]
    assert exchange.headers["content-type"] == "application/json", exchange.headers
    body = json.loads(exchange.body)
    if dialect_of(path) == "anthropic":
        assert body["type"] == "error" and body["error"].keys() >= {"type", "message"}
        assert body["error"]["message"] and all(isinstance(body["error"][key], str) for key in ("type", "message"))
        assert exchange.headers["request-id"] == exchange.headers["x-request-id"]
    else:
        assert body.keys() == {"error"} and body["error"].keys() == {"message", "type", "param", "code"}, body
        code = body["error"]["code"]
        assert code is None or isinstance(code, str) or code == exchange.status
        _adapter(ErrorObject).validate_python(body["error"] | {"code": None}, strict=True)
        assert body["error"]["message"]
    if (again := exchange.headers.get("x-should-retry")) is not None:
        assert again == ("true" if exchange.status in (408, 429, 502, 503, 504) else "false")
    if (after := exchange.headers.get("retry-after")) is not None:
        assert int(after) >= 1 and exchange.status in (429, 503)


def events(body: bytes) -> Iterator[tuple[str, str]]:
    """A stream's events: name and data. Each is `event:` and `data:` lines and an empty one, nothing else."""
    text = body.decode()
    assert text.endswith("\n\n"), text[-200:]
    for block in text.split("\n\n"):
        fields = [line.partition(": ") for line in block.splitlines()]
        assert all(name in ("event", "data") for name, _, _ in fields), block
        if fields:
            named: Mapping[str, str] = {name: value for name, _, value in fields}
            yield named.get("event", ""), named["data"]


def _models(raw: bytes) -> None:
    value = json.loads(raw)
    assert value["object"] == "list" and value["data"]
    for model in value["data"]:
        _adapter(openai.types.Model).validate_python(model, strict=True)
        assert model["object"] == "model"


def _chunks(found: list[tuple[str, str]], kind: Any, asked: dict[str, Any]) -> None:
    assert found[-1] == ("", "[DONE]") and not any(name for name, _ in found)
    chunks = [told(kind, data) for _, data in found[:-1]]
    assert len({(chunk["id"], chunk["model"], chunk["created"]) for chunk in chunks}) == 1
    if (asked.get("stream_options") or {}).get("include_usage"):
        assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["prompt_tokens"] > 0
        assert all(chunk.get("usage") is None for chunk in chunks[:-1])
        chunks.pop()
    assert all(chunk["choices"] for chunk in chunks)
    last = {choice["index"]: choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]}
    assert all(last.values()), last


def _response(found: list[tuple[str, str]], kind: Any, asked: dict[str, Any]) -> None:
    read = [told(kind, data) for _, data in found]
    assert [name for name, _ in found] == [event["type"] for event in read]
    assert [event["sequence_number"] for event in read] == list(range(len(read)))
    assert read[0]["type"] == "response.created"
    assert read[-1]["type"] in ("response.completed", "response.incomplete")


def _message(found: list[tuple[str, str]], kind: Any, asked: dict[str, Any]) -> None:
    # The client itself skips pings; its type of a stream's events has none.
    read = [told(kind, data) for name, data in found if name != "ping"]
    assert [name for name, _ in found if name != "ping"] == [event["type"] for event in read]
    assert read[0]["type"] == "message_start" and read[-1]["type"] == "message_stop"
    assert read[-2]["type"] == "message_delta" and read[-2]["delta"]["stop_reason"]
    begun = [event["index"] for event in read if event["type"] == "content_block_start"]
    ended = [event["index"] for event in read if event["type"] == "content_block_stop"]
    assert begun == ended == list(range(len(begun)))


STREAMS = {"openai": _chunks, "responses": _response, "anthropic": _message}
