"""The strict readers do refuse what isn't as published."""

from __future__ import annotations

import json
import socket
import threading
from typing import Any

import openai.types.chat
import pytest
from openai.types.responses import ResponseStreamEvent
from pydantic import ValidationError

from tests.clients import strict
from tests.clients.tap import Exchange, Tap

CHUNK: dict[str, Any] = {
    "id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m",
    "choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}],
}  # fmt: skip
DELTA: dict[str, Any] = {
    "type": "response.output_text.delta", "sequence_number": 1, "item_id": "i", "output_index": 0, "content_index": 0,
    "delta": "a", "logprobs": [],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "good"), [
    (openai.types.chat.ChatCompletionChunk, CHUNK), (ResponseStreamEvent, DELTA),
])  # fmt: skip
def test_a_missing_field_and_one_of_another_type_are_seen(kind: Any, good: dict[str, Any]) -> None:
    assert strict.told(kind, json.dumps(good)) == good
    for key, value in good.items():
        with pytest.raises(AssertionError):
            strict.told(kind, json.dumps({k: v for k, v in good.items() if k != key}))
        with pytest.raises(AssertionError):
            strict.told(kind, json.dumps({**good, key: str(value) if isinstance(value, int) else 1.5}))


def stream(*events: Any, path: str = "/v1/chat/completions") -> Exchange:
    said = "".join(f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n" for event in events)
    headers = {"content-type": "text/event-stream", "x-request-id": "r"}
    return Exchange("POST", path, {}, b"{}", 200, headers, said.encode(), True)


def test_a_stream_is_read_as_a_whole() -> None:
    strict.check(stream(CHUNK, "[DONE]"))
    open_end = {**CHUNK, "choices": [{**CHUNK["choices"][0], "finish_reason": None}]}
    bad_streams: list[tuple[Any, ...]] = [(CHUNK,), (open_end, "[DONE]"), (CHUNK, {**CHUNK, "id": "d"}, "[DONE]")]
    for bad in bad_streams:
        with pytest.raises(AssertionError):
            strict.check(stream(*bad))
    left = stream(CHUNK)
    left.whole = False
    strict.check(left)
    left.body += b"data: [DONE]\n\n"  # clients read no further than this
    left.body = left.body.replace(b'"index"', b'"number"')
    with pytest.raises(AssertionError):
        strict.check(left)
    cut = stream(CHUNK, "[DONE]")
    cut.body = cut.body[:-1]
    with pytest.raises(AssertionError):
        strict.check(cut)


@pytest.mark.parametrize(("path", "body"), [
    ("/v1/chat/completions", {"detail": "Not Found"}),
    ("/v1/chat/completions", {"error": {"message": "a", "type": "b", "param": None}}),
    ("/v1/chat/completions", {"error": {"message": {"a": 1}, "type": "b", "param": None, "code": None}}),
    ("/v1/messages", {"error": {"message": "a", "type": "b", "param": None, "code": None}}),
])  # fmt: skip
def test_errors_of_another_form_are_seen(path: str, body: Any) -> None:
    headers = {"content-type": "application/json", "x-request-id": "r", "request-id": "r"}
    with pytest.raises((AssertionError, KeyError, ValidationError)):
        strict.check(Exchange("POST", path, {}, b"", 404, headers, json.dumps(body).encode(), True))


def test_the_tap_hands_on_every_byte_and_keeps_a_record() -> None:
    answer = b"HTTP/1.1 200 OK\r\nX-A: 1\r\ncontent-length: 2\r\n\r\nok"
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                for _ in range(2):
                    assert connection.recv(1000)
                    connection.sendall(answer)

        serving = threading.Thread(target=serve)
        serving.start()
        with Tap(f"http://127.0.0.1:{listener.getsockname()[1]}") as tap:
            with socket.create_connection(("127.0.0.1", int(tap.url.rsplit(":", 1)[1]))) as client:
                for path in (b"/a", b"/b"):
                    client.sendall(b"POST " + path + b" HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\n!")
                    got = b""
                    while len(got) < len(answer):
                        got += client.recv(1000)
                    assert got == answer
            assert [
                (e.method, e.path, e.asked, e.status, e.headers["x-a"], e.body, e.whole) for e in tap.exchanges
            ] == [("POST", path, b"!", 200, "1", b"ok", True) for path in ("/a", "/b")]
            tap.clear()
            assert tap.exchanges == []
        serving.join()
