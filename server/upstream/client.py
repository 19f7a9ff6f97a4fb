"""The way to vLLM: raw bytes both ways, errors of the connection as the gateway's own."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import orjson

from lethe.server.errors import UpstreamFailed, UpstreamTimeout
from lethe.server.upstream.http1 import NO_BODY, Response, Wire, broken

Headers = Iterable[tuple[bytes, bytes]]

# RFC 9110 7.6.1, and what the connection to vLLM sets by itself.
HOP_BY_HOP = frozenset(
    [b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer",
     b"transfer-encoding", b"upgrade", b"proxy-connection"]
)  # fmt: skip
# vLLM reads these from anybody: which of its engines serves, before whom, and how loaded it is. They are the
# operator's to say and to know. Those that begin with x-lethe- are the gateway's own.
OPERATORS = frozenset([b"x-data-parallel-rank", b"x-vllm-priority", b"endpoint-load-metrics-format"])
OWN = b"x-lethe-"
NOT_FORWARDED = HOP_BY_HOP | OPERATORS | {b"host", b"content-length", b"expect"}


def _without(dropped: frozenset[bytes], headers: Headers) -> list[tuple[bytes, bytes]]:
    """The headers in lower case, less `dropped` and those that a Connection header names."""
    lowered = [(name.lower(), value) for name, value in headers]
    for name, value in lowered:
        if name == b"connection":
            dropped = dropped.union(part.strip().lower() for part in value.split(b","))
    return [pair for pair in lowered if pair[0] not in dropped]


def response_headers(response: Response) -> list[tuple[bytes, bytes]]:
    """vLLM's headers, less the hop-by-hop ones, and less the length of a body that such an answer doesn't have."""
    headers = _without(HOP_BY_HOP, response.headers)
    return [pair for pair in headers if pair[0] != b"content-length"] if response.status in NO_BODY else headers


class Upstream:
    """One vLLM server. Create inside a running event loop; `close` when done."""

    def __init__(self, url: str, *, connect_timeout_s: float, read_timeout_s: float, key: str | None = None) -> None:
        self.url = url
        self._key = key
        parts = urlsplit(url)
        assert parts.hostname is not None
        tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._prefix = parts.path.rstrip("/").encode()
        # An address of IPv6 is no name.
        host = f"[{parts.hostname}]".encode() if ":" in parts.hostname else parts.hostname.encode("idna")
        self._host = b"host: " + host + (f":{parts.port}".encode() if parts.port else b"") + b"\r\n"
        self._wire = Wire(
            parts.hostname, parts.port or (443 if tls else 80), tls,
            connect_timeout_s=connect_timeout_s, read_timeout_s=read_timeout_s,
        )  # fmt: skip

    async def close(self) -> None:
        await self._wire.close()

    async def send(self, method: str, path: bytes, headers: Headers, body: bytes | None) -> Response:
        """Send a request and return the answer with its body unread; the caller has to close it.

        path: with its query, as it came. An answer that was not read to its end closes the connection, so that vLLM
        stops generating. Raises UpstreamFailed or UpstreamTimeout, also while the body is read.
        """
        head = [method.encode(), b" ", self._prefix, path, b" HTTP/1.1\r\n", self._host]
        for name, value in _without(NOT_FORWARDED, headers):
            if not name.startswith(OWN):
                head += (name, b": ", value, b"\r\n")
        if body is not None or method != "GET":
            head.append(b"content-length: %d\r\n" % len(body or b""))
        head.append(b"\r\n")
        return await self._wire.send(b"".join(head), body, bodyless=method == "HEAD")

    @asynccontextmanager
    async def open(self, method: str, path: bytes, headers: Headers, body: bytes | None) -> AsyncIterator[Response]:
        """`send`, and closed at the end of the block."""
        response = await self.send(method, path, headers, body)
        try:
            yield response
        finally:
            response.close()

    async def call(self, method: str, path: str, payload: Any = None, *, timeout_s: float = 10.0) -> tuple[int, Any]:
        """The gateway's own small calls (health, models, probes): status and JSON, or text.

        Raises UpstreamFailed or UpstreamTimeout, also for an answer that says JSON and is none, or that is longer
        than is read whole.
        """
        headers, body = [], None
        if self._key:
            headers.append((b"authorization", b"Bearer " + self._key.encode()))
        if payload is not None:
            headers.append((b"content-type", b"application/json"))
            body = orjson.dumps(payload)
        try:
            async with asyncio.timeout(timeout_s), self.open(method, path.encode(), headers, body) as response:
                raw = await response.read()
                if raw is None:
                    raise UpstreamFailed(f"the model server's answer to {path} has no end", code="too_long")
        except TimeoutError as error:
            message = f"the model server did not answer {path} within {timeout_s:g} s"
            raise UpstreamTimeout(message, code="read_timeout") from error
        if "json" not in response.content_type:
            return response.status, raw.decode("utf-8", "replace")
        try:
            return response.status, orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            raise broken("the model server answered with broken JSON") from error
