"""A refusal as an ordinary answer of each API: status 200, whole or streamed, that says the policy's message.

An error would be shown as a fault by most clients, and agents try again. `usage` is 0: no model read the prompt, so
there is nothing to count or to bill.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

import orjson

from lethe.server.output.completions import expected_choices
from lethe.server.output.responses import usage_of_response
from lethe.server.output.sse import Event
from lethe.server.output.text_filter import FINISH_FILTERED, STOP_REFUSAL
from lethe.server.requests.field_types import as_boolean
from lethe.server.requests.fields import Endpoint

JsonObject = dict[str, Any]

# Choices of a refusal, each of which repeats the message. Chosen: bounds the answer to a request for 16,384.
MAX_REFUSED_CHOICES: Final = 1024
# Endpoints whose answers can be streamed.
STREAMED: Final[frozenset[Endpoint]] = frozenset(["chat", "completions", "responses", "messages"])
_USAGE: Final = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
# Fields of a request that a response repeats, and the value of those that the request does not have.
_REPEATED_FIELDS: Final[Mapping[str, Any]] = {
    "instructions": None, "max_output_tokens": None, "max_tool_calls": None, "metadata": None,
    "parallel_tool_calls": True, "previous_response_id": None, "reasoning": None, "service_tier": "auto",
    "temperature": None, "text": None, "tool_choice": "auto", "tools": [], "top_logprobs": None, "top_p": None,
    "truncation": "disabled", "user": None,
}  # fmt: skip


def wants_stream(endpoint: Endpoint, body: Mapping[str, Any]) -> bool:
    """Whether the client gets a stream of events, as vLLM reads the request."""
    return endpoint in STREAMED and as_boolean(body.get("stream")) is True


def has_refusal_answer(endpoint: Endpoint) -> bool:
    """Whether the endpoint's API has an answer that says a refusal: every one with an answer that a model writes."""
    return endpoint in STREAMED or endpoint == "batch"


class RefusalAnswer:
    """The answers that refuse one request."""

    def __init__(self, endpoint: Endpoint, body: Mapping[str, Any]) -> None:
        self._endpoint = endpoint
        self._body = body
        self._model = body.get("model") if isinstance(body.get("model"), str) else ""
        self.streamed = wants_stream(endpoint, body)

    def whole(self, message: str) -> bytes:
        """The body of an answer that is not streamed."""
        match self._endpoint:
            case "responses":
                item = _response_item(message)
                return orjson.dumps({**self._response("completed", [item]), "usage": usage_of_response()})
            case "messages":
                content = [{"type": "text", "text": message}]
                return orjson.dumps({**self._message(content), "stop_reason": STOP_REFUSAL})
        choices = [self._choice(index, message) for index in range(self._choice_count())]
        return orjson.dumps({**self._completion(streamed=False), "choices": choices, "usage": _USAGE})

    def stream(self, message: str) -> bytes:
        """All events of a streamed answer."""
        match self._endpoint:
            case "responses":
                events = self._response_events(message)
            case "messages":
                events = self._message_events(message)
            case _:
                chunks = b"".join(Event(orjson.dumps(chunk).decode()).encode() for chunk in self._chunks(message))
                return chunks + Event("[DONE]").encode()
        return b"".join(Event(orjson.dumps(event).decode(), event["type"]).encode() for event in events)

    # Chat, batch and completions

    def _completion(self, *, streamed: bool) -> JsonObject:
        is_text = self._endpoint == "completions"
        kind = "text_completion" if is_text else "chat.completion.chunk" if streamed else "chat.completion"
        prefix = "cmpl-" if is_text else "chatcmpl-"
        return {"id": _new_id(prefix), "object": kind, "created": int(time.time()), "model": self._model}

    def _choice_count(self) -> int:
        messages = self._body.get("messages")
        if self._endpoint == "batch" and isinstance(messages, list):
            return min(len(messages), MAX_REFUSED_CHOICES) or 1
        return min(expected_choices(dict(self._body)) or 1, MAX_REFUSED_CHOICES)

    def _choice(self, index: int, message: str) -> JsonObject:
        if self._endpoint == "completions":
            text: JsonObject = {"text": message}
        else:
            # In both: most clients show the content only, and those that look for a refusal read the other.
            text = {"message": {"role": "assistant", "content": message, "refusal": message}}
        return {"index": index, **text, "logprobs": None, "finish_reason": FINISH_FILTERED}

    def _chunks(self, message: str) -> Iterator[JsonObject]:
        fields, indexes = self._completion(streamed=True), range(self._choice_count())
        if self._endpoint == "completions":
            pieces: list[tuple[JsonObject, str | None]] = [({"text": message}, None), ({"text": ""}, FINISH_FILTERED)]
        else:
            pieces = [
                ({"delta": {"role": "assistant", "content": ""}}, None),
                ({"delta": {"content": message, "refusal": message}}, None),
                ({"delta": {}}, FINISH_FILTERED),
            ]
        for index in indexes:
            for text, finish in pieces:
                yield {**fields, "choices": [{"index": index, **text, "logprobs": None, "finish_reason": finish}]}
        options = self._body.get("stream_options")
        if isinstance(options, dict) and as_boolean(options.get("include_usage")):
            yield {**fields, "choices": [], "usage": _USAGE}

    # Responses

    def _response(self, status: str, output: list[JsonObject]) -> JsonObject:
        repeated = {key: self._body.get(key) for key in _REPEATED_FIELDS}
        return {
            "id": _new_id("resp_"), "object": "response", "created_at": int(time.time()), "status": status,
            "background": False, "error": None, "incomplete_details": None, "model": self._model, "output": output,
            **{key: _REPEATED_FIELDS[key] if value is None else value for key, value in repeated.items()},
            "usage": None,
        }  # fmt: skip

    def _response_events(self, message: str) -> Iterator[JsonObject]:
        events = self._unnumbered_response_events(message)
        return ({**event, "sequence_number": number} for number, event in enumerate(events))

    def _unnumbered_response_events(self, message: str) -> Iterator[JsonObject]:
        item, response = _response_item(message), self._response("in_progress", [])
        part = item["content"][0]
        place = {"item_id": item["id"], "output_index": 0, "content_index": 0}
        yield {"type": "response.created", "response": response}
        yield {"type": "response.in_progress", "response": response}
        begun = {**item, "status": "in_progress", "content": []}
        yield {"type": "response.output_item.added", "output_index": 0, "item": begun}
        yield {"type": "response.content_part.added", **place, "part": {**part, "refusal": ""}}
        yield {"type": "response.refusal.delta", **place, "delta": message}
        yield {"type": "response.refusal.done", **place, "refusal": message}
        yield {"type": "response.content_part.done", **place, "part": part}
        yield {"type": "response.output_item.done", "output_index": 0, "item": item}
        completed = {**response, "status": "completed", "output": [item], "usage": usage_of_response()}
        yield {"type": "response.completed", "response": completed}

    # Messages

    def _message(self, content: list[JsonObject]) -> JsonObject:
        return {
            "id": _new_id("msg_"), "type": "message", "role": "assistant", "model": self._model, "content": content,
            "stop_reason": None, "stop_sequence": None, "usage": {"input_tokens": 0, "output_tokens": 0},
        }  # fmt: skip

    def _message_events(self, message: str) -> Iterator[JsonObject]:
        yield {"type": "message_start", "message": self._message([])}
        yield {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
        yield {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": message}}
        yield {"type": "content_block_stop", "index": 0}
        delta = {"stop_reason": STOP_REFUSAL, "stop_sequence": None}
        yield {"type": "message_delta", "delta": delta, "usage": {"input_tokens": 0, "output_tokens": 0}}
        yield {"type": "message_stop"}


def _response_item(message: str) -> JsonObject:
    content = [{"type": "refusal", "refusal": message}]
    return {"id": _new_id("msg_"), "type": "message", "role": "assistant", "status": "completed", "content": content}


def _new_id(prefix: str) -> str:
    return f"{prefix}{secrets.token_hex(12)}"
