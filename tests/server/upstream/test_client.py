"""The upstream client over loopback sockets: headers, errors, connections closed or reused."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from lethe.evaluation.serving import free_port
from lethe.server.errors import GatewayError, UpstreamFailed, UpstreamTimeout
from lethe.server.upstream import http1
from lethe.server.upstream.client import END_TO_END, Headers, Upstream, response_headers

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"

Script = Callable[["Server", asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Server:
    """A server that records each request and then runs its script."""

    script: Script
    url: str = ""
    heads: list[bytes] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    connections: int = 0
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    release: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.heads.append(head)
                length = next(
                    (line[15:] for line in head.lower().split(b"\r\n") if line[:15] == b"content-length:"),
                    b"0",
                )
                self.bodies.append(await reader.readexactly(int(length)))
                await self.script(self, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.closed.set()
        finally:
            writer.close()

    def lines(self, at: int = -1) -> list[bytes]:
        return self.heads[at].split(b"\r\n")[:-2]


def answers(*chunks: bytes) -> Script:
    async def script(server: Server, writer: asyncio.StreamWriter) -> None:
        for chunk in chunks:
            writer.write(chunk)
            await writer.drain()

    return script


async def silent(server: Server, writer: asyncio.StreamWriter) -> None:
    await server.release.wait()


def then_closes(*chunks: bytes) -> Script:
    async def script(server: Server, writer: asyncio.StreamWriter) -> None:
        await answers(*chunks)(server, writer)
        writer.close()
        raise ConnectionResetError

    return script


@asynccontextmanager
async def serving(script: Script) -> AsyncIterator[Server]:
    server = Server(script)
    listening = await asyncio.start_server(server.handle, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        server.release.set()
        listening.close()


@asynccontextmanager
async def connected_to(url: str, *, timeout_s: float = 5.0, key: str | None = None) -> AsyncIterator[Upstream]:
    upstream = Upstream(url, connect_timeout_s=timeout_s, read_timeout_s=timeout_s, key=key)
    try:
        yield upstream
    finally:
        await upstream.close()


def refused_url() -> str:
    return f"http://127.0.0.1:{free_port()}"


async def sent(headers: Headers, body: bytes | None = b"{}") -> Server:
    async with serving(answers(OK)) as server, connected_to(server.url) as upstream:
        async with upstream.open("POST", b"/v1/x?a=1", headers, body) as response:
            assert await response.read() == b"ok"
        return server


async def received(head: bytes) -> list[tuple[bytes, bytes]]:
    async with serving(answers(b"HTTP/1.1 200 OK\r\n" + head + b"content-length: 2\r\n\r\nok")) as server:
        async with connected_to(server.url) as upstream, upstream.open("GET", b"/", [], None) as response:
            return response_headers(response)


async def test_method_path_query_and_body_are_sent_unchanged() -> None:
    body = b'{ "a":\t"\\u00e9\xc3\xa9" }'
    server = await sent([(b"content-type", b"application/json")], body)
    assert server.lines()[0] == b"POST /v1/x?a=1 HTTP/1.1"
    assert server.bodies == [body]


async def test_only_host_and_content_length_are_added() -> None:
    server = await sent([(b"accept", b"*/*")])
    names = [line.split(b":")[0].lower() for line in server.lines()[1:]]
    assert sorted(names) == [b"accept", b"content-length", b"host"]


async def test_a_large_body_is_sent_unchanged_with_its_length() -> None:
    body = b"x" * (http1.WRITE_CHUNK_BYTES * 5 + 1)
    server = await sent([(b"content-type", b"application/json")], body)
    assert server.bodies == [body]
    names = [line.split(b":")[0].lower() for line in server.lines()[1:]]
    assert sorted(names) == [b"content-length", b"content-type", b"host"]


async def test_hop_by_hop_request_headers_are_dropped() -> None:
    server = await sent([
        (b"Connection", b"X-Secret-Hop , close"), (b"x-secret-hop", b"1"), (b"Keep-Alive", b"5"),
        (b"TE", b"trailers"), (b"Transfer-Encoding", b"chunked"), (b"Upgrade", b"h2c"), (b"Trailer", b"x"),
        (b"Proxy-Authorization", b"p"), (b"Expect", b"100-continue"), (b"Host", b"gateway"),
        (b"Content-Length", b"999"), (b"authorization", b"Bearer k"),
    ])  # fmt: skip
    head = server.heads[0].lower()
    names = [line.split(b":")[0] for line in head.split(b"\r\n")[1:-2]]
    assert sorted(names) == [b"authorization", b"content-length", b"host"]
    assert b"gateway" not in head and b"999" not in head


async def test_a_connection_header_removes_no_header_for_the_far_end() -> None:
    names = [*sorted(END_TO_END), b"content-type", b"content-encoding", b"content-language"]
    given = [(name, b"1") for name in names]
    server = await sent([(b"connection", b", ".join(name.title() for name in names)), *given])
    lines = {line.split(b":")[0].lower() for line in server.lines()[1:]}
    assert lines == {*names, b"host", b"content-length"}
    headers = await received(b"Connection: content-type, x-request-id\r\nContent-Type: a/b\r\nX-Request-Id: r\r\n")
    assert headers == [(b"content-type", b"a/b"), (b"x-request-id", b"r"), (b"content-length", b"2")]


async def test_vllms_own_cross_origin_headers_are_dropped() -> None:
    headers = await received(b"Access-Control-Allow-Origin: *\r\naccess-control-expose-headers: x\r\nVary: Origin\r\n")
    assert headers == [(b"vary", b"Origin"), (b"content-length", b"2")]


async def test_vllm_control_headers_and_gateway_headers_are_dropped() -> None:
    server = await sent([
        (b"X-Data-Parallel-Rank", b"1"), (b"x-vllm-priority", b"-9"), (b"endpoint-load-metrics-format", b"JSON"),
        (b"X-Lethe-Action", b"pass"), (b"x-session-id", b"s"), (b"x-request-id", b"r"),
    ])  # fmt: skip
    names = {line.split(b":")[0].lower() for line in server.lines()[1:]}
    assert names == {b"x-session-id", b"x-request-id", b"content-length", b"host"}


async def test_repeated_request_headers_keep_their_order() -> None:
    server = await sent([(b"x-a", b"1"), (b"x-b", b"2"), (b"X-A", b"3")])
    assert [line.lower() for line in server.lines() if line.lower().startswith(b"x-a")] == [
        b"x-a: 1",
        b"x-a: 3",
    ]


async def test_header_values_are_sent_byte_for_byte() -> None:
    server = await sent([(b"x-name", "Zoë".encode())])
    assert b"x-name: Zo\xc3\xab" in [line.lower()[:7] + line[7:] for line in server.lines()]


async def test_hop_by_hop_response_headers_are_dropped() -> None:
    headers = await received(b"Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nServer: x\r\n")
    assert headers == [(b"server", b"x"), (b"content-length", b"2")]


async def test_response_headers_keep_number_order_and_bytes() -> None:
    headers = await received(b"Set-Cookie: a\r\nX-Other: \xe9\r\nset-cookie: b\r\n")
    assert headers[:3] == [(b"set-cookie", b"a"), (b"x-other", b"\xe9"), (b"set-cookie", b"b")]


async def test_a_compressed_response_is_not_decompressed() -> None:
    raw = b"\x1f\x8b not really gzip"
    head = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(raw)
    async with serving(answers(head + raw)) as server, connected_to(server.url) as upstream:
        async with upstream.open("GET", b"/", [], None) as response:
            assert await response.read() == raw


async def test_redirects_are_not_followed() -> None:
    head = b"HTTP/1.1 307 Go\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n"
    async with serving(answers(head)) as server, connected_to(server.url) as upstream:
        async with upstream.open("POST", b"/", [], b"{}") as response:
            assert response.status == 307
        assert len(server.heads) == 1


async def test_cookies_are_not_stored() -> None:
    head = b"HTTP/1.1 200 OK\r\nset-cookie: who=me; path=/\r\ncontent-length: 0\r\n\r\n"
    async with serving(answers(head)) as server, connected_to(server.url) as upstream:
        for _ in range(2):
            async with upstream.open("GET", b"/", [], None) as response:
                await response.read()
        assert b"cookie" not in server.heads[1].lower()


async def test_a_connection_is_reused_after_a_complete_response() -> None:
    async with serving(answers(OK)) as server, connected_to(server.url) as upstream:
        for _ in range(3):
            async with upstream.open("GET", b"/", [], None) as response:
                assert await response.read() == b"ok"
        assert (server.connections, len(server.heads)) == (1, 3)


async def endless(server: Server, writer: asyncio.StreamWriter) -> None:
    writer.write(CHUNKED)
    while True:
        writer.write(b"8000\r\n%s\r\n" % bytes(0x8000))
        await writer.drain()
        await asyncio.sleep(0)


async def test_an_unread_response_closes_the_connection() -> None:
    async with serving(endless) as server, connected_to(server.url) as upstream:
        async with upstream.open("GET", b"/", [], None) as response:
            await anext(response.chunks())
        assert await asyncio.wait_for(server.closed.wait(), 5)


async def test_cancelling_the_caller_closes_the_connection() -> None:
    async def unfinished(server: Server, writer: asyncio.StreamWriter) -> None:
        await answers(CHUNKED, b"3\r\nabc\r\n")(server, writer)
        server.release.set()

    async def call(upstream: Upstream) -> None:
        async with upstream.open("GET", b"/", [], None) as response:
            await response.read()

    async with serving(unfinished) as server, connected_to(server.url) as upstream:
        calling = asyncio.ensure_future(call(upstream))
        await asyncio.wait_for(server.release.wait(), 5)
        calling.cancel()
        await asyncio.wait({calling})
        assert await asyncio.wait_for(server.closed.wait(), 5)


async def failure(url: str, *, timeout_s: float = 5.0) -> GatewayError:
    """The error of one request, wherever on its upstream it happens."""
    async with connected_to(url, timeout_s=timeout_s) as upstream:
        try:
            async with upstream.open("POST", b"/", [], b"{}") as response:
                await response.read()
        except GatewayError as error:
            return error
    raise AssertionError("nothing failed")


async def test_a_refused_connection_is_upstream_failed() -> None:
    error = await failure(refused_url())
    assert (type(error), error.code) == (UpstreamFailed, "connect")


async def test_a_server_that_never_answers_is_a_timeout() -> None:
    async with serving(silent) as server:
        error = await failure(server.url, timeout_s=0.05)
    assert (type(error), error.code) == (UpstreamTimeout, "read_timeout")


async def test_silence_in_the_middle_of_a_response_is_a_timeout() -> None:
    async def stuck(server: Server, writer: asyncio.StreamWriter) -> None:
        await answers(CHUNKED, b"3\r\nabc\r\n")(server, writer)
        await server.release.wait()

    async with serving(stuck) as server:
        error = await failure(server.url, timeout_s=0.05)
    assert (type(error), error.code) == (UpstreamTimeout, "read_timeout")


@pytest.mark.parametrize("chunks", [
    [],
    [b"HTTP/1.1 200 OK\r\ncontent-le"],
    [b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc"],
    [CHUNKED, b"3\r\nab"],
    [b"not http at all\r\n\r\n"],
], ids=["before the headers", "in the headers", "in a whole body", "in a stream", "no HTTP"])  # fmt: skip
async def test_an_incomplete_response_is_upstream_failed(chunks: list[bytes]) -> None:
    async with serving(then_closes(*chunks)) as server:
        error = await failure(server.url)
    assert (type(error), error.code) == (UpstreamFailed, "broken")


async def test_a_connect_timeout_has_its_own_code() -> None:
    # The listening socket accepts nothing, and its backlog is full.
    with socket.socket() as full, contextlib.ExitStack() as stack:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        error = await failure(f"http://127.0.0.1:{full.getsockname()[1]}", timeout_s=0.1)
    assert (type(error), error.code) == (UpstreamFailed, "connect_timeout")


def json_answer(body: bytes, kind: bytes = b"application/json") -> Script:
    return answers(b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n%s" % (kind, len(body), body))


async def test_own_calls_parse_json_and_text_and_send_the_key() -> None:
    async with serving(json_answer(b'{"data": []}')) as server, connected_to(server.url, key="sesame") as upstream:
        assert await upstream.call("POST", "/v1/models", {"a": 1}) == (200, {"data": []})
        assert b"authorization: bearer sesame" in server.heads[0].lower()
        assert server.bodies == [b'{"a":1}']
    async with serving(json_answer(b"fine", b"text/plain")) as server, connected_to(server.url) as upstream:
        assert await upstream.call("GET", "/health") == (200, "fine")
        assert b"authorization" not in server.heads[0].lower()


@pytest.mark.parametrize("body", [b"{", b"", b'"\xff"', b"NaN"])
async def test_invalid_json_in_an_own_call_is_upstream_failed(body: bytes) -> None:
    async with serving(json_answer(body)) as server, connected_to(server.url) as upstream:
        with pytest.raises(UpstreamFailed, match="not valid JSON"):
            await upstream.call("GET", "/v1/models")


async def test_own_calls_raise_upstream_failed_and_timeout() -> None:
    async with connected_to(refused_url()) as upstream:
        with pytest.raises(UpstreamFailed):
            await upstream.call("GET", "/health")
    async with serving(silent) as server, connected_to(server.url) as upstream:
        with pytest.raises(UpstreamTimeout, match="/health within 0.05 s"):
            await upstream.call("GET", "/health", timeout_s=0.05)


async def test_an_own_call_limits_the_length_of_the_response() -> None:
    async with serving(endless) as server, connected_to(server.url) as upstream:
        with pytest.raises(UpstreamFailed, match="/v1/models is too long"):
            await upstream.call("GET", "/v1/models")
        assert await asyncio.wait_for(server.closed.wait(), 5)


async def test_a_response_without_body_loses_its_content_length() -> None:
    async with serving(answers(b"HTTP/1.1 304 Not Modified\r\netag: x\r\ncontent-length: 5\r\n\r\n")) as server:
        async with connected_to(server.url) as upstream, upstream.open("GET", b"/", [], None) as response:
            assert response_headers(response) == [(b"etag", b"x")]


@pytest.mark.parametrize(
    ("url", "host"),
    [
        (f"http://{'a' * 60}:8000", b"host: " + b"a" * 60 + b":8000\r\n"),
        ("http://[::1]:8000/x", b"host: [::1]:8000\r\n"),
        ("http://m\u00fcller", b"host: xn--mller-kva\r\n"),
    ],
)
async def test_the_host_header_of_names_and_ip_addresses(url: str, host: bytes) -> None:
    async with connected_to(url) as upstream:
        assert upstream._host_header == host
