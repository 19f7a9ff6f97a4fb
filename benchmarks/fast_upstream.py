"""A fake model server with very little CPU use (raw asyncio, prepared answers), so that the proxy is the bottleneck.

    python -m benchmarks.fast_upstream --port 8000

It answers a chat request with a completion of about 700 bytes, or with `"stream":true` with EVENTS server-sent events,
each written separately; `"stream_pause_ms":N` pauses between events, as decoding does. GET /counts returns the number
of connections and requests.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re

import uvloop

EVENTS = 32
MODEL = "m"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_PAUSE = re.compile(rb'"stream_pause_ms": ?(\d+)')

_ANSWER = {
    "id": "chatcmpl-0123456789abcdef", "object": "chat.completion", "created": 1_760_000_000, "model": MODEL,
    "choices": [{
        "index": 0, "finish_reason": "stop", "logprobs": None, "stop_reason": None,
        "message": {"role": "assistant", "content": "The quick brown fox jumps over the lazy dog. " * 8,
                    "refusal": None, "tool_calls": []},
    }],
    "usage": {"prompt_tokens": 90, "completion_tokens": 80, "total_tokens": 170, "prompt_tokens_details": None},
    "prompt_logprobs": None,
}  # fmt: skip


def _event(n: int) -> bytes:
    choice = {"index": 0, "delta": {"content": f" word{n}"}, "logprobs": None, "finish_reason": None}
    if n == EVENTS - 1:
        choice = {**choice, "delta": {}, "finish_reason": "stop"}
    data = {
        "id": "chatcmpl-0123456789abcdef", "object": "chat.completion.chunk", "created": 1_760_000_000,
        "model": MODEL, "choices": [choice],
    }  # fmt: skip
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def http_response(payload: bytes, content_type: bytes = b"application/json", status: bytes = b"200 OK") -> bytes:
    head = b"HTTP/1.1 %s\r\ndate: Sat, 01 Nov 2025 00:00:00 GMT\r\nserver: uvicorn\r\ncontent-length: %d\r\n"
    return (head + b"content-type: %s\r\n\r\n") % (status, len(payload), content_type) + payload


WHOLE = json.dumps(_ANSWER).encode()
EVENT_BYTES = [_event(n) for n in range(EVENTS)]
EVENT_BYTES[-1] += b"data: [DONE]\n\n"
STREAM = b"".join(EVENT_BYTES)

_HEAD = (
    b"HTTP/1.1 200 OK\r\ndate: Sat, 01 Nov 2025 00:00:00 GMT\r\nserver: uvicorn\r\n"
    b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
_CHUNKS = [b"%x\r\n%s\r\n" % (len(event), event) for event in EVENT_BYTES]
_CHUNKS = [_HEAD + _CHUNKS[0], *_CHUNKS[1:-1], _CHUNKS[-1] + b"0\r\n\r\n"]
_ANSWERS = {
    b"GET /health ": http_response(b"", b"text/plain"),
    b"GET /metrics ": http_response(b"\nprocess_start_time_seconds 1.0\n", b"text/plain"),
    b"GET /v1/models ": http_response(
        json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model"}]}).encode()
    ),
}
_WHOLE_RESPONSE = http_response(WHOLE)
_NOT_FOUND = http_response(b"{}", status=b"404 Not Found")

connections = requests = 0


class FastUpstreamConnection(asyncio.Protocol):
    """One connection; it may send several requests at once (pipelining)."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        global connections
        connections += 1
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._loop = asyncio.get_running_loop()
        self._received = b""

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(self._received, 0, end + 2)
            if length:
                size = end + 4 + int(length[1])
                complete = len(self._received) >= size
            elif b"chunked" in self._received[:end].lower():
                size = self._received.find(b"0\r\n\r\n", end) + 5
                complete = size >= 5
            else:
                size, complete = end + 4, True
            if not complete:
                return
            request, self._received = self._received[:size], self._received[size:]
            self._answer(request)

    def _answer(self, request: bytes) -> None:
        global requests
        if not request.startswith(b"POST "):
            if request.startswith(b"GET /counts "):
                counts = {"connections": connections, "requests": requests}
                self._transport.write(http_response(json.dumps(counts).encode()))
                return
            response = next((one for start, one in _ANSWERS.items() if request.startswith(start)), _NOT_FOUND)
            self._transport.write(response)
            return
        requests += 1
        if b'"stream":true' not in request and b'"stream": true' not in request:
            self._transport.write(_WHOLE_RESPONSE)
            return
        pause = _PAUSE.search(request)
        self._send_event(0, int(pause[1]) / 1e3 if pause else 0.0)

    def _send_event(self, at: int, pause_s: float) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(_CHUNKS[at])
        if at + 1 < EVENTS:
            if pause_s:
                self._loop.call_later(pause_s, self._send_event, at + 1, pause_s)
            else:
                self._loop.call_soon(self._send_event, at + 1, pause_s)


async def serve_fast_upstream(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(FastUpstreamConnection, "127.0.0.1", port, backlog=1024)
    async with server:
        await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(serve_fast_upstream(parser.parse_args().port))


if __name__ == "__main__":
    main()
