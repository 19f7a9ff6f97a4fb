"""Connection limits against the gateway on a real socket: slow, oversized and invalid requests are rejected."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import logging
import socket
import time
import tomllib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop
from aiohttp import web
from packaging.requirements import Requirement
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from lethe.server.admission.connection_limits import ConnectionLimits
from tests.server.fakes import FakeUpstream, Running, gateway, upstream

BODY = b'{"model": "m", "messages": [{"role": "user", "content": "hello"}]}'


def post(body: bytes = BODY, *headers: bytes, path: bytes = b"/v1/chat/completions") -> bytes:
    lines = [b"POST %s HTTP/1.1" % path, b"host: x", b"content-type: application/json"]
    return b"\r\n".join([*lines, b"content-length: %d" % len(body), *headers, b"", body])


@dataclass
class Answer:
    status: int
    headers: dict[bytes, bytes]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        error = json.loads(self.body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return dict(error)


@dataclass
class Client:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        with contextlib.suppress(ConnectionError):
            await self.writer.drain()

    async def answer(self) -> Answer:
        async with asyncio.timeout(10):
            head = await self.reader.readuntil(b"\r\n\r\n")
            status, *lines = head.split(b"\r\n")[:-2]
            headers = {name.lower(): value for name, value in (line.split(b": ", 1) for line in lines)}
            body = await self.reader.readexactly(int(headers[b"content-length"]))
        return Answer(int(status.split()[1]), headers, body)

    async def gone(self) -> bool:
        """Whether the server closes the connection; what it still sends is read."""
        try:
            async with asyncio.timeout(10):
                while await self.reader.read(65536):
                    pass
        except TimeoutError:
            return False
        except ConnectionError:
            pass
        return True


@contextlib.asynccontextmanager
async def client(gate: Running) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", gate.port)
    try:
        yield Client(reader, writer)
    finally:
        writer.transport.abort()


async def answer(fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
    return web.json_response({"choices": []})


@contextlib.asynccontextmanager
async def served(**settings: Any) -> AsyncIterator[Running]:
    async with upstream(answer) as fake, gateway(fake.url, **settings) as gate:
        yield gate


async def until(condition: Any, what: str) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(what)


HOST = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n"


@pytest.mark.parametrize(
    ("request_", "status", "code", "setting"),
    [
        (b"GET /v1/models?%s HTTP/1.1\r\nhost: x\r\n\r\n" % (b"a" * 600), 414, "url_too_long", "LETHE_MAX_URL_BYTES"),
        (HOST + b"x-a: 1\r\n" * 30 + b"\r\n", 431, "too_many_headers", "LETHE_MAX_HEADERS"),
        (HOST + b"x-long: %s\r\n\r\n" % (b"a" * 3000), 431, "head_too_large", "LETHE_MAX_HEADER_BYTES"),
        (post(BODY, b"x-long: " + b"a" * 3000), 431, "head_too_large", "LETHE_MAX_HEADER_BYTES"),
    ],
)  # fmt: skip
async def test_url_and_headers_over_their_limits_are_rejected(
    request_: bytes, status: int, code: str, setting: str
) -> None:
    async with served(max_url_bytes=512, max_headers=20, max_header_bytes=2048) as gate, client(gate) as c:
        await c.send(request_)
        got = await c.answer()
        assert (got.status, got.error["code"]) == (status, code) and setting in got.error["message"]
        assert got.headers[b"x-should-retry"] == b"false"
        assert gate.count("lethe_refusals_total", reason=code) == 1
        # The connection stays usable: the next request on it is answered.
        await c.send(HOST + b"\r\n")
        assert (await c.answer()).status == 200


@pytest.mark.parametrize("flood", [b"a", b"a: b\r\n"], ids=["one endless line", "endless headers"])
async def test_endless_headers_are_rejected_while_they_arrive(flood: bytes) -> None:
    async with served(max_header_bytes=2048) as gate, client(gate) as c:
        await c.send(HOST + b"x-flood: " + b"1\r\n")
        for _ in range(40):
            await c.send(flood * (600 // len(flood)))
            await asyncio.sleep(0)
        got = await c.answer()
        assert got.status == 431 and got.headers[b"connection"] == b"close"
        assert await c.gone()
        assert gate.count("lethe_refusals_total", reason="head_too_large") == 1


async def test_an_endless_url_is_rejected_while_it_arrives() -> None:
    async with served(max_header_bytes=2048) as gate, client(gate) as c:
        await c.send(b"GET /")
        for _ in range(40):
            await c.send(b"a" * 600)
        assert (await c.answer()).status == 431
        assert await c.gone()


async def test_slow_headers_time_out() -> None:
    async with served(head_timeout_s=0.3) as gate, client(gate) as c:
        started = time.monotonic()

        async def dribble() -> None:
            for byte in (HOST + b"x-a: " + b"a" * 10_000).decode():
                await c.send(byte.encode())
                await asyncio.sleep(0.02)

        dribbling = asyncio.ensure_future(dribble())
        got = await c.answer()
        assert got.status == 408 and got.error["code"] == "head_timeout"
        assert "LETHE_HEAD_TIMEOUT_S" in got.error["message"] and got.headers[b"x-should-retry"] == b"true"
        assert time.monotonic() - started < 5
        dribbling.cancel()
        assert gate.count("lethe_refusals_total", reason="head_timeout") == 1


async def test_slow_headers_of_a_second_request_time_out() -> None:
    async with served(head_timeout_s=0.3) as gate, client(gate) as c:
        await c.send(post())
        assert (await c.answer()).status == 200
        await c.send(b"POST /v1/chat/comp")
        assert (await c.answer()).status == 408
        assert await c.gone()


async def test_a_connection_without_a_request_is_closed() -> None:
    async with served(head_timeout_s=0.2) as gate, client(gate) as c:
        await until(lambda: gate.count("lethe_connections") == 1, "not connected")
        assert await c.gone()
        await until(lambda: gate.count("lethe_connections") == 0, "still counted")


async def test_an_idle_connection_is_closed_after_keep_alive() -> None:
    async with served(keep_alive_s=1, head_timeout_s=0.2) as gate, client(gate) as c:
        await c.send(post())
        assert (await c.answer()).status == 200
        started = time.monotonic()
        assert await c.gone() and time.monotonic() - started > 0.5


@pytest.mark.parametrize(
    "request_",
    [b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n",
     b"POST /v1/models HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
     b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
     b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"],
)  # fmt: skip
async def test_invalid_http_is_answered_with_400_counted_and_not_logged(
    request_: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with served() as gate, client(gate) as c:
        await c.send(request_)
        got = await c.answer()
        assert got.status == 400 and got.error["code"] == "invalid_http"
        assert await c.gone()
        await until(lambda: gate.count("lethe_requests_in_flight") == 0, "still in flight")
        assert gate.count("lethe_refusals_total", reason="invalid_http") == 1
    assert "HTTP" not in caplog.text
    logging.getLogger("uvicorn.error.clients").error("Exception in ASGI application")
    assert "Exception in ASGI application" in caplog.text


JUNK = b"\x00junk\r\n\r\n"


@pytest.mark.parametrize("whole", [1, 3])
async def test_invalid_bytes_after_requests_are_answered_after_them(whole: int) -> None:
    async with served() as gate, client(gate) as c:
        await c.send(post() * whole + JUNK)
        assert [(await c.answer()).status for _ in range(whole)] == [200] * whole
        got = await c.answer()
        assert got.status == 400 and got.error["code"] == "invalid_http"
        assert await c.gone()


async def test_an_invalid_pipelined_request_never_starts() -> None:
    chunked = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"
    async with upstream(answer) as fake, gateway(fake.url) as gate, client(gate) as c:
        await c.send(post() + chunked)
        assert [(await c.answer()).status for _ in range(2)] == [200, 400]
        assert await c.gone()
        assert len(fake.bodies) == 1


async def test_a_disconnect_aborts_the_first_of_pipelined_requests() -> None:
    async def silent(fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(30)
        raise AssertionError("the request was not aborted")

    async with upstream(silent) as fake, gateway(fake.url) as gate:
        async with client(gate) as c:
            await c.send(post() * 3)
            await asyncio.wait_for(fake.arrived.wait(), 10)
        await asyncio.wait_for(fake.closed.wait(), 5)
        await until(lambda: gate.count("lethe_requests_in_flight") == 0, "still in flight")
        assert len(fake.bodies) == 1


async def test_a_rejected_client_gets_one_error_only(caplog: pytest.LogCaptureFixture) -> None:
    """Neither another fault in the same bytes nor a timeout may send a second error."""
    async with served(max_header_bytes=2048, head_timeout_s=0.2) as gate, client(gate) as c:
        await c.send(HOST + b"no colon\r\n" + b"a" * 5000)
        assert (await c.answer()).status == 400
        await asyncio.sleep(0.5)
        assert await c.reader.read() == b""
    assert "Traceback" not in caplog.text and "Fatal" not in caplog.text


async def test_anthropic_routes_get_anthropic_errors() -> None:
    async with served(max_headers=8) as gate, client(gate) as c:
        await c.send(post(BODY, *(b"x-%d: 1" % i for i in range(9)), path=b"/v1/messages"))
        assert json.loads((await c.answer()).body)["error"]["type"] == "request_too_large"


UPGRADES = [
    (
        b"connection: Upgrade, HTTP2-Settings",
        b"upgrade: h2c",
        b"http2-settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
    ),
    (b"connection: upgrade", b"upgrade: websocket"),
    (b"upgrade: TLS/1.0, h2c", b"connection: keep-alive, upgrade"),
    (b"connection: upgrade", b"connection: keep-alive", b"upgrade: h2c", b"upgrade: x"),
]


@pytest.mark.parametrize("offer", UPGRADES)
@pytest.mark.parametrize("piece", [10_000, 7, 1])
async def test_an_offered_upgrade_is_ignored(offer: tuple[bytes, ...], piece: int) -> None:
    """The body is read, framed in either way, and the requests after it on the same connection."""
    chunked = post(b"", b"transfer-encoding: chunked", *offer).replace(b"content-length: 0\r\n", b"")
    chunked += b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
    models = HOST + b"\r\n".join(offer) + b"\r\n\r\n"
    data = post(BODY, *offer) + chunked + models + post()
    async with upstream(answer) as fake, gateway(fake.url) as gate, client(gate) as c:
        for at in range(0, len(data), piece):
            await c.send(data[at : at + piece])
        assert [(await c.answer()).status for _ in range(4)] == [200] * 4
        assert fake.bodies == [BODY] * 3
        assert not any({"upgrade", "http2-settings"} & {name.lower() for name in h} for h in fake.headers)


async def test_limits_hold_for_requests_that_offer_an_upgrade() -> None:
    async with served(max_headers=8) as gate, client(gate) as c:
        await c.send(post(BODY, *UPGRADES[0], *(b"x-%d: y" % i for i in range(9))))
        assert (await c.answer()).error["code"] == "too_many_headers"


async def test_connect_is_rejected() -> None:
    async with served() as gate, client(gate) as c:
        await c.send(b"CONNECT /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await c.answer()).status == 400


async def test_a_new_connection_replaces_an_idle_one_at_the_limit() -> None:
    async with served(max_connections=2) as gate, client(gate) as idle, client(gate) as busy:
        await idle.send(post())
        assert (await idle.answer()).status == 200
        await busy.send(b"POST /v1/chat/completions HTTP/1.1\r\n")
        await until(lambda: gate.count("lethe_connections") == 2, "not connected")
        async with client(gate) as third:
            assert await idle.gone()
            await third.send(post())
            assert (await third.answer()).status == 200


async def test_a_new_connection_is_rejected_if_none_is_idle() -> None:
    async with served(max_connections=1) as gate, client(gate) as busy:
        await busy.send(b"POST /v1/chat/completions HTTP/1.1\r\n")
        await until(lambda: gate.count("lethe_connections") == 1, "not connected")
        async with client(gate) as other:
            got = await other.answer()
            assert got.status == 503 and got.error["code"] == "connections_full"
            assert int(got.headers[b"retry-after"]) >= 1 and got.headers[b"x-should-retry"] == b"true"
            assert await other.gone()
        await busy.send(post().split(b"\r\n", 1)[1])
        assert (await busy.answer()).status == 200


async def test_a_large_content_length_is_rejected_before_the_body() -> None:
    async with served(max_body_bytes=2000) as gate, client(gate) as c:
        await c.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n")
        got = await c.answer()
        assert got.status == 413 and got.error["code"] == "body_too_large"
        # The body is dropped, and then the connection is usable again.
        await c.send(b"a" * 1_000_000 + post())
        assert (await c.answer()).status == 200


async def test_a_chunked_body_over_the_limit_is_rejected() -> None:
    async with served(max_body_bytes=2000) as gate, client(gate) as c:
        await c.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(3):
            await c.send(b"400\r\n" + b"a" * 1024 + b"\r\n")
        assert (await c.answer()).status == 413


async def test_a_client_that_keeps_sending_after_the_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lethe.server.admission.connection_limits.LINGER_S", 0.2)
    async with served(max_body_bytes=2000) as gate, client(gate) as c:
        await c.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100000000\r\n\r\n")
        assert (await c.answer()).status == 413

        async def flood() -> None:
            while True:
                await c.send(b"a" * 1000)
                await asyncio.sleep(0.01)

        flooding = asyncio.ensure_future(flood())
        assert await c.gone()
        flooding.cancel()
        await until(lambda: gate.count("lethe_connections") == 0, "still connected")


async def test_a_client_that_does_not_read_is_cut_off() -> None:
    """Upstream has 400 MB to send: only the buffers are filled, and vLLM is aborted in the end."""
    written = 0

    async def gushing(fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
        nonlocal written
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(20_000 if request.method == "POST" else 0):
            await response.write(b"data: %s\n\n" % (b"x" * 20_000))
            written += 20_000
        return response

    async with upstream(gushing) as fake, gateway(fake.url, write_timeout_s=1.0) as gate:
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            s.setblocking(False)
            await asyncio.get_running_loop().sock_connect(s, ("127.0.0.1", gate.port))
            await asyncio.get_running_loop().sock_sendall(s, post())
            await asyncio.wait_for(fake.closed.wait(), 10)
            await until(lambda: gate.count("lethe_requests_in_flight") == 0, "still in flight")
            await until(lambda: gate.count("lethe_connections") == 0, "still connected")
        assert gate.count("lethe_refusals_total", reason="write_timeout") == 1
        assert gate.count("lethe_client_gone_total", window="streaming") == 1
        assert 0 < written < 40_000_000


async def test_an_unread_response_does_not_keep_the_connection_open() -> None:
    async def large(fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"x" * 30_000_000, content_type="application/json")

    async with upstream(large) as fake, gateway(fake.url, write_timeout_s=0.5) as gate:
        async with client(gate) as c:
            c.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await c.send(post(BODY, b"connection: close"))
            await until(lambda: gate.count("lethe_refusals_total", reason="write_timeout") == 1, "not cut off")
            await until(lambda: gate.count("lethe_connections") == 0, "still connected")
            await until(lambda: gate.count("lethe_requests_in_flight") == 0, "still in flight")


async def test_a_slow_reader_gets_the_whole_response(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock advances with every byte read, so that a busy machine can't cause the timeout."""
    size, timeout_s, now, max_pause_s = 16_000_000, 2.0, 0.0, 0.0
    monkeypatch.setattr("lethe.server.admission.connection_limits.time", SimpleNamespace(monotonic=lambda: now))
    check = ConnectionLimits._check_timeouts

    def checking(self: ConnectionLimits, *, rescheduled: bool = False) -> None:
        nonlocal max_pause_s
        max_pause_s = max(max_pause_s, now - (now if self._write_pause_started is None else self._write_pause_started))
        check(self, rescheduled=rescheduled)

    monkeypatch.setattr(ConnectionLimits, "_check_timeouts", checking)

    async def large(fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"x" * size, content_type="application/json")

    async with (
        upstream(large) as fake,
        gateway(fake.url, write_timeout_s=timeout_s, head_timeout_s=0.05) as gate,
        client(gate) as c,
    ):
        await c.send(post())
        await c.reader.readuntil(b"\r\n\r\n")
        got = 0
        while got < size and (part := await c.reader.read(100_000)):
            got += len(part)
            now = 2 * timeout_s * got / size
            await asyncio.sleep(0.005)
        assert got == size and 0 < max_pause_s < timeout_s
        assert gate.count("lethe_refusals_total", reason="write_timeout") == 0


def test_a_blocked_event_loop_causes_no_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """uvloop runs timers before it reads what arrived while it was busy with another connection."""
    received, waiting = ConnectionLimits.data_received, socket.socket()

    def receiving(self: ConnectionLimits, data: bytes) -> None:
        if b"x-busy" in data:
            waiting.sendall(post())
            time.sleep(1.5)
        received(self, data)

    monkeypatch.setattr(ConnectionLimits, "data_received", receiving)

    async def held_up() -> None:
        async with served(head_timeout_s=0.8) as gate, client(gate) as other:
            waiting.connect(("127.0.0.1", gate.port))
            await until(lambda: gate.count("lethe_connections") == 2, "not connected")
            await other.send(post(BODY, b"x-busy: 1"))
            await until(lambda: gate.count("lethe_requests_total", endpoint="chat", status="200") == 2, "cut off")
            assert waiting.recv(65_536).startswith(b"HTTP/1.1 200")

    with waiting, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(held_up())


# What ConnectionLimits overrides, and what it reads of a connection and of its request; none of it is public.
OVERRIDDEN = {
    "connection_made", "connection_lost", "data_received", "pause_writing", "resume_writing", "send_400_response",
    "on_message_begin", "on_header", "on_body", "on_headers_complete", "on_message_complete", "on_response_complete",
    "_start_asgi_task",
}  # fmt: skip
OF_THE_CONNECTION = (
    "app",
    "connections",
    "cycle",
    "headers",
    "logger",
    "loop",
    "parser",
    "pipeline",
    "scope",
    "transport",
)
OF_THE_REQUEST = ("disconnected", "message_event", "more_body", "response_complete", "response_started", "scope")


def test_uvicorns_version_is_within_the_tested_bound() -> None:
    pyproject = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    requirement = next(
        item for item in map(Requirement, pyproject["project"]["dependencies"]) if item.name == "uvicorn"
    )
    assert {clause.operator for clause in requirement.specifier} == {">=", "<"}
    assert requirement.specifier.contains(version("uvicorn"))


def test_uvicorn_has_the_private_names_that_are_overridden() -> None:
    own = {name for name, value in vars(ConnectionLimits).items() if callable(value)}
    assert own & {*dir(HttpToolsProtocol)} == OVERRIDDEN
    connection = HttpToolsProtocol(Config(lambda: None, ws="none"), ServerState(), {}, asyncio.new_event_loop())
    connection.loop.close()
    assert [name for name in OF_THE_CONNECTION if not hasattr(connection, name)] == []
    request = inspect.getsource(RequestResponseCycle.__init__)
    assert [name for name in OF_THE_REQUEST if f"self.{name} = " not in request] == []


CHUNKED = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


async def test_trailers_are_not_headers() -> None:
    async with upstream(answer) as fake, gateway(fake.url) as gate, client(gate) as c:
        trailers = b"x-late: 1\r\nx-forwarded-for: me\r\n"
        await c.send(CHUNKED + b"%x\r\n%s\r\n0\r\n" % (len(BODY), BODY) + trailers + b"\r\n")
        assert (await c.answer()).status == 200
        assert not {name.lower() for name in fake.headers[0]} & {"x-late", "x-forwarded-for"}


@pytest.mark.parametrize("flood", [b"a: b\r\n", b"a"], ids=["endless fields", "one endless field"])
async def test_endless_trailers_are_cut_off(flood: bytes) -> None:
    async with served(max_header_bytes=2048) as gate, client(gate) as c:
        await c.send(CHUNKED + b"%x\r\n%s\r\n0\r\nx: " % (len(BODY), BODY))
        for _ in range(400):
            await c.send(flood * (6000 // len(flood)))
        assert await c.gone()
        assert gate.count("lethe_refusals_total", reason="framing") == 1


async def test_a_body_in_chunks_of_one_byte_is_accepted() -> None:
    async with served(max_header_bytes=2048) as gate, client(gate) as c:
        await c.send(CHUNKED)
        body = BODY.replace(b"hello", b"hello " * 600)
        for byte in range(0, len(body), 64):
            await c.send(b"".join(b"1\r\n%c\r\n" % one for one in body[byte : byte + 64]))
        await c.send(b"0\r\n\r\n")
        assert (await c.answer()).status == 200
