"""What vLLM says of a request as the client sent it, where the gateway sends a rewritten one.

vLLM's words on a rewritten request (how many fields it has, of which kind) would show that it was rewritten. So the
client gets vLLM's words on its own request, or an error without words.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from lethe.server import errors
from lethe.server.errors import GatewayError
from lethe.server.http.exchange import Exchange, Headers
from lethe.server.output.error_events import NEUTRAL_ERROR
from lethe.server.upstream.client import response_headers
from lethe.server.upstream.http1 import UpstreamResponse
from lethe.server.upstream.pool import ReplicaPool

# Statuses with which vLLM refuses a request that it finds invalid, or fails on it: some fields make it fail (500), or
# are not implemented (501).
INVALID_REQUEST = frozenset([400, 404, 422, 500, 501])
# Seconds in which vLLM has to refuse a request, and again as long for the error. Chosen: it refuses before any work.
REJECTION_TIMEOUT_S = 5.0
# Bytes of an error body, which is read whole; a longer one is passed on without a body. Chosen, not measured.
MAX_ERROR_BYTES = 2**20
STREAM_END = b"data: [DONE]"


@dataclass(frozen=True)
class UpstreamError:
    """Status, headers and body of an error that upstream answered with."""

    status: int
    headers: Headers
    body: bytes


# The body of the error below: without vLLM's words, which would tell what was rewritten.
_WITHOUT_REASON = orjson.dumps({"error": NEUTRAL_ERROR})
# The answer where vLLM refuses a rewritten request but takes the original.
ERROR_WITHOUT_REASON = UpstreamError(
    400,
    [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(_WITHOUT_REASON))],
    _WITHOUT_REASON,
)


@dataclass(frozen=True)
class OriginalRequest:
    """A request as it came: the bytes of its body, the model that it names, and which replica should see it."""

    model: Any
    body: bytes
    affinity: bytes | None


async def rejection_of_original(
    exchange: Exchange, pool: ReplicaPool, headers: Headers, original: OriginalRequest
) -> UpstreamError | None:
    """vLLM's error for the request as it came; None where vLLM takes it, or does not answer in time."""
    with contextlib.suppress(TimeoutError, GatewayError):
        async with asyncio.timeout(REJECTION_TIMEOUT_S) as limit:
            async with pool.open(
                "POST",
                exchange.context.target,
                headers,
                original.body,
                model=original.model,
                affinity=original.affinity,
            ) as response:
                if response.status in INVALID_REQUEST:
                    now = asyncio.get_running_loop().time()
                    return await read_error(response, lambda: limit.reschedule(now + REJECTION_TIMEOUT_S))
                if response.content_type == "text/event-stream" and (body := await _error_stream(response)):
                    return UpstreamError(response.status, response_headers(response), body)
                # vLLM takes it. Leaving the block aborts the answer, which nobody reads.
    return None


async def read_error(response: UpstreamResponse, on_chunk: Callable[[], None]) -> UpstreamError:
    """An error that upstream answers with, read whole; one that is too long is left without headers and body."""
    raw = await response.read(MAX_ERROR_BYTES, on_chunk)
    if raw is None:
        return UpstreamError(response.status, [], b"")
    return UpstreamError(response.status, response_headers(response), raw)


async def _error_stream(response: UpstreamResponse) -> bytes | None:
    """The bytes of a stream that is one error event and nothing else; None for any other stream.

    vLLM's server reports in this way what its engine refuses.
    """
    raw, is_error = b"", False
    async for chunk in response.chunks():
        raw += chunk
        first_event, separator, rest = raw.partition(b"\n\n")
        if separator and not is_error:
            try:
                event = orjson.loads(first_event.partition(b"data: ")[2])
            except orjson.JSONDecodeError:
                return None
            if not (isinstance(event, dict) and isinstance(event.get("error"), dict)):
                return None
            is_error = True
        # Anything else in the stream could be an answer that was not guarded.
        if not STREAM_END.startswith(rest.strip()) or len(raw) > MAX_ERROR_BYTES:
            return None
    return raw if is_error else None


async def send_error(exchange: Exchange, error: UpstreamError) -> None:
    """Answer with an upstream error, in the dialect of the route's clients. It holds nothing that a model said."""
    payload = None
    if error.status >= 400 and not any(name == b"content-encoding" for name, _ in error.headers):
        dialect = errors.dialect_of(exchange.context.path)
        payload = errors.translate_upstream_error(error.status, error.body, dialect, exchange.context.request_id)
    headers = error.headers
    if payload is not None:
        headers = [pair for pair in headers if pair[0] not in (b"content-type", b"content-length")]
        headers += [(b"content-type", b"application/json"), (b"content-length", str(len(payload)).encode())]
    await exchange.response.start(error.status, headers)
    await exchange.response.end(error.body if payload is None else payload)
