"""Limits on what clients do to their connection, before there is a request and after there is an answer.

uvicorn's httptools protocol bounds neither URL nor headers, waits for them for ever, and leaves a connection open
whose client has stopped to read. What an application can't see is bounded here: everything else is in `routes`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, cast

from starlette.types import Receive, Scope, Send
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from lethe.server import errors
from lethe.server.errors import BadRequest, GuardError, HeadTooLarge, Overloaded, TooSlow, UrlTooLong
from lethe.server.observability.metrics import Metrics
from lethe.server.settings import Settings

# uvicorn warns of every request that is no HTTP: clients could fill the log. They are counted (`lethe_refusals`).
_log = logging.getLogger("uvicorn.error.clients")
_log.addFilter(lambda record: record.levelno >= logging.ERROR)

# How long a client that was turned away may go on sending, so that it gets to read why.
LINGER_S = 5.0
# Bytes on the wire for a byte of a body: a chunk of one byte takes six.
MOST_FRAMING = 16
# An extension of ASGI: a function that a request's scope holds under this name is called when its client leaves. A task
# that waits for `http.disconnect` beside every request would cost more than its relay.
LEFT = "lethe.left"
_EXTENSIONS: dict[str, dict[str, Any]] = {LEFT: {}}


def bounded(settings: Settings, metrics: Metrics) -> type[asyncio.Protocol]:
    """The protocol class for uvicorn's `http`, with these limits; it counts what it refuses."""
    return cast(
        type[asyncio.Protocol], type("BoundedProtocol", (_Bounded,), {"settings": settings, "metrics": metrics})
    )


def uvicorn_options(settings: Settings, metrics: Metrics) -> dict[str, Any]:
    """How uvicorn serves clients: these limits, and nothing of its own in the answers."""
    return {
        "http": bounded(settings, metrics),
        "ws": "none",
        "timeout_keep_alive": settings.keep_alive_s,
        "access_log": False,
        # vLLM's own date and server headers are relayed; a second pair would only tell that we are here.
        "server_header": False,
        "date_header": False,
        # Nobody asks where a request came from.
        "proxy_headers": False,
    }


class _Refusal:
    """An application that answers one request with an error."""

    def __init__(self, error: GuardError) -> None:
        self._error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers, payload = errors.answer(self._error, scope["path"])
        await send({"type": "http.response.start", "status": self._error.status, "headers": headers})
        await send({"type": "http.response.body", "body": payload})


def _abandon(cycle: RequestResponseCycle) -> None:
    """Tell whoever answers a request that its client is gone."""
    cycle.disconnected = True
    cycle.message_event.set()
    told = cast(dict[str, Any], cycle.scope).get(LEFT)
    if told is not None:
        told()


class _Bounded(HttpToolsProtocol):
    """One connection. A timer looks now and then at what the client has kept waiting, and for how long."""

    settings: Settings
    metrics: Metrics

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._head_since: float | None = time.monotonic()  # waiting for a whole head since, None: not waiting
        self._head_bytes = 0
        self._begun = False  # a request, in the bytes that are being read
        self._body_bytes = 0
        self._beside_body = 0  # bytes that came behind the head, the body's own included
        self._paused_since: float | None = None  # the client has not taken what was written since
        self._ending_since: float | None = None  # answered, and the client may only read the rest
        self._turned_away = False
        # The request that is being answered; uvicorn's own `cycle` is the newest, which may wait behind it.
        self._answering: RequestResponseCycle | None = None
        self._last: GuardError | None = None  # what is said when the requests before it have been answered
        full = len(self.connections) >= self.settings.max_connections and not self._drop_an_idle_one()
        super().connection_made(cast(asyncio.Transport, transport))
        self.logger = _log
        self.metrics.connections.set(len(self.connections))
        shortest = min(
            self.settings.head_timeout_s, self.settings.write_timeout_s, self.settings.keep_alive_s, LINGER_S
        )
        self._interval_s = shortest / 4
        self._look_again()
        if full:
            self._turn_away(
                Overloaded("too many connections (LETHE_MAX_CONNECTIONS)", code="connections_full", retry_after_s=1)
            )

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        # uvicorn tells the newest request alone; the others must not go on, nor begin.
        self.pipeline.clear()
        if self._answering is not None and not self._answering.response_complete:
            _abandon(self._answering)
        super().connection_lost(exc)
        self.metrics.connections.set(len(self.connections))

    def _drop_an_idle_one(self) -> bool:
        """Close a connection that only waits for another request, to make room."""
        for other in self.connections:
            if isinstance(other, _Bounded) and other._idle():
                other.transport.close()
                self.connections.discard(other)
                return True
        return False

    def _idle(self) -> bool:
        answered = self.cycle is not None and self.cycle.response_complete and not self.cycle.more_body
        return answered and self._head_bytes == 0 and not self.transport.is_closing()

    def data_received(self, data: bytes) -> None:
        if self._turned_away:
            return
        if self._head_since is not None or self._idle():
            # The first bytes of a request begin its time; a connection just opened has begun already.
            if self._head_since is None:
                self._head_since = time.monotonic()
            self._head_bytes += len(data)
        self._begun = False
        super().data_received(data)
        if self._head_since is None and not self._begun and not self._idle():
            self._beside_body += len(data)
            if self._beside_body > self.settings.max_header_bytes + MOST_FRAMING * self._body_bytes:
                # Nothing but chunks' extensions and trailers, which the parser keeps.
                self.metrics.refusals.labels("framing").inc()
                self.transport.abort()
                return
        too_much = self._head_since is not None and self._head_bytes > self.settings.max_header_bytes
        if too_much and not self._turned_away:
            self._turn_away(self._head_too_large())

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begun = True
        self._beside_body = self._body_bytes = 0
        self.scope["extensions"] = _EXTENSIONS  # type: ignore[typeddict-item]
        if self._head_since is None:
            # A request behind another in the same bytes.
            self._head_since = time.monotonic()

    def on_header(self, name: bytes, value: bytes) -> None:
        # Fields behind a body (trailers) come when the headers have been counted and read, so they are none.
        if self._head_since is not None:
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_headers_complete(self) -> None:
        self._head_since = None
        self._head_bytes = 0
        limits, app = self.settings, self.app
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if len(self.url) > limits.max_url_bytes:
            message = f"the URL is longer than {limits.max_url_bytes} bytes (LETHE_MAX_URL_BYTES)"
            self._refuse(UrlTooLong(message, code="url_too_long"))
        elif len(self.headers) > limits.max_headers:
            message = f"there are more than {limits.max_headers} headers (LETHE_MAX_HEADERS)"
            self._refuse(HeadTooLarge(message, code="too_many_headers"))
        elif size > limits.max_header_bytes:
            self._refuse(self._head_too_large())
        elif self.parser.should_upgrade():
            # The parser takes what follows for another protocol, so the body would be lost.
            self._refuse(BadRequest("no other protocol than HTTP/1.1 is spoken (Upgrade)", code="upgrade"))
        super().on_headers_complete()
        self.app = app

    def _refuse(self, error: GuardError) -> None:
        """Have the request that begins now answered with `error`."""
        self.metrics.refusals.labels(error.code).inc()
        self.app = _Refusal(error)

    def _head_too_large(self) -> GuardError:
        most = self.settings.max_header_bytes
        return HeadTooLarge(
            f"URL and headers are larger than {most} bytes (LETHE_MAX_HEADER_BYTES)", code="head_too_large"
        )

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._last is not None and self._answering is not None and self._answering.response_complete:
            self._say_last(self._last)
        if self._head_since is not None:
            # Reading was held back while the answer went out: the next request's time begins now.
            self._head_since = time.monotonic()
        if self.cycle is not None and self.cycle.response_complete and self.cycle.more_body:
            # Answered before the body was read: the rest is thrown away, but not for ever.
            self._ending_since = time.monotonic()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        if self.cycle.response_complete:
            self.cycle.more_body = False
            self._ending_since = None

    def pause_writing(self) -> None:
        self._paused_since = time.monotonic()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._paused_since = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        self._turn_away(BadRequest("the request is not HTTP/1.1", code="invalid_http"))

    def _turn_away(self, error: GuardError) -> None:
        """Answer where no request can be read, after those that came whole before it, and read no more."""
        self.metrics.refusals.labels(error.code).inc()
        self._turned_away = True
        newest, answering = self.cycle, self._answering
        is_broken = newest is not None and not newest.response_complete and newest.more_body
        if is_broken and newest is not answering:
            self.pipeline.popleft()
        if answering is not None and not answering.response_complete and not (is_broken and newest is answering):
            # Said now, it would be taken for the answer to another request.
            self._last = error
        else:
            self._say_last(error)

    def _say_last(self, error: GuardError) -> None:
        self._last = None
        self._ending_since = time.monotonic()
        if self.transport.is_closing():
            return
        if self._answering is not None and not self._answering.response_complete:
            if self._answering.response_started:
                # An answer is on its way; words in its midst would be taken for part of it.
                self.transport.abort()
                return
            # Whoever waits for the rest of the body learns that the client is gone.
            _abandon(self._answering)
        headers, payload = errors.answer(error, "")
        lines = [STATUS_LINE[error.status], *(b"%s: %s\r\n" % header for header in headers)]
        self.transport.write(b"".join([*lines, b"connection: close\r\n\r\n", payload]))
        # Half closed: what the client still sends is thrown away, else a reset would take the answer with it.
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def _look_again(self) -> None:
        self._due = self.loop.time() + self._interval_s
        self._timer = self.loop.call_later(self._interval_s, self._look)

    def _look(self, *, late: bool = False) -> None:
        if self.loop.time() - self._due > self._interval_s and not late:
            # The loop was held up: what has come meanwhile is read before its client is found too slow.
            self._timer = self.loop.call_later(0.001, lambda: self._look(late=True))
            return
        self._look_again()
        now, limits = time.monotonic(), self.settings
        if self._paused_since is not None and now - self._paused_since > limits.write_timeout_s:
            self.metrics.refusals.labels("write_timeout").inc()
            self.transport.abort()
        elif self._ending_since is not None and now - self._ending_since > LINGER_S:
            self.transport.abort()
        elif self.transport.is_closing():
            # Closed by us; what the client has not read yet holds the connection.
            self._paused_since = self._paused_since or now
        elif self._turned_away:
            pass  # the requests before it are still answered
        elif self._head_since is not None and now - self._head_since > limits.head_timeout_s:
            if self._head_bytes == 0 and self.cycle is None:
                self.transport.close()
            elif self.cycle is None or self.cycle.response_complete:
                message = f"the headers did not arrive within {limits.head_timeout_s:g} s (LETHE_HEAD_TIMEOUT_S)"
                self._turn_away(TooSlow(message, code="head_timeout"))
