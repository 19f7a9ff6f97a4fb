"""Errors inside the stream of a rewritten request: neutral words in each dialect, all other bytes unchanged."""

from __future__ import annotations

import json
import random
from typing import Any

import orjson
import pytest
from anthropic.types import ErrorResponse
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import ResponseErrorEvent, ResponseFailedEvent

from lethe.server.errors import Dialect, UpstreamFailed
from lethe.server.output import error_events
from lethe.server.output.error_events import SAME_FOR_ALL, NeutralErrors
from lethe.server.output.sse import Event, Parser
from tests.clients import strict
from tests.server.output.test_filter import chunk, encoded, message_events, response_events

NEUTRAL = "The request could not be processed."
TOLD = "prompt_embeds: 7 rows"
ERROR = {"error": {"message": TOLD, "type": "BadRequestError", "param": "prompt_embeds", "code": 400}}
OF_MESSAGES = {"type": "error", "error": {"type": "internal_error", "message": TOLD}}
OF_RESPONSES = {"type": "error", "code": "x", "message": TOLD, "param": "prompt_embeds", "sequence_number": 7}
FAILED = {**response_events(["a"])[-1], "type": "response.failed"}
FAILED["response"] = {**FAILED["response"], "status": "failed", "error": {"code": "server_error", "message": TOLD}}
# An error of each dialect, and the stream that it ends.
STREAMS: list[tuple[Dialect, Any, list[Any]]] = [
    ("openai", ERROR, [chunk(content='an "error"'), chunk(error=None)]),
    ("anthropic", OF_MESSAGES, message_events(['say "error": {', "event: error"])[:-3]),
    ("responses", OF_RESPONSES, response_events(['"error"', "\nevent: error\n"])[:-1]),
    ("responses", FAILED, response_events(["b"])[:-1]),
]


def replaced(dialect: Dialect, raw: bytes, sizes: random.Random | None = None) -> tuple[bytes, int]:
    """What is sent of a stream, and how many errors were counted."""
    counted: list[int] = []
    errors = NeutralErrors(dialect, lambda: counted.append(1))
    out, at = b"", 0
    while at < len(raw):
        size = sizes.randint(1, 40) if sizes else len(raw)
        out += errors.feed(raw[at : at + size])
        at += size
    return out + errors.end(), len(counted)


@pytest.mark.parametrize(("dialect", "error", "before"), STREAMS)
@settings(max_examples=25, deadline=None)
@given(sizes=st.none() | st.randoms(use_true_random=False))
def test_an_error_is_replaced_and_nothing_else(
    dialect: Dialect, error: Any, before: list[Any], sizes: random.Random | None
) -> None:
    first, last = b": ping\n\n" + encoded(*before, done=False), encoded(error)
    assert replaced(dialect, first + b"data: [DONE]\n\n", sizes) == (first + b"data: [DONE]\n\n", 0)
    out, count = replaced(dialect, first + last, sizes)
    assert count == 1 and out.startswith(first) and out.endswith(b"data: [DONE]\n\n")
    assert b"prompt_embeds" not in out and out.count(NEUTRAL.encode()) == (2 if error is OF_RESPONSES else 1)
    sent = next(Parser().feed(out[len(first) :]))
    match dialect:
        case "openai":
            assert json.loads(sent.data) == {"error": {**ERROR["error"], "message": NEUTRAL, "param": None}}
        case "anthropic":
            assert sent.name == "error" and strict.told(ErrorResponse, sent.data)["error"]["message"] == NEUTRAL
        case "responses":
            kind: Any = ResponseErrorEvent if error is OF_RESPONSES else ResponseFailedEvent
            assert strict.told(kind, sent.data)["sequence_number"] == error["sequence_number"]
            assert sent.name == error["type"]


@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n", "\r\r", "\n", ""])
def test_an_error_is_replaced_whatever_ends_its_line(end: str) -> None:
    out, count = replaced("openai", b"data: " + orjson.dumps(ERROR) + end.encode())
    assert count == 1 and b"prompt_embeds" not in out and NEUTRAL.encode() in out


@pytest.mark.parametrize(
    "raw",
    [b'data: {"error": {"message": "7 rows"\n\n', b'data: {"error": "7 rows"}\n\n', b'data: ["error", "7 rows"]\n\n',
     b'event: error\ndata: 7 rows\n\n', b'data: {"error": "7 rows", "x": "\xff"}\n\n',
     b'data: {"error": {"message": ["7 rows"]}}\n\n', b'event: error\ndata: {"message": "7 rows"}\n\n'],
)  # fmt: skip
def test_an_error_of_any_other_form_is_replaced_too(raw: bytes) -> None:
    out, count = replaced("openai", raw)
    assert count == 1 and b"7 rows" not in out and NEUTRAL.encode() in out


@pytest.mark.parametrize("message", SAME_FOR_ALL)
def test_words_that_every_request_gets_stay(message: str) -> None:
    raw = encoded({"error": {"message": message, "type": "InternalServerError", "param": None, "code": 500}})
    assert replaced("openai", raw) == (raw, 0)


def test_an_event_without_end_breaks_off_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(error_events, "MAX_EVENT_BYTES", 100)
    errors = NeutralErrors("openai", lambda: None)
    whole = Event("a" * 200).encode()
    assert errors.feed(whole + b"data: ") == whole
    with pytest.raises(UpstreamFailed):
        errors.feed(b"a" * 100)
