"""One upstream server: which headers reach it and come back, and the gateway's own JSON calls."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import orjson

from lethe.server.errors import UpstreamFailed, UpstreamTimeout
from lethe.server.upstream.http1 import BODILESS_STATUSES, ConnectionPool, UpstreamResponse, connection_broken

Headers = Iterable[tuple[bytes, bytes]]

# Headers that concern one connection only (RFC 9110, 7.6.1).
HOP_BY_HOP = frozenset(
    [b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer",
     b"transfer-encoding", b"upgrade", b"proxy-connection", b"http2-settings"]
)  # fmt: skip
# Headers for the far end, which a Connection header can't remove (RFC 9110, 7.6.1, forbids to name them there): without
# its content type vLLM would read another body than the one that was judged. So are all that begin with `content-`.
END_TO_END = frozenset(
    [b"accept", b"accept-encoding", b"accept-language", b"anthropic-beta", b"anthropic-version", b"api-key",
     b"authorization", b"cache-control", b"cookie", b"date", b"etag", b"expires", b"idempotency-key", b"location",
     b"openai-organization", b"openai-project", b"origin", b"pragma", b"request-id", b"retry-after", b"server",
     b"set-cookie", b"traceparent", b"tracestate", b"user-agent", b"vary", b"www-authenticate", b"x-api-key",
     b"x-request-id"]
)  # fmt: skip
# Which web pages may call: the gateway's own setting decides (LETHE_CORS_ORIGINS), not vLLM's, which allows all.
CORS_PREFIX = b"access-control-"
# vLLM obeys these from any client: they choose the engine that serves, set the priority, and make vLLM report its
# load. They are for operators only.
VLLM_CONTROL = frozenset([b"x-data-parallel-rank", b"x-vllm-priority", b"endpoint-load-metrics-format"])
# Headers of this prefix are the gateway's own.
GATEWAY_PREFIX = b"x-lethe-"
# `send` sets host and content-length itself and never waits for 100 Continue.
NOT_FORWARDED = HOP_BY_HOP | VLLM_CONTROL | {b"host", b"content-length", b"expect"}


def _drop_headers(dropped: frozenset[bytes], headers: Headers) -> list[tuple[bytes, bytes]]:
    """The headers with names in lower case, without `dropped` and without those that a Connection header names.

    Headers for the far end stay, whatever a Connection header says.
    """
    lowered = [(name.lower(), value) for name, value in headers]
    for name, value in lowered:
        if name == b"connection":
            named = (part.strip().lower() for part in value.split(b","))
            dropped = dropped.union(
                option for option in named if option not in END_TO_END and not option.startswith(b"content-")
            )
    return [pair for pair in lowered if pair[0] not in dropped]


def response_headers(response: UpstreamResponse) -> list[tuple[bytes, bytes]]:
    """The response's end-to-end headers. Responses without a body lose their content-length, too."""
    headers = _drop_headers(HOP_BY_HOP, response.headers)
    headers = [pair for pair in headers if not pair[0].startswith(CORS_PREFIX)]
    if response.status in BODILESS_STATUSES:
        return [pair for pair in headers if pair[0] != b"content-length"]
    return headers


class Upstream:
    """One vLLM server. Create it inside a running event loop; `close` it when done."""

    def __init__(self, url: str, *, connect_timeout_s: float, read_timeout_s: float, key: str | None = None) -> None:
        """key: the bearer token of the gateway's own calls. read_timeout_s: maximum silence in seconds."""
        self.url = url
        self._key = key
        parts = urlsplit(url)
        assert parts.hostname is not None
        tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._path_prefix = parts.path.rstrip("/").encode()
        # IPv6 addresses go in brackets and, unlike names, have no IDNA form.
        host = f"[{parts.hostname}]".encode() if ":" in parts.hostname else parts.hostname.encode("idna")
        self._host_header = b"host: " + host + (f":{parts.port}".encode() if parts.port else b"") + b"\r\n"
        self._connections = ConnectionPool(
            parts.hostname, parts.port or (443 if tls else 80), tls,
            connect_timeout_s=connect_timeout_s, read_timeout_s=read_timeout_s,
        )  # fmt: skip

    async def close(self) -> None:
        await self._connections.close()

    async def ensure_connection(self) -> None:
        """Have an open connection, as `send` would use it. Raises UpstreamFailed (`connect`, `connect_timeout`)."""
        await self._connections.ensure_connection()

    async def send(self, method: str, path: bytes, headers: Headers, body: bytes | None) -> UpstreamResponse:
        """Send a request and return the response with its body unread; the caller must close it.

        path: with its query, byte for byte. Closing a response before its end closes the connection, which makes vLLM
        stop generating. Raises UpstreamFailed or UpstreamTimeout, also while the body is read.
        """
        head = [method.encode(), b" ", self._path_prefix, path, b" HTTP/1.1\r\n", self._host_header]
        for name, value in _drop_headers(NOT_FORWARDED, headers):
            if not name.startswith(GATEWAY_PREFIX):
                head += (name, b": ", value, b"\r\n")
        if body is not None or method != "GET":
            head.append(b"content-length: %d\r\n" % len(body or b""))
        head.append(b"\r\n")
        return await self._connections.send(b"".join(head), body, is_head_request=method == "HEAD")

    @asynccontextmanager
    async def open(
        self, method: str, path: bytes, headers: Headers, body: bytes | None
    ) -> AsyncIterator[UpstreamResponse]:
        """`send` as a context manager that closes the response."""
        response = await self.send(method, path, headers, body)
        try:
            yield response
        finally:
            response.close()

    async def call(self, method: str, path: str, payload: Any = None, *, timeout_s: float = 10.0) -> tuple[int, Any]:
        """One of the gateway's own calls (health, models, probes). Returns the status and the parsed JSON, or text.

        payload: sent as JSON. Raises UpstreamFailed or UpstreamTimeout, also when a response of type JSON can't be
        parsed or is longer than MAX_READ_BYTES.
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
                    raise UpstreamFailed(f"the upstream response to {path} is too long", code="too_long")
        except TimeoutError as error:
            message = f"upstream did not answer {path} within {timeout_s:g} s"
            raise UpstreamTimeout(message, code="read_timeout") from error
        if "json" not in response.content_type:
            return response.status, raw.decode("utf-8", "replace")
        try:
            return response.status, orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            raise connection_broken(f"the upstream response to {path} is not valid JSON") from error
