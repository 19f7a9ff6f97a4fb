"""The admin port's limits: the key before the body, and the client port's limits on head, body and time."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import SecretStr
from starlette.types import Receive, Scope, Send

from lethe.server.admin_limits import has_admin_key
from lethe.server.admin_port import serve_admin_port
from lethe.server.observability.metrics import Metrics
from lethe.server.settings import Settings
from tests.server.fakes import free_port

KEY = "0123456789abcdef-key"
AUTHORIZATION = f"authorization: Bearer {KEY}\r\n".encode()


class Echo:
    """An application that answers with the size of the body that it got."""

    def __init__(self) -> None:
        self.served: list[tuple[str, int]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        assert not message.get("more_body")
        self.served.append((scope["path"], len(message["body"])))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


@contextlib.asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[tuple[int, Echo, Metrics]]:
    port, echo, metrics = free_port(), Echo(), Metrics()
    limits = Settings(admin_port=port, admin_key=SecretStr(KEY), **settings)
    async with serve_admin_port(limits, echo, metrics):  # type: ignore[arg-type]
        yield port, echo, metrics


async def ask(port: int, head: bytes, body: bytes = b"") -> tuple[int, str, int]:
    """Send a head and a body as far as the server reads them; status, error code, and bytes that the server took."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer, sent = asyncio.ensure_future(reader.readuntil(b"\r\n\r\n")), 0
    try:
        writer.write(head)
        while sent < len(body) and not answer.done():
            writer.write(body[sent : sent + 65536])
            sent += 65536
            with contextlib.suppress(TimeoutError, ConnectionError):
                await asyncio.wait_for(writer.drain(), 0.2)
        response = await asyncio.wait_for(answer, 10)
        length = [line for line in response.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        rest = await reader.readexactly(int(length[0].split(b":")[1])) if length else b""
        code = json.loads(rest)["error"]["code"] if rest else ""
        return int(response.split()[1]), code, sent
    finally:
        writer.transport.abort()


def head(path: str, length: int | None = None, extra: bytes = b"") -> bytes:
    size = b"" if length is None else b"content-length: %d\r\n" % length
    return b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n%s%s\r\n" % (path.encode(), extra, size)


@pytest.mark.parametrize("path", ["/admin/forget", "/admin/rollback", "/admin/unknown", "/admin"])
@pytest.mark.parametrize("extra", [b"", b"authorization: Bearer wrong\r\n", 2 * AUTHORIZATION, b"x-api-key: x\r\n"])
async def test_the_key_is_checked_before_the_body_is_read(path: str, extra: bytes) -> None:
    async with serving() as (port, echo, _):
        # No byte of the body is sent.
        assert (await ask(port, head(path, 10**7, extra)))[:2] == (401, "invalid_admin_key")
        assert echo.served == []


@pytest.mark.parametrize("chunked", [False, True])
async def test_bodies_have_the_client_ports_limit_on_size(chunked: bool) -> None:
    async with serving(max_body_bytes=100_000) as (port, echo, metrics):
        size = 50_000_000
        first = head("/admin/forget", size, AUTHORIZATION)
        if chunked:
            first = head("/admin/forget", None, AUTHORIZATION + b"transfer-encoding: chunked\r\n") + b"2faf080\r\n"
        status, code, sent = await ask(port, first, b"x" * size)
        assert (status, code) == (413, "body_too_large") and sent < 10_000_000
        small = b'{"a": 1}'
        assert await ask(port, head("/admin/forget", len(small), AUTHORIZATION) + small) == (200, "", 0)
        assert echo.served == [("/admin/forget", len(small))]
        assert metrics.registry.get_sample_value("lethe_refusals_total", {"reason": "body_too_large"}) == 1


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"[" * 5000, "too_many_values"),
        (b"{", "invalid_json"),
        (b'{"a":' + b"[" * 50 + b"]" * 50 + b"}", "too_deep"),
        (b'{"a": [' + b"1," * 500 + b"1]}", "too_many_values"),
        (b'{"secret": 1, "secret": 2}', "duplicate_key"),
    ],
)
async def test_bodies_have_the_client_ports_limits_on_json(body: bytes, code: str) -> None:
    async with serving(max_json_depth=40, max_json_values=100) as (port, echo, _):
        status, got, _ = await ask(port, head("/admin/forget", len(body), AUTHORIZATION) + body)
        assert (status, got) == (400, code) and echo.served == []


async def test_slow_bodies_and_heads_time_out() -> None:
    async with serving(body_timeout_s=0.3, head_timeout_s=0.3) as (port, _, _):
        assert (await ask(port, head("/admin/forget", 100, AUTHORIZATION) + b"{"))[:2] == (408, "body_timeout")
        assert (await ask(port, b"GET /admin/policies HTTP/1.1\r\nhost: x\r\n"))[:2] == (408, "head_timeout")


async def test_heads_have_the_client_ports_limits() -> None:
    async with serving(max_headers=10, max_url_bytes=100, max_header_bytes=2000) as (port, _, metrics):
        assert (await ask(port, head("/" + "a" * 200)))[:2] == (414, "url_too_long")
        assert (await ask(port, head("/health", None, b"x: y\r\n" * 20)))[:2] == (431, "too_many_headers")
        assert (await ask(port, head("/health", None, b"x: " + b"y" * 3000 + b"\r\n")))[:2] == (431, "head_too_large")
        assert metrics.registry.get_sample_value("lethe_connections") == 0


async def test_bodies_in_memory_are_limited_together() -> None:
    async with serving(max_body_bytes=10_000) as (port, _, _):
        open_writers = []
        for _ in range(2):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head("/admin/forget", 10_000, AUTHORIZATION) + b" " * 9_990)
            open_writers.append(writer)
        await asyncio.sleep(0.2)
        assert (await ask(port, head("/admin/forget", 100, AUTHORIZATION) + b" " * 100))[:2] == (503, "memory_full")
        # Other paths need no memory.
        assert (await ask(port, head("/health")))[0] == 200
        for writer in open_writers:
            writer.transport.abort()


@pytest.mark.parametrize(
    ("value", "expected"),
    [(f"Bearer {KEY}", True), (f"bearer  {KEY} ", True), (KEY, False), (f"Basic {KEY}", False), ("", False)],
)
def test_the_key_is_a_bearer_token(value: str, expected: bool) -> None:
    assert has_admin_key([(b"authorization", value.encode())], SecretStr(KEY)) is expected
