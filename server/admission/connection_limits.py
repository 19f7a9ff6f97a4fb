"""Limits on client connections that an ASGI application can't enforce, as a subclass of uvicorn's HTTP protocol.

uvicorn's httptools protocol limits neither URL nor headers, waits for them without a timeout, doesn't close a
connection whose client stopped reading, and answers in plain text what it rejects. This module adds that, and calls
a function when a client disconnects (DISCONNECT_CALLBACK). Keep-alive timeout, graceful shutdown, flow control,
framing and pipelining are uvicorn's. The class overrides names that are not public, so pyproject.toml bounds
uvicorn's version to those that the tests passed with, and a test checks bound and names.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, cast

import httptools
from starlette.types import Receive, Scope, Send
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from lethe.server import errors
from lethe.server.admission.cross_origin import CrossOrigin
from lethe.server.errors import BadRequest, GatewayError, HeadTooLarge, Overloaded, TooSlow, UrlTooLong
from lethe.server.observability.metrics import Metrics
from lethe.server.settings import Settings

# uvicorn logs a warning for every invalid request, with which clients could fill the disk. Such requests are counted
# in `lethe_refusals` instead; errors of uvicorn's own are still logged.
_log = logging.getLogger("uvicorn.error.clients")
_log.addFilter(lambda record: record.levelno >= logging.ERROR)

# Seconds for which a rejected client's data is read and dropped: closing at once would reset the connection, and the
# client might lose the error. Chosen, not measured.
LINGER_S = 5.0
# Bytes on the wire per byte of a chunked body that are allowed: a chunk of one byte takes six. Chosen above that.
MAX_FRAMING_RATIO = 16
# Connections are checked this many times in the shortest of their timeouts, so that none is exceeded by more than a
# quarter. Chosen, not measured.
CHECKS_PER_TIMEOUT = 4
# An ASGI extension: a request's scope may hold a function under this key, which is called when the client disconnects.
# A task per request that waits for `http.disconnect` would cost more CPU than relaying the request.
DISCONNECT_CALLBACK = "lethe.disconnect_callback"
_EXTENSIONS: dict[str, dict[str, Any]] = {DISCONNECT_CALLBACK: {}}


def limited_protocol(settings: Settings, metrics: Metrics) -> type[asyncio.Protocol]:
    """The protocol class for uvicorn's `http` option, with the limits of `settings`; rejections are counted."""
    attributes = {"settings": settings, "metrics": metrics}
    return cast(type[asyncio.Protocol], type("LimitedProtocol", (ConnectionLimits,), attributes))


def uvicorn_options(settings: Settings, metrics: Metrics) -> dict[str, Any]:
    """uvicorn's options for the client port."""
    return {
        "http": limited_protocol(settings, metrics),
        "ws": "none",
        "timeout_keep_alive": settings.keep_alive_s,
        "access_log": False,
        # vLLM's own date and server headers are relayed; a second pair would reveal the gateway.
        "server_header": False,
        "date_header": False,
        # Client addresses are not used.
        "proxy_headers": False,
    }


class _ErrorApp:
    """An ASGI application that answers one request with an error."""

    def __init__(self, error: GatewayError, cross_origin: CrossOrigin) -> None:
        self._error = error
        self._cross_origin = cross_origin

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers, body = errors.error_response(self._error, scope["path"])
        headers += self._cross_origin.response_headers(scope["headers"])
        await send({"type": "http.response.start", "status": self._error.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _notify_disconnect(cycle: RequestResponseCycle) -> None:
    """Let the application that answers a request know that its client has disconnected."""
    cycle.disconnected = True
    cycle.message_event.set()
    callback = cast(dict[str, Any], cycle.scope).get(DISCONNECT_CALLBACK)
    if callback is not None:
        callback()


class _Http1Parser(httptools.HttpRequestParser):
    """httptools' parser, without upgrades: it reads a request that offers one as any other.

    Java's HTTP client offers HTTP/2 on every request. httptools would take all that follows the headers for another
    protocol, so that the body would be lost; a server may ignore the offer (RFC 9110, 7.8).
    """

    def __init__(self, protocol: ConnectionLimits) -> None:
        super().__init__(protocol)
        self._protocol = protocol

    def feed_data(self, data: Any) -> None:
        """Parse the next bytes. Raises HttpParserError, and HttpParserUpgrade for CONNECT."""
        while True:
            try:
                super().feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                head = self._protocol.head_without_upgrade()
                if head is None:
                    raise
                # The same headers again, without the offer; then what follows them.
                super().feed_data(head)
                data = data[upgrade.args[0] :]
                if not data:
                    return


class ConnectionLimits(HttpToolsProtocol):
    """One client connection. A timer regularly checks what the client keeps waiting, and for how long.

    uvicorn's `cycle` is the newest request; with pipelining it may wait while an earlier one is answered.
    """

    settings: Settings
    metrics: Metrics

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Times are seconds of time.monotonic(); None: not in that state.
        self._head_wait_started: float | None = time.monotonic()  # waiting for the end of a request's headers
        self._write_pause_started: float | None = None  # the client doesn't read what was written
        self._drop_started: float | None = None  # answered; what the client still sends is dropped
        self._head_bytes = 0
        self._message_began = False  # in the bytes that are being parsed
        self._body_bytes = 0
        self._bytes_after_head = 0  # including the body itself
        self._rejected = False  # no more requests are read
        self._answering: RequestResponseCycle | None = None
        self._final_error: GatewayError | None = None  # sent after the requests before it have been answered
        self._offers_upgrade = False  # the headers that were read last offer another protocol, and are read again
        self.parser = _Http1Parser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
        is_full = len(self.connections) >= self.settings.max_connections and not self._drop_an_idle_connection()
        super().connection_made(cast(asyncio.Transport, transport))
        self.logger = _log
        self.metrics.connections.set(len(self.connections))
        limits = self.settings
        shortest_s = min(limits.head_timeout_s, limits.write_timeout_s, limits.keep_alive_s, LINGER_S)
        self._check_interval_s = shortest_s / CHECKS_PER_TIMEOUT
        self._schedule_check()
        if is_full:
            message = f"too many connections: at most {limits.max_connections} (LETHE_MAX_CONNECTIONS)"
            self._reject(Overloaded(message, code="connections_full", retry_after_s=1))

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        # uvicorn notifies only the newest request. The one being answered must stop, and the others must not start.
        self.pipeline.clear()
        if self._answering is not None and not self._answering.response_complete:
            _notify_disconnect(self._answering)
        super().connection_lost(exc)
        self.metrics.connections.set(len(self.connections))

    def _drop_an_idle_connection(self) -> bool:
        """Close a connection without a request, to make room. Whether there was one."""
        for other in self.connections:
            if isinstance(other, ConnectionLimits) and other._is_idle():
                other.transport.close()
                self.connections.discard(other)
                return True
        return False

    def _is_idle(self) -> bool:
        """Whether the last request was answered and none has started since."""
        answered = self.cycle is not None and self.cycle.response_complete and not self.cycle.more_body
        return answered and self._head_bytes == 0 and not self.transport.is_closing()

    # Reading requests

    def data_received(self, data: bytes) -> None:
        if self._rejected:
            return
        if self._head_wait_started is not None or self._is_idle():
            # The time runs from a request's first byte; on a new connection from its start.
            if self._head_wait_started is None:
                self._head_wait_started = time.monotonic()
            self._head_bytes += len(data)
        self._message_began = False
        super().data_received(data)
        if self._head_wait_started is None and not self._message_began and not self._is_idle():
            self._bytes_after_head += len(data)
            max_bytes = self.settings.max_header_bytes + MAX_FRAMING_RATIO * self._body_bytes
            if self._bytes_after_head > max_bytes:
                # Chunk extensions and trailers without end, which the parser would collect.
                self.metrics.refusals.labels("framing").inc()
                self.transport.abort()
                return
        is_too_large = self._head_wait_started is not None and self._head_bytes > self.settings.max_header_bytes
        if is_too_large and not self._rejected:
            self._reject(self._head_too_large())

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._message_began = True
        self._bytes_after_head = self._body_bytes = 0
        self.scope["extensions"] = _EXTENSIONS  # type: ignore[typeddict-item]
        if self._head_wait_started is None:
            # A pipelined request in the same bytes as the one before it.
            self._head_wait_started = time.monotonic()

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers arrive after the headers were counted and passed on: they are dropped.
        if self._head_wait_started is not None:
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def head_without_upgrade(self) -> bytes | None:
        """The headers that were just read, without their offer of another protocol; None if they had none."""
        if not self._offers_upgrade:
            return None
        self._offers_upgrade = False
        version = self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s\r\n" % (self.parser.get_method(), self.url, version)]
        for name, value in self.headers:
            if name == b"connection":
                value = b", ".join(part for part in value.split(b",") if part.strip().lower() != b"upgrade")
            if name != b"upgrade":
                lines.append(b"%s: %s\r\n" % (name, value))
        return b"".join([*lines, b"\r\n"])

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            self._offers_upgrade = True
            return
        self._head_wait_started = None
        self._head_bytes = 0
        app = self.app
        error = self._head_error()
        if error is not None:
            self.metrics.refusals.labels(error.code).inc()
            self.app = cast(ASGI3Application, _ErrorApp(error, self._cross_origin()))
        super().on_headers_complete()
        self.app = app

    def _head_error(self) -> GatewayError | None:
        """Why the request whose headers were just read is rejected; None if it isn't."""
        limits = self.settings
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if len(self.url) > limits.max_url_bytes:
            message = f"the URL is longer than {limits.max_url_bytes} bytes (LETHE_MAX_URL_BYTES)"
            return UrlTooLong(message, code="url_too_long")
        if len(self.headers) > limits.max_headers:
            message = f"the request has more than {limits.max_headers} headers (LETHE_MAX_HEADERS)"
            return HeadTooLarge(message, code="too_many_headers")
        if size > limits.max_header_bytes:
            return self._head_too_large()
        if self.parser.should_upgrade():
            return BadRequest("CONNECT is not supported", code="upgrade")
        return None

    def _head_too_large(self) -> GatewayError:
        message = f"URL and headers exceed {self.settings.max_header_bytes} bytes (LETHE_MAX_HEADER_BYTES)"
        return HeadTooLarge(message, code="head_too_large")

    def _cross_origin(self) -> CrossOrigin:
        return CrossOrigin(self.settings.cors_origins)

    def on_message_complete(self) -> None:
        if self._offers_upgrade:
            return  # not yet: the parser believes that no body follows
        super().on_message_complete()
        if self.cycle.response_complete:
            self.cycle.more_body = False
            self._drop_started = None

    # Answering requests

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._final_error is not None and self._answering is not None and self._answering.response_complete:
            self._send_final_error(self._final_error)
        if self._head_wait_started is not None:
            # Reading was paused while the response was sent: the next request's time runs from now.
            self._head_wait_started = time.monotonic()
        if self.cycle is not None and self.cycle.response_complete and self.cycle.more_body:
            # Answered before the whole body was read: the rest is dropped, for a limited time.
            self._drop_started = time.monotonic()

    def pause_writing(self) -> None:
        self._write_pause_started = time.monotonic()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._write_pause_started = None
        super().resume_writing()

    # Rejecting the connection

    def send_400_response(self, msg: str) -> None:
        self._reject(BadRequest("the request is not valid HTTP/1.1", code="invalid_http"))

    def _reject(self, error: GatewayError) -> None:
        """Read no more, and answer with `error` after the complete requests before it have been answered."""
        self.metrics.refusals.labels(error.code).inc()
        self._rejected = True
        newest, answering = self.cycle, self._answering
        is_incomplete = newest is not None and not newest.response_complete and newest.more_body
        if is_incomplete and newest is not answering:
            self.pipeline.popleft()
        if answering is not None and not answering.response_complete and not (is_incomplete and newest is answering):
            # Sent now, the error would be taken for the response to another request.
            self._final_error = error
        else:
            self._send_final_error(error)

    def _send_final_error(self, error: GatewayError) -> None:
        """Write the error response and half-close the connection."""
        self._final_error = None
        self._drop_started = time.monotonic()
        if self.transport.is_closing():
            return
        if self._answering is not None and not self._answering.response_complete:
            if self._answering.response_started:
                # A response has started: the error would be taken for a part of it.
                self.transport.abort()
                return
            # The application that waits for the rest of the body is notified of a disconnect.
            _notify_disconnect(self._answering)
        headers, body = errors.error_response(error, "")
        headers += self._cross_origin().response_headers(self.headers or ())
        lines = [STATUS_LINE[error.status], *(b"%s: %s\r\n" % header for header in headers)]
        self.transport.write(b"".join([*lines, b"connection: close\r\n\r\n", body]))
        # Half-closed: what the client still sends is dropped. A full close would reset the connection, and the client
        # might lose the response.
        if self.transport.can_write_eof():
            self.transport.write_eof()

    # Timeouts

    def _schedule_check(self) -> None:
        self._check_due = self.loop.time() + self._check_interval_s
        self._timer = self.loop.call_later(self._check_interval_s, self._check_timeouts)

    def _check_timeouts(self, *, rescheduled: bool = False) -> None:
        if self.loop.time() - self._check_due > self._check_interval_s and not rescheduled:
            # The event loop was blocked: it must first read what arrived meanwhile, or clients would seem too slow.
            self._timer = self.loop.call_later(0.001, lambda: self._check_timeouts(rescheduled=True))
            return
        self._schedule_check()
        now, limits = time.monotonic(), self.settings
        if self._write_pause_started is not None and now - self._write_pause_started > limits.write_timeout_s:
            self.metrics.refusals.labels("write_timeout").inc()
            self.transport.abort()
        elif self._drop_started is not None and now - self._drop_started > LINGER_S:
            self.transport.abort()
        elif self.transport.is_closing():
            # Closed by the gateway, but kept open by what the client has not read yet.
            self._write_pause_started = self._write_pause_started or now
        elif self._rejected:
            pass  # the requests before the rejected one are still being answered
        elif self._head_wait_started is not None and now - self._head_wait_started > limits.head_timeout_s:
            if self._head_bytes == 0 and self.cycle is None:
                self.transport.close()
            elif self.cycle is None or self.cycle.response_complete:
                message = f"the headers did not arrive within {limits.head_timeout_s:g} s (LETHE_HEAD_TIMEOUT_S)"
                self._reject(TooSlow(message, code="head_timeout"))
