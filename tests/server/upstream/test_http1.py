"""One connection after another to a server that does as its script says; what test_upstream.py does not show."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest

from lethe.server.errors import UpstreamFailed
from lethe.server.upstream import http1
from lethe.server.upstream.http1 import Wire
from tests.server.upstream.test_client import CHUNKED, OK, Script, Server, answers, serving, then_closes

ASK = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


@asynccontextmanager
async def to(script: Script) -> AsyncIterator[tuple[Server, Wire]]:
    async with serving(script) as server:
        made = Wire("127.0.0.1", urlsplit(server.url).port or 0, None, connect_timeout_s=5, read_timeout_s=5)
        try:
            yield server, made
        finally:
            await made.close()


async def ask(made: Wire) -> tuple[int, bytes]:
    response = await made.send(ASK, None)
    try:
        return response.status, await response.read()
    finally:
        response.close()


async def test_answers_of_the_kind_1xx_are_passed_over() -> None:
    async with to(answers(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nlink: x\r\n\r\n" + OK)) as (
        server,
        made,
    ):
        assert [await ask(made) for _ in range(2)] == [(200, b"ok")] * 2
        assert server.connections == 1


async def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    async with to(then_closes(b"HTTP/1.1 200 OK\r\n\r\nall ", b"of it")) as (server, made):
        assert [await ask(made) for _ in range(2)] == [(200, b"all of it")] * 2
        assert server.connections == 2


@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_that_has_no_body_is_at_its_end(status: int) -> None:
    async with to(answers(b"HTTP/1.1 %d No\r\n\r\n" % status)) as (server, made):
        assert [await ask(made) for _ in range(2)] == [(status, b"")] * 2
        assert server.connections == 1


async def test_nothing_is_waited_for_behind_the_head_that_answers_a_head_request() -> None:
    async with to(answers(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n")) as (_, made):
        response = await made.send(b"HEAD / HTTP/1.1\r\n\r\n", None, bodyless=True)
        assert (response.status, await response.read(), response.header(b"content-length")) == (200, b"", "5")
        response.close()


@pytest.mark.parametrize("extra", [OK, b"what is this"])
async def test_what_comes_after_an_answers_end_is_no_answer_to_the_next_request(extra: bytes) -> None:
    async with to(answers(OK + extra)) as (server, made):
        assert [await ask(made) for _ in range(3)] == [(200, b"ok")] * 3
        assert server.connections == 3


async def test_a_connection_that_the_server_will_close_is_not_used_again() -> None:
    async with to(answers(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok")) as (server, made):
        assert [await ask(made) for _ in range(2)] == [(200, b"ok")] * 2
        assert server.connections == 2


async def test_a_connection_that_the_server_closed_meanwhile_is_not_used_again() -> None:
    async with to(then_closes(OK)) as (server, made):
        for _ in range(2):
            assert await ask(made) == (200, b"ok")
            await asyncio.sleep(0.05)
        assert server.connections == 2


async def test_a_connection_is_given_up_before_the_server_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "KEEP_IDLE_S", 0.05)
    async with to(answers(OK)) as (server, made):
        assert await ask(made) == (200, b"ok")
        await asyncio.sleep(0.1)
        assert await ask(made) == (200, b"ok")
        assert server.connections == 2


async def test_a_reader_that_is_slow_has_the_server_wait() -> None:
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

    async with to(flood) as (_, made):
        response = await made.send(ASK, None)
        await asyncio.sleep(0.3)
        before = written
        await asyncio.sleep(0.3)
        # What both sockets hold is in the kernel's hands.
        assert written == before < 2000 * 2**16 / 4
        size = 0
        async for chunk in response.chunks():
            assert len(chunk) <= http1.HOLD + 2**20
            size += len(chunk)
        response.close()
        assert size == 2000 * 2**16


async def test_an_answer_before_the_body_was_read_ends_the_sending() -> None:
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
    made = Wire("127.0.0.1", listening.sockets[0].getsockname()[1], None, connect_timeout_s=5, read_timeout_s=5)
    response = await made.send(b"POST / HTTP/1.1\r\n\r\n", b"x" * 2**26)
    assert (response.status, await response.read()) == (413, b"")
    response.close()
    # Closed, not kept: what was not sent can't come any more.
    await asyncio.wait_for(ended.wait(), 5)
    await made.close()
    listening.close()


async def test_a_head_without_end_is_given_up() -> None:
    async def endless(server: Server, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"x-more: and more\r\n" * 1000)
            await writer.drain()

    async with to(endless) as (server, made):
        with pytest.raises(UpstreamFailed, match="no end"):
            await ask(made)
        await asyncio.wait_for(server.closed.wait(), 5)


async def test_closing_ends_who_still_waits_and_leaves_no_timer() -> None:
    async def silent(server: Server, writer: asyncio.StreamWriter) -> None:
        await server.release.wait()

    async with to(silent) as (server, made):
        waiting = asyncio.ensure_future(ask(made))
        while not server.heads:
            await asyncio.sleep(0.01)
        await made.close()
        with pytest.raises(UpstreamFailed):
            await waiting
        assert made._timer is None or made._timer.cancelled()


async def test_fields_behind_a_body_are_no_headers_of_the_answer() -> None:
    async with to(answers(CHUNKED + b"2\r\nok\r\n0\r\nset-cookie: a=b\r\ncontent-type: x\r\n\r\n")) as (_, made):
        response = await made.send(ASK, None)
        assert await response.read() == b"ok" and response.headers == [(b"transfer-encoding", b"chunked")]
        response.close()


@pytest.mark.parametrize("status", [b"000", b"099", b"600", b"999"])
async def test_a_status_that_is_none_is_a_failure(status: bytes) -> None:
    async with to(answers(b"HTTP/1.1 %s What\r\ncontent-length: 2\r\n\r\nok" % status)) as (_, made):
        with pytest.raises(UpstreamFailed, match="status"):
            async with asyncio.timeout(5):
                await ask(made)


def closing_at_the_second(heard: bytes = b"") -> Script:
    """Answers the first request of a connection, and closes it when a second one comes."""

    async def script(server: Server, writer: asyncio.StreamWriter) -> None:
        closing = getattr(writer, "asked", False)
        writer.asked = True  # type: ignore[attr-defined]
        writer.write(heard if closing else OK)
        if closing:
            writer.close()

    return script


async def test_what_changes_nothing_is_asked_again_where_a_kept_connection_is_closed() -> None:
    async with to(closing_at_the_second()) as (server, made):
        assert [await ask(made) for _ in range(3)] == [(200, b"ok")] * 3
        assert server.connections == 3


@pytest.mark.parametrize(
    ("request_", "heard"), [(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n", b""), (ASK, b"HTTP/1.1 2")]
)
async def test_what_may_have_been_done_or_was_answered_is_not_asked_again(request_: bytes, heard: bytes) -> None:
    async with to(closing_at_the_second(heard)) as (server, made):
        response = await made.send(request_, None)
        await response.read()
        response.close()
        with pytest.raises(UpstreamFailed, match="broke off"):
            await made.send(request_, None)
        assert server.connections == 1


async def test_a_connection_is_idle_since_its_servers_last_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "KEEP_IDLE_S", 0.2)
    async with to(answers(OK)) as (server, made):
        response = await made.send(ASK, None)
        await asyncio.sleep(0.3)  # whoever reads it takes their time
        await response.read()
        response.close()
        assert await ask(made) == (200, b"ok")
        assert server.connections == 2
