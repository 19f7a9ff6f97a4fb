"""The HTTP/1.1 client against a scripted server: parsing, connection reuse, flow control, retries, limits."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest

from lethe.server.errors import UpstreamFailed
from lethe.server.upstream import http1
from lethe.server.upstream.http1 import ConnectionPool
from tests.server.upstream.test_client import CHUNKED, OK, Script, Server, answers, serving, then_closes

GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


@asynccontextmanager
async def connected(script: Script) -> AsyncIterator[tuple[Server, ConnectionPool]]:
    async with serving(script) as server:
        pool = ConnectionPool("127.0.0.1", urlsplit(server.url).port or 0, None, connect_timeout_s=5, read_timeout_s=5)
        try:
            yield server, pool
        finally:
            await pool.close()


async def fetch(pool: ConnectionPool) -> tuple[int, bytes]:
    response = await pool.send(GET, None)
    try:
        return response.status, await response.read()
    finally:
        response.close()


async def test_informational_responses_are_skipped() -> None:
    async with connected(answers(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nlink: x\r\n\r\n" + OK)) as (
        server,
        pool,
    ):
        assert [await fetch(pool) for _ in range(2)] == [(200, b"ok")] * 2
        assert server.connections == 1


async def test_a_response_without_length_ends_with_the_connection() -> None:
    async with connected(then_closes(b"HTTP/1.1 200 OK\r\n\r\nall ", b"of it")) as (server, pool):
        assert [await fetch(pool) for _ in range(2)] == [(200, b"all of it")] * 2
        assert server.connections == 2


@pytest.mark.parametrize("status", [204, 304])
async def test_statuses_without_body_leave_the_connection_reusable(status: int) -> None:
    async with connected(answers(b"HTTP/1.1 %d No\r\n\r\n" % status)) as (server, pool):
        assert [await fetch(pool) for _ in range(2)] == [(status, b"")] * 2
        assert server.connections == 1


async def test_the_response_to_head_has_no_body() -> None:
    async with connected(answers(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n")) as (_, pool):
        response = await pool.send(b"HEAD / HTTP/1.1\r\n\r\n", None, is_head_request=True)
        assert (response.status, await response.read(), response.header(b"content-length")) == (200, b"", "5")
        response.close()


@pytest.mark.parametrize("extra", [OK, b"what is this"])
async def test_bytes_after_a_response_are_not_the_next_response(extra: bytes) -> None:
    async with connected(answers(OK + extra)) as (server, pool):
        assert [await fetch(pool) for _ in range(3)] == [(200, b"ok")] * 3
        assert server.connections == 3


async def test_connection_close_is_respected() -> None:
    async with connected(answers(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok")) as (
        server,
        pool,
    ):
        assert [await fetch(pool) for _ in range(2)] == [(200, b"ok")] * 2
        assert server.connections == 2


async def test_a_connection_closed_while_idle_is_not_reused() -> None:
    async with connected(then_closes(OK)) as (server, pool):
        for _ in range(2):
            assert await fetch(pool) == (200, b"ok")
            await asyncio.sleep(0.05)
        assert server.connections == 2


async def test_an_ensured_connection_serves_the_next_request() -> None:
    async with connected(answers(OK)) as (server, pool):
        for _ in range(3):
            await pool.ensure_connection()
        assert await fetch(pool) == (200, b"ok")
        await pool.ensure_connection()
        assert server.connections == 1


async def test_bytes_before_the_first_request_are_not_its_response() -> None:
    connections: list[int] = []
    ended: list[int] = []

    async def impatient(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(1)
        if len(connections) == 1:
            writer.write(b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n")
        else:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(OK)
        with contextlib.suppress(ConnectionError):
            await reader.read()  # until the client closes
        writer.close()
        ended.append(1)

    async with await asyncio.start_server(impatient, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        pool = ConnectionPool("127.0.0.1", port, None, connect_timeout_s=5, read_timeout_s=1)
        await pool.ensure_connection()
        await asyncio.sleep(0.05)
        assert await fetch(pool) == (200, b"ok")
        await pool.close()
        async with asyncio.timeout(5):
            while len(ended) < 2:
                await asyncio.sleep(0.01)
    assert len(connections) == 2


async def test_an_idle_connection_is_dropped_after_the_idle_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "IDLE_TIMEOUT_S", 0.05)
    async with connected(answers(OK)) as (server, pool):
        assert await fetch(pool) == (200, b"ok")
        await asyncio.sleep(0.1)
        assert await fetch(pool) == (200, b"ok")
        assert server.connections == 2


async def test_a_slow_reader_pauses_reading_from_upstream() -> None:
    written = 0

    async def flood(server: Server, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        writer.write(CHUNKED)
        piece = b"%x\r\n%s\r\n" % (2**16, b"x" * 2**16)
        for _ in range(2000):
            writer.write(piece)
            await writer.drain()
            written += 2**16
        writer.write(b"0\r\n\r\n")

    async with connected(flood) as (_, pool):
        response = await pool.send(GET, None)
        await asyncio.sleep(0.3)
        before = written
        await asyncio.sleep(0.3)
        # The kernel buffers a part in both sockets.
        assert written == before < 2000 * 2**16 / 4
        size = 0
        async for chunk in response.chunks():
            assert len(chunk) <= http1.READ_BUFFER_BYTES + 2**20
            size += len(chunk)
        response.close()
        assert size == 2000 * 2**16


async def test_an_early_response_stops_sending_and_closes_the_connection() -> None:
    ended = asyncio.Event()

    async def early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 No\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()
        ended.set()

    listening = await asyncio.start_server(early, "127.0.0.1", 0, limit=1024)
    pool = ConnectionPool(
        "127.0.0.1", listening.sockets[0].getsockname()[1], None, connect_timeout_s=5, read_timeout_s=5
    )
    response = await pool.send(b"POST / HTTP/1.1\r\n\r\n", b"x" * 2**26)
    assert (response.status, await response.read()) == (413, b"")
    response.close()
    # Closed, not reused: the server would take the next request for the rest of the body.
    await asyncio.wait_for(ended.wait(), 5)
    await pool.close()
    listening.close()


async def test_endless_response_headers_are_rejected() -> None:
    async def endless(server: Server, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"x-more: and more\r\n" * 1000)
            await writer.drain()

    async with connected(endless) as (server, pool):
        with pytest.raises(UpstreamFailed, match="headers exceed 256 KiB"):
            await fetch(pool)
        await asyncio.wait_for(server.closed.wait(), 5)


async def test_closing_fails_waiting_requests_and_stops_the_timer() -> None:
    async def silent(server: Server, writer: asyncio.StreamWriter) -> None:
        await server.release.wait()

    async with connected(silent) as (server, pool):
        waiting = asyncio.ensure_future(fetch(pool))
        while not server.heads:
            await asyncio.sleep(0.01)
        await pool.close()
        with pytest.raises(UpstreamFailed):
            await waiting
        assert pool._timer is None or pool._timer.cancelled()


async def test_trailers_are_not_headers() -> None:
    async with connected(answers(CHUNKED + b"2\r\nok\r\n0\r\nset-cookie: a=b\r\ncontent-type: x\r\n\r\n")) as (_, pool):
        response = await pool.send(GET, None)
        assert await response.read() == b"ok" and response.headers == [(b"transfer-encoding", b"chunked")]
        response.close()


@pytest.mark.parametrize("status", [b"000", b"099", b"600", b"999"])
async def test_invalid_statuses_are_failures(status: bytes) -> None:
    async with connected(answers(b"HTTP/1.1 %s What\r\ncontent-length: 2\r\n\r\nok" % status)) as (_, pool):
        with pytest.raises(UpstreamFailed, match="status"):
            async with asyncio.timeout(5):
                await fetch(pool)


def closing_at_the_second(second: bytes = b"") -> Script:
    """Answers the first request of a connection, and closes it when a second one comes."""

    async def script(server: Server, writer: asyncio.StreamWriter) -> None:
        closing = getattr(writer, "has_served", False)
        writer.has_served = True  # type: ignore[attr-defined]
        writer.write(second if closing else OK)
        if closing:
            writer.close()

    return script


async def test_get_is_retried_when_an_idle_connection_was_closed() -> None:
    async with connected(closing_at_the_second()) as (server, pool):
        assert [await fetch(pool) for _ in range(3)] == [(200, b"ok")] * 3
        assert server.connections == 3


@pytest.mark.parametrize(
    ("request_", "second"), [(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n", b""), (GET, b"HTTP/1.1 2")]
)
async def test_post_and_started_responses_are_not_retried(request_: bytes, second: bytes) -> None:
    async with connected(closing_at_the_second(second)) as (server, pool):
        response = await pool.send(request_, None)
        await response.read()
        response.close()
        with pytest.raises(UpstreamFailed, match="closed the connection"):
            await pool.send(request_, None)
        assert server.connections == 1


async def test_idle_time_counts_from_the_servers_last_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "IDLE_TIMEOUT_S", 0.2)
    async with connected(answers(OK)) as (server, pool):
        response = await pool.send(GET, None)
        await asyncio.sleep(0.3)  # the client reads slowly
        await response.read()
        response.close()
        assert await fetch(pool) == (200, b"ok")
        assert server.connections == 2
