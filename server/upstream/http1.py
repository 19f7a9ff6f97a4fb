"""HTTP/1.1 to one model server, as far as a gateway needs it: connections that are kept, answers as their bytes come.

httptools (llhttp) reads the answers; this adds when to ask, when to stop reading, and when to give up. It costs about
half of what a general client does (docs/PERFORMANCE.md): no cookies, redirects, decompression or task of its own, and
one timer for all connections in place of one a read.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from typing import cast

import httptools

from lethe.server.errors import GuardError, UpstreamFailed, UpstreamTimeout

Headers = list[tuple[bytes, bytes]]

# vLLM closes a connection that was idle for 5 s. One that is used at that moment loses its request, and a POST can't
# be sent again by itself: so ours are given up earlier.
KEEP_IDLE_S = 4.0
# Bytes of a body that are written in one go.
AT_ONCE = 2**18
# Bytes of an answer that are held for a client that reads slowly, before the model server has to wait, too.
HOLD = 2**17
MAX_HEAD_BYTES = 2**18
# The longest body that is read whole, such as a list of models or an answer to the gateway's own probe.
MOST_BYTES = 2**24
NO_BODY = frozenset([204, 304])


def broken(reason: str = "the model server broke off the connection") -> UpstreamFailed:
    return UpstreamFailed(reason, code="broken")


class Response:
    """An answer whose head is there. `close` must be called in the end; before the answer's own end it aborts it."""

    __slots__ = ("_closed", "_connection", "headers", "status")

    def __init__(self, connection: Connection, status: int, headers: Headers) -> None:
        self._connection = connection
        self._closed = False
        self.status = status
        self.headers = headers  # names in lower case, values as they came

    def header(self, wanted: bytes) -> str:
        """The first header of that name; empty where there is none."""
        return next((value.decode("latin-1") for name, value in self.headers if name == wanted), "")

    @property
    def content_type(self) -> str:
        return self.header(b"content-type").partition(";")[0].strip().lower()

    def chunks(self) -> AsyncIterator[bytes]:
        """The body's bytes as they come. Raises UpstreamFailed or UpstreamTimeout when they stop before its end."""
        return self._connection.chunks()

    async def read(self, most: int = MOST_BYTES, heard: Callable[[], None] | None = None) -> bytes | None:
        """The whole body; None for one of more than `most` bytes. heard: told whenever a part of it is there."""
        raw = bytearray()
        async for chunk in self.chunks():
            if heard is not None:
                heard()
            raw += chunk
            if len(raw) > most:
                return None
        return bytes(raw)

    def close(self) -> None:
        """A second time does nothing: the connection may be another request's by then."""
        if not self._closed:
            self._closed = True
            self._connection.release()


class Connection(asyncio.Protocol):
    """One connection, and the one exchange that it is used for at a time."""

    def __init__(self, wire: Wire, loop: asyncio.AbstractEventLoop) -> None:
        self._wire = wire
        self._loop = loop
        self._waiter: asyncio.Future[None] | None = None
        self._write_paused = False
        self.closed = False
        # One for all answers: a connection whose answer did not end as it should is not used again.
        self._parser = httptools.HttpResponseParser(self)
        self._begin()

    def _begin(self) -> None:
        self._status = 0
        self._headers: Headers = []
        self._head_bytes = 0
        self._interim = False  # an answer of the kind 1xx, another one follows
        self._chunks: list[bytes] = []
        self._held = 0
        self._read_paused = False
        self._complete = False
        self._reusable = False
        self._unsent = False  # it answered before it had read all
        self._bodyless = False
        self._error: GuardError | None = None
        self.heard = self._loop.time()

    # What the event loop and the parser tell.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self._status and not self._complete and exc is None and self._error is None and self._ends_with_connection():
            self._complete = True
        self._fail(broken())
        self._wire.lost(self)

    def _ends_with_connection(self) -> bool:
        return not any(name in (b"content-length", b"transfer-encoding") for name, _ in self._headers)

    def data_received(self, data: bytes) -> None:
        self.heard = self._loop.time()
        if not self._status:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            # What comes after an answer's end can only spoil the next one.
            self._reusable = False
            self._give_up(broken("the model server's answer is not HTTP/1.1"))
        if not self._status and self._head_bytes > MAX_HEAD_BYTES:
            self._give_up(broken("the head of the model server's answer has no end"))

    def on_message_begin(self) -> None:
        if self._complete:
            # An answer that nobody asked for.
            self._reusable = False
            self._transport.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        # Those behind a body (trailers) are none of the answer's headers, and may be endless.
        if not self._complete and not self._status:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._complete:
            return
        status = self._parser.get_status_code()
        self._interim = 100 <= status < 200
        if self._interim:
            self._headers = []
            return
        if not 200 <= status <= 599:
            self._give_up(broken(f"the model server answered with the status {status}"))
            return
        self._status = status
        # What a HEAD is answered with looks like the head of an answer with a body: the parser would wait for it.
        self._complete = self._bodyless
        self._wake()

    def on_body(self, body: bytes) -> None:
        if self._complete:
            return
        self._chunks.append(body)
        self._held += len(body)
        if self._held > HOLD and not self._read_paused:
            self._read_paused = True
            self._transport.pause_reading()
        self._wake()

    def on_message_complete(self) -> None:
        if self._interim or self._complete:
            return
        self._complete = True
        self._reusable = self._parser.should_keep_alive()
        self._wake()

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        # It read, which is as good as an answer.
        self.heard = self._loop.time()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _more(self) -> None:
        """Until anything has changed."""
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _fail(self, error: GuardError) -> None:
        if not self._complete and self._error is None:
            self._error = error
        self._wake()

    def _give_up(self, error: GuardError) -> None:
        self._fail(error)
        self._transport.abort()

    def look(self, now: float, silence_s: float) -> None:
        """Give up if the model server has been silent for too long and it was its turn."""
        if not self._complete and not self._read_paused and now - self.heard > silence_s:
            self._give_up(
                UpstreamTimeout("the model server was silent for too long (LETHE_READ_TIMEOUT_S)", code="read_timeout")
            )

    # What is asked of it.

    @property
    def usable(self) -> bool:
        return not self.closed and not self._transport.is_closing()

    @property
    def answering(self) -> bool:
        """Whether anything of the answer has come."""
        return self._head_bytes > 0

    def abort(self) -> None:
        self._transport.abort()

    async def ask(self, head: bytes, body: bytes | None, *, bodyless: bool = False) -> Response:
        """Send a request and wait for the head of its answer, which has no body to a HEAD (`bodyless`).

        Raises UpstreamFailed or UpstreamTimeout.
        """
        self._begin()
        self._bodyless = bodyless
        if body is not None and len(body) > AT_ONCE:
            self._transport.write(head)
            await self._write_in_pieces(body)
        else:
            self._transport.write(head + body if body else head)
        while not self._status:
            if self._error is not None:
                raise self._error
            await self._more()
        return Response(self, self._status, self._headers)

    async def _write_in_pieces(self, body: bytes) -> None:
        """A large body, so that nobody else waits for it, and no more of it is copied than is being sent."""
        whole = memoryview(body)
        for at in range(0, len(body), AT_ONCE):
            while self._write_paused and not self._status and self._error is None:
                await self._more()
            if self._status or self._error is not None:
                self._unsent = True
                return
            self._transport.write(whole[at : at + AT_ONCE])
            await asyncio.sleep(0)
        self.heard = self._loop.time()

    async def chunks(self) -> AsyncIterator[bytes]:
        while True:
            if self._chunks:
                data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
                self._chunks.clear()
                self._held = 0
                if self._read_paused:
                    self._read_paused = False
                    self.heard = self._loop.time()
                    self._transport.resume_reading()
                yield data
            elif self._complete:
                return
            elif self._error is not None:
                raise self._error
            else:
                await self._more()

    def release(self) -> None:
        """The exchange is over: the connection is kept for the next one, or closed, which has vLLM stop generating."""
        if self._complete and self._reusable and not self._unsent and not self._read_paused and self.usable:
            self._wire.keep(self)
        else:
            self._transport.abort()


class Wire:
    """The connections to one server. Create inside a running event loop; `close` when done."""

    def __init__(
        self, host: str, port: int, tls: ssl.SSLContext | None, *, connect_timeout_s: float, read_timeout_s: float
    ) -> None:
        self._address = (host, port, tls)
        self._connect_timeout_s = connect_timeout_s
        self._read_timeout_s = read_timeout_s
        self._loop = asyncio.get_running_loop()
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._interval_s = min(read_timeout_s / 8, 1.0)

    async def send(self, head: bytes, body: bytes | None, *, bodyless: bool = False) -> Response:
        """Send a request over a connection that is there, or a new one; the answer's `close` gives it back.

        Raises UpstreamFailed (`connect`, `connect_timeout`: nothing was sent) or UpstreamTimeout.
        """
        kept = self._take()
        try:
            return await self._ask(kept or await self._connect(), head, body, bodyless)
        except UpstreamFailed as error:
            # A connection that was kept may have been closed at that moment. What changes nothing is asked once more.
            if kept is None or kept.answering or error.code != "broken" or not head.startswith((b"GET ", b"HEAD ")):
                raise
        return await self._ask(await self._connect(), head, body, bodyless)

    async def _ask(self, connection: Connection, head: bytes, body: bytes | None, bodyless: bool) -> Response:
        self._busy.add(connection)
        try:
            return await connection.ask(head, body, bodyless=bodyless)
        except BaseException:
            connection.abort()
            raise

    def _take(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and self._loop.time() - connection.heard < KEEP_IDLE_S:
                return connection
            connection.abort()
        return None

    async def _connect(self) -> Connection:
        host, port, tls = self._address
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await self._loop.create_connection(
                    lambda: Connection(self, self._loop), host, port, ssl=tls
                )
        except TimeoutError as error:
            message = "the model server does not accept connections (LETHE_CONNECT_TIMEOUT_S)"
            raise UpstreamFailed(message, code="connect_timeout") from error
        except OSError as error:
            raise UpstreamFailed("the model server can't be reached", code="connect") from error
        if self._timer is None:
            self._timer = self._loop.call_later(self._interval_s, self._look)
        return connection

    def keep(self, connection: Connection) -> None:
        self._busy.discard(connection)
        self._idle.append(connection)

    def lost(self, connection: Connection) -> None:
        self._busy.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def _look(self) -> None:
        """One timer for all: who is silent for too long, and who has been idle for too long."""
        now = self._loop.time()
        for connection in list(self._busy):
            connection.look(now, self._read_timeout_s)
        for connection in self._idle:
            if now - connection.heard >= KEEP_IDLE_S:
                connection.abort()
        there = self._busy or self._idle
        self._timer = self._loop.call_later(self._interval_s, self._look) if there else None

    async def close(self) -> None:
        """Close all connections; whoever waits for an answer is told that it broke off."""
        if self._timer is not None:
            self._timer.cancel()
        for connection in [*self._busy, *self._idle]:
            connection.abort()
        # The loop tells of their end in its next round.
        await asyncio.sleep(0)
