"""A fake model server with canned answers for every guarded endpoint, whole and streamed, and with faults on request.

    python -m benchmarks.canned --port 8000 [--models demo,other] [--tokens 16] [--pause 0.005]

Benchmarks and tests use it where vLLM would be the bottleneck. The request header `x-canned` selects a fault, one of
FAULTS. `/metrics` has the number of running requests, under vLLM's metric name, and the start time of the process.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

WORD = " word"
PROMPT_TOKENS = 7


class CannedServer:
    """The handlers and canned answers. It counts the running requests."""

    def __init__(self, models: list[str], tokens: int, pause_s: float) -> None:
        self._models, self._tokens, self._pause_s = models, tokens, pause_s
        self._running = 0
        self._started = time.time()

    def app(self) -> web.Application:
        app = web.Application(client_max_size=2**26)
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._list_models)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_post("/{path:.*}", self._answer)
        return app

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _list_models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": name, "object": "model"} for name in self._models]})

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(
            text=f"process_start_time_seconds {self._started}\n"
            f'vllm:num_requests_running{{model_name="{self._models[0]}"}} {float(self._running)}\n'
        )

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self._running += 1
        try:
            fault = FAULTS.get(request.headers.get("x-canned", ""))
            if fault is not None:
                return await fault(request)
            if body.get("stream"):
                return await self._stream(request, body)
            await asyncio.sleep(self._tokens * self._pause_s)
            return web.json_response(self._whole(request.path, body))
        except ConnectionResetError:
            # The client has disconnected.
            return web.Response()
        finally:
            self._running -= 1

    def _whole(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        text = WORD * self._tokens
        usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": self._tokens}
        base: dict[str, Any] = {"id": "canned-1", "model": body.get("model")}
        if path == "/v1/messages":
            content = [{"type": "text", "text": text}]
            usage = {"input_tokens": PROMPT_TOKENS, "output_tokens": self._tokens}
            return {**base, "type": "message", "role": "assistant", "content": content, "usage": usage}
        if path == "/v1/responses":
            message = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}
            return {**base, "object": "response", "status": "completed", "output": [message]}
        if path == "/v1/completions":
            choice: dict[str, Any] = {"index": 0, "text": text, "finish_reason": "length"}
        else:
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "length"}
        if body.get("logprobs"):
            # The gateway's parity probe compares them: equal for a prompt as text and as embeddings.
            choice["logprobs"] = {"content": [{"token": WORD, "logprob": 0.0}] * self._tokens}
        return {**base, "object": "chat.completion", "choices": [choice], "usage": usage}

    async def _stream(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await _start_response(request, "text/event-stream; charset=utf-8")
        for _ in range(self._tokens):
            await asyncio.sleep(self._pause_s)
            await response.write(_event(request.path))
        if request.path not in ("/v1/messages", "/v1/responses"):
            await response.write(b"data: [DONE]\n\n")
        return response


def _event(path: str) -> bytes:
    if path == "/v1/messages":
        data: dict[str, Any] = {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "text_delta", "text": WORD},
        }
        return b"event: content_block_delta\ndata: %s\n\n" % json.dumps(data).encode()
    if path == "/v1/responses":
        data = {"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "delta": WORD}
        return b"event: response.output_text.delta\ndata: %s\n\n" % json.dumps(data).encode()
    choice = {"index": 0, "text": WORD} if path == "/v1/completions" else {"index": 0, "delta": {"content": WORD}}
    return b"data: %s\n\n" % json.dumps({"id": "canned-1", "choices": [choice]}).encode()


async def _start_response(request: web.Request, content_type: str) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": content_type})
    response.enable_chunked_encoding()
    await response.prepare(request)
    return response


async def _no_headers(request: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def _no_chunk(request: web.Request) -> web.StreamResponse:
    await _start_response(request, "text/event-stream")
    return await _no_headers(request)


async def _endless(request: web.Request) -> web.StreamResponse:
    response = await _start_response(request, "text/event-stream")
    while True:
        await response.write(_event(request.path))
        await asyncio.sleep(0.02)


async def _garbage(request: web.Request) -> web.StreamResponse:
    """Answer with bytes that are neither the JSON nor the event stream that the content type promises."""
    streamed = (await request.json()).get("stream")
    content_type = "text/event-stream" if streamed else "application/json"
    return web.Response(body=b"\xff\x00data: {not json\r\r\n\n" * 3, headers={"content-type": content_type})


async def _not_http(request: web.Request) -> web.StreamResponse:
    return await _write_raw(request, b"\x16\x03\x01 this is no HTTP\r\n\r\n")


async def _half_a_chunk(request: web.Request) -> web.StreamResponse:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\ntransfer-encoding: chunked\r\n\r\n"
    streamed = (await request.json()).get("stream")
    event = _event(request.path)
    content_type = b"text/event-stream" if streamed else b"application/json"
    return await _write_raw(request, head % content_type + b"%x\r\n%s\r\n40\r\ndata: {" % (len(event), event))


async def _half_a_head(request: web.Request) -> web.StreamResponse:
    return await _write_raw(request, b"HTTP/1.1 200 OK\r\ncontent-ty")


async def _write_raw(request: web.Request, raw: bytes) -> web.StreamResponse:
    """Write these bytes instead of a response, and close the connection."""
    assert request.transport is not None
    request.transport.write(raw)
    request.transport.close()
    return await _no_headers(request)


FAULTS: dict[str, Callable[[web.Request], Awaitable[web.StreamResponse]]] = {
    "no-headers": _no_headers,
    "no-chunk": _no_chunk,
    "endless": _endless,
    "garbage": _garbage,
    "not-http": _not_http,
    "half-a-chunk": _half_a_chunk,
    "half-a-head": _half_a_head,
}


def command(port: int, models: list[str], *extra: str) -> list[str]:
    """Return the command that starts this server."""
    return [sys.executable, "-m", "benchmarks.canned", "--port", str(port), "--models", ",".join(models), *extra]


async def serve_canned(app: web.Application, port: int) -> None:
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, reuse_address=True).start()
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--models", default="demo", help="names of the served models, separated by commas")
    parser.add_argument("--tokens", type=int, default=16, help="words of an answer")
    parser.add_argument("--pause", type=float, default=0.005, help="seconds per word")
    args = parser.parse_args()
    app = CannedServer(args.models.split(","), args.tokens, args.pause).app()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve_canned(app, args.port))


if __name__ == "__main__":
    main()
