"""The way to vLLM: aiohttp, raw bytes both ways, errors mapped by one table."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson
from multidict import CIMultiDict

from server.errors import GuardError, UpstreamFailed, UpstreamTimeout

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

# Bytes of a body that are written in one go.
AT_ONCE = 2**18
# The longest answer to a call of the gateway's own: a list of models, or of a few tokens with log-probabilities.
MOST_CALLED_BYTES = 2**24


def _without(dropped: frozenset[bytes], headers: Headers) -> list[tuple[bytes, bytes]]:
    """The headers in lower case, less `dropped` and those that a Connection header names."""
    lowered = [(name.lower(), value) for name, value in headers]
    named = [part.strip().lower() for name, value in lowered if name == b"connection" for part in value.split(b",")]
    dropped = dropped.union(named)
    return [(name, value) for name, value in lowered if name not in dropped]


def _request_headers(headers: Headers) -> CIMultiDict[str]:
    kept = _without(NOT_FORWARDED, headers)
    return CIMultiDict((name.decode("latin-1"), _text(value)) for name, value in kept if not name.startswith(OWN))


def _text(value: bytes) -> str:
    """aiohttp writes headers as UTF-8, so that is how they are read; other bytes can't be passed on."""
    return value.decode("utf-8", "replace")


def response_headers(response: aiohttp.ClientResponse) -> list[tuple[bytes, bytes]]:
    """vLLM's headers, less the hop-by-hop ones."""
    return _without(HOP_BY_HOP, response.raw_headers)


# The first class that fits decides.
ERRORS: tuple[tuple[type[BaseException], type[GuardError], str, str], ...] = (
    (
        aiohttp.ConnectionTimeoutError,
        UpstreamFailed,
        "connect_timeout",
        "the model server does not accept connections (LETHE_CONNECT_TIMEOUT_S)",
    ),
    (
        asyncio.TimeoutError,
        UpstreamTimeout,
        "read_timeout",
        "the model server was silent for too long (LETHE_READ_TIMEOUT_S)",
    ),
    (aiohttp.ClientConnectorError, UpstreamFailed, "connect", "the model server can't be reached"),
    (aiohttp.ClientError, UpstreamFailed, "broken", "the model server broke off the connection"),
    (OSError, UpstreamFailed, "broken", "the model server broke off the connection"),
)


def mapped(error: BaseException) -> GuardError | None:
    """The GuardError for an error of the connection to vLLM; None for anything else."""
    for kind, made, code, message in ERRORS:
        if isinstance(error, kind):
            return made(message, code=code)
    return None


class Upstream:
    """One vLLM server. Create inside a running event loop; `close` when done."""

    def __init__(self, url: str, *, connect_timeout_s: float, read_timeout_s: float, key: str | None = None) -> None:
        self.url = url
        self._key = key
        self._session = aiohttp.ClientSession(
            # Shorter than the 5 s after which vLLM closes an idle connection: a request sent at that
            # moment would be lost, and a POST can't be sent again by itself.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s, sock_read=read_timeout_s),
            # The answer is relayed as it comes, compressed or not; nothing is added to the request.
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def close(self) -> None:
        await self._session.close()

    @asynccontextmanager
    async def open(
        self, method: str, path: str, headers: Headers, body: bytes | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request and yield the response with its body unread.

        An answer that was not read to its end closes the connection on leaving, so that vLLM stops
        generating. Raises UpstreamFailed or UpstreamTimeout; errors while the body is read are the
        caller's to map with `mapped`.
        """
        # A large body goes out piece by piece, so that nobody else waits for it.
        data = io.BytesIO(body) if body is not None and len(body) > AT_ONCE else body
        try:
            response = await self._session.request(
                method, self.url + path, headers=_request_headers(headers), data=data, allow_redirects=False
            )
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            made = mapped(error)
            assert made is not None
            raise made from error
        try:
            yield response
        finally:
            # A response at its end has already given its connection back; this only ends unread ones.
            response.close()

    async def call(self, method: str, path: str, payload: Any = None, *, timeout_s: float = 10.0) -> tuple[int, Any]:
        """The gateway's own small calls (health, models, probes): status and JSON, or text.

        Raises UpstreamFailed or UpstreamTimeout, also for an answer that says JSON and is none, or that is longer
        than MOST_CALLED_BYTES.
        """
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        if payload is not None:
            headers["Content-Type"] = "application/json"
        try:
            async with self._session.request(
                method,
                self.url + path,
                json=payload,
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=timeout_s),
            ) as response:
                raw = bytearray()
                async for chunk in response.content.iter_any():
                    raw += chunk
                    if len(raw) > MOST_CALLED_BYTES:
                        response.close()
                        raise UpstreamFailed(f"the model server's answer to {path} has no end", code="too_long")
                is_json = "json" in response.headers.get("Content-Type", "")
                return response.status, orjson.loads(raw) if is_json else raw.decode("utf-8", "replace")
        except orjson.JSONDecodeError as error:
            raise UpstreamFailed("the model server answered with broken JSON", code="broken") from error
        except aiohttp.ConnectionTimeoutError as error:
            raise mapped(error) from error  # type: ignore[misc]  # it is in the table
        except TimeoutError as error:
            message = f"the model server did not answer {path} within {timeout_s:g} s"
            raise UpstreamTimeout(message, code="read_timeout") from error
        except (aiohttp.ClientError, OSError) as error:
            made = mapped(error)
            assert made is not None
            raise made from error
