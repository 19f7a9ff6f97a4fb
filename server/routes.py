"""One request, one pass: read, judge, rewrite, forward, relay, record.

Raw ASGI under the FastAPI app: the relay needs the client's disconnect in every window, and bytes as
they came. Whatever can change the status happens before the first byte.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from starlette.types import Message, Receive, Scope, Send

from server import body as bodies
from server import errors
from server.audit import Audit
from server.errors import BadRequest, GuardError, TooLarge
from server.fields import Endpoint
from server.guard import Guard, Outcome
from server.metrics import Metrics
from server.rewrite import Judged
from server.settings import Settings
from server.upstream import Upstream, mapped, response_headers
from server.verdict import Finding

log = logging.getLogger("lethe.routes")


# A smaller body is read faster than a thread is woken; a larger one would hold up everybody else.
READ_AT_ONCE = 32_768
MODEL_NAME = re.compile(r"[\w./:@+-]{1,200}", re.ASCII)


@dataclass
class Exchange:
    """One request on its way; `window` says where it is, for the client that leaves."""

    scope: Scope
    send: Send
    endpoint: str
    request_id: str
    started: float = field(default_factory=time.perf_counter)
    window: str = "reading"
    status: int = 0
    streamed: bool = False

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.status = status
        if not any(name == b"x-request-id" for name, _ in headers):
            headers = [*headers, (b"x-request-id", self.request_id.encode())]
        await self.send({"type": "http.response.start", "status": status, "headers": headers})

    async def fail(self, error: GuardError) -> None:
        """Answer with the OpenAI error body, or end a stream that has begun with an error event."""
        if self.status == 0:
            payload = errors.body(error)
            length = (b"content-length", str(len(payload)).encode())
            await self.start(error.status, [*errors.headers(error), length])
            await self.send({"type": "http.response.body", "body": payload})
        elif self.streamed:
            await self.send({"type": "http.response.body", "body": errors.event(error)})
        else:
            # Part of a whole answer is out: only a broken connection tells the client so.
            raise error


async def read_body(receive: Receive, limit: int) -> bytes:
    """The whole request body. Raises TooLarge past `limit` bytes, ConnectionResetError if the client left."""
    chunks: list[bytes] = []
    size = 0
    while True:
        message: Message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionResetError
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise TooLarge(f"the body is larger than {limit} bytes (LETHE_MAX_BODY_BYTES)", code="body_too_large")
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Gateway:
    """Serves the guarded routes, and those that are relayed without judging."""

    def __init__(self, settings: Settings, upstream: Upstream, guard: Guard, audit: Audit, metrics: Metrics) -> None:
        self._settings = settings
        self._upstream = upstream
        self._guard = guard
        self._audit = audit
        self._metrics = metrics
        # One judge at a time: the encoder uses the cores it may; more threads would only make all wait.
        self._judging = ThreadPoolExecutor(1, thread_name_prefix="lethe-judge")

    def close(self) -> None:
        self._judging.shutdown(wait=True, cancel_futures=True)

    async def serve(self, scope: Scope, receive: Receive, send: Send, endpoint: Endpoint | None) -> None:
        """Answer one request; endpoint None: relay without judging (no text of it reaches a model)."""
        headers = dict(scope["headers"])
        request_id = headers.get(b"x-request-id", b"").decode("latin-1")
        if not (0 < len(request_id) <= 128 and request_id.isascii() and request_id.isprintable()):
            request_id = f"req-{secrets.token_hex(12)}"
        exchange = Exchange(scope, send, endpoint or scope["path"].rsplit("/", 1)[-1], request_id)
        self._metrics.in_flight.inc()
        try:
            await self._raced(exchange, receive, endpoint)
        finally:
            self._metrics.in_flight.dec()
            self._metrics.requests.labels(exchange.endpoint, exchange.status or "gone").inc()
            self._metrics.request_seconds.labels(exchange.endpoint).observe(time.perf_counter() - exchange.started)

    async def _raced(self, exchange: Exchange, receive: Receive, endpoint: Endpoint | None) -> None:
        """Answer, unless the client leaves first; then cancel the work, which closes the way to vLLM."""
        try:
            raw = await read_body(receive, self._settings.max_body_bytes)
        except TooLarge as error:
            await exchange.fail(error)
            return
        except ConnectionResetError:
            self._metrics.client_gone.labels("reading").inc()
            return
        work = asyncio.ensure_future(self._answered(exchange, raw, endpoint))
        left = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                self._metrics.client_gone.labels(exchange.window).inc()
        finally:
            # Also on our own cancellation: neither future may outlive the request.
            work.cancel()
            left.cancel()
            await asyncio.wait({work, left})
        if not work.cancelled():
            work.result()

    async def _answered(self, exchange: Exchange, raw: bytes, endpoint: Endpoint | None) -> None:
        try:
            payload: bytes | None = raw or None
            if endpoint is not None:
                payload = await self._guarded(exchange, raw, endpoint)
            await self._forward(exchange, payload)
        except GuardError as error:
            await exchange.fail(error)
        except Exception:
            if exchange.status:
                raise
            log.exception("request %s failed", exchange.request_id)
            await exchange.fail(GuardError("internal error"))

    async def _guarded(self, exchange: Exchange, raw: bytes, endpoint: Endpoint) -> bytes:
        """The bytes to send upstream: those that came, or the rewritten ones. Raises GuardError to answer with."""
        exchange.window = "judging"
        for name, value in exchange.scope["headers"]:
            if name == b"content-encoding" and value.strip().lower() != b"identity":
                raise BadRequest("compressed request bodies are not served", code="content_encoding")
        loop = asyncio.get_running_loop()
        if len(raw) < READ_AT_ONCE:
            judged = self._read(raw, endpoint)
        else:
            judged = await loop.run_in_executor(None, self._read, raw, endpoint)
        if not self._guard.covering(judged.body):
            return raw
        try:
            outcome = await asyncio.wait_for(
                loop.run_in_executor(self._judging, self._guard.examine, judged),
                self._settings.judge_timeout_s,
            )
        except Exception as error:
            # The classifier's or the rewrite's own failure, time-outs included: a decision of policy.
            note = "judging took too long"
            if not isinstance(error, TimeoutError):
                note = f"judging failed: {type(error).__name__}"
                log.exception("judging request %s failed", exchange.request_id)
            refusal = self._guard.failed([p for p, _ in self._guard.covering(judged.body).values()], "judge", note)
            self._record(exchange, judged, None, "refuse" if refusal else "pass", note)
            if refusal is not None:
                raise refusal from None
            return self._guard.unjudged(judged) or raw
        self._metrics.judge_seconds.observe((outcome.judge_ms + outcome.rewrite_ms) / 1e3)
        self._metrics.actions.labels(outcome.action).inc()
        self._record(exchange, judged, outcome, outcome.action, outcome.note)
        if outcome.refusal is not None:
            raise outcome.refusal
        return raw if outcome.payload is None else outcome.payload

    def _read(self, raw: bytes, endpoint: Endpoint) -> Judged:
        return self._guard.read(endpoint, bodies.parse(raw))

    async def _forward(self, exchange: Exchange, payload: bytes | None) -> None:
        """Send upstream and relay the answer's bytes as they come, whole or streamed alike."""
        exchange.window = "headers"
        scope = exchange.scope
        path = scope.get("raw_path", scope["path"].encode()).decode("latin-1")
        if scope["query_string"]:
            path += "?" + scope["query_string"].decode("latin-1")
        sent = time.perf_counter()
        try:
            async with self._upstream.open(scope["method"], path, scope["headers"], payload) as response:
                self._metrics.upstream_seconds.observe(time.perf_counter() - sent)
                exchange.window = "first_byte"
                exchange.streamed = response.content_type == "text/event-stream"
                await exchange.start(response.status, response_headers(response))
                async for chunk in response.content.iter_any():
                    exchange.window = "streaming"
                    await exchange.send({"type": "http.response.body", "body": chunk, "more_body": True})
                await exchange.send({"type": "http.response.body", "body": b""})
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            made = mapped(error)
            assert made is not None
            self._metrics.upstream_errors.labels(made.code).inc()
            raise made from error
        except GuardError as error:
            self._metrics.upstream_errors.labels(error.code).inc()
            raise

    def _record(
        self, exchange: Exchange, judged: Judged, outcome: Outcome | None, action: str, note: str | None
    ) -> None:
        model = str(judged.body.get("model", ""))
        record: dict[str, Any] = {
            "time": time.time(),
            "request_id": exchange.request_id,
            "endpoint": exchange.endpoint,
            # Only what looks like a model's name: the field is the client's to write anything into.
            "model": model if MODEL_NAME.fullmatch(model) else None,
            "action": action,
            "note": note,
        }
        if outcome is not None:
            record["policies"] = [_finding(f, judged) for f in outcome.verdict.findings]
            record["judge_ms"] = round(outcome.judge_ms, 3)
            record["rewrite_ms"] = round(outcome.rewrite_ms, 3)
        record["decided_ms"] = round((time.perf_counter() - exchange.started) * 1e3, 3)
        if self._settings.audit_prompts:
            record["texts"] = {piece.place: piece.text for piece in judged.pieces}
        self._audit.put(record)


def _finding(finding: Finding, judged: Judged) -> dict[str, Any]:
    policy = finding.policy
    return {
        "policy": policy.name,
        "hash": policy.hash,
        "mode": policy.mode,
        "action": policy.action,
        **finding.facts(judged.place(finding.score.text)),
    }
