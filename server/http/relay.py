"""The response on its way from upstream to the client: as it comes, or through the output filter."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from lethe.server.errors import UpstreamFailed
from lethe.server.http.exchange import Exchange, Headers
from lethe.server.http.worker_thread import LargeBodyThread
from lethe.server.output.filter import MAX_WHOLE_BYTES, ResponseFilter
from lethe.server.upstream.client import response_headers
from lethe.server.upstream.http1 import UpstreamResponse

# The key that numbers the events of the responses API.
EVENT_NUMBER = b'"sequence_number"'


class ByteFilter(Protocol):
    """Changes the bytes of one body. `feed` takes the next of them and returns those that may be sent now."""

    def feed(self, chunk: bytes) -> bytes: ...

    def end(self) -> bytes:
        """The rest, once the body has ended."""


def without_compression(headers: Headers) -> Headers:
    """Request headers that ask for an uncompressed response, so that the gateway can read it."""
    return [*(pair for pair in headers if pair[0] != b"accept-encoding"), (b"accept-encoding", b"identity")]


def is_compressed(response: UpstreamResponse) -> bool:
    """Whether upstream compressed the body, although it was asked not to."""
    return response.header(b"content-encoding").lower() not in ("", "identity")


async def relay(exchange: Exchange, response: UpstreamResponse, filters: Sequence[ByteFilter]) -> None:
    """Send status, headers and body as upstream sends them, except for what the filters change."""
    await exchange.response.start(response.status, response_headers(response))
    await _relay_body(exchange, response, filters)


async def relay_filtered(
    exchange: Exchange,
    response: UpstreamResponse,
    response_filter: ResponseFilter,
    worker_thread: LargeBodyThread,
    filters: Sequence[ByteFilter],
) -> None:
    """Send what the output filter lets through. Returning before upstream's end aborts the upstream request."""
    headers = [pair for pair in response_headers(response) if pair[0] != b"content-length"]
    writer = exchange.response
    is_stream = response.content_type == "text/event-stream"
    if is_compressed(response) or not (is_stream or response.content_type.endswith("json")):
        response_filter.on_unreadable("an answer that is neither JSON nor a stream of events, or is compressed")
        await writer.start(response.status, headers)
        await _relay_body(exchange, response, filters)
    elif is_stream:
        await writer.start(response.status, headers)
        await _relay_filtered_stream(exchange, response, response_filter, filters)
    else:
        raw = await response.read(MAX_WHOLE_BYTES, exchange.deadlines.body_arrives)
        if raw is None:
            raise UpstreamFailed("the model server's answer is too long to be filtered", code="too_long")
        for byte_filter in filters:
            raw = byte_filter.feed(raw) + byte_filter.end()
        payload = await worker_thread.run(len(raw), response_filter.whole, raw)
        await writer.start(response.status, [*headers, (b"content-length", str(len(payload)).encode())])
        await writer.end(payload)


async def _filtered(chunks: AsyncIterator[bytes], byte_filter: ByteFilter) -> AsyncIterator[bytes]:
    """The chunks as the filter changes them; none of them is empty."""
    async for chunk in chunks:
        if allowed := byte_filter.feed(chunk):
            yield allowed
    if rest := byte_filter.end():
        yield rest


def _chunks(response: UpstreamResponse, filters: Sequence[ByteFilter]) -> AsyncIterator[bytes]:
    """The body's bytes as they arrive and as the filters change them."""
    chunks = response.chunks()
    for byte_filter in filters:
        chunks = _filtered(chunks, byte_filter)
    return chunks


async def _relay_filtered_stream(
    exchange: Exchange,
    response: UpstreamResponse,
    response_filter: ResponseFilter,
    filters: Sequence[ByteFilter],
) -> None:
    writer = exchange.response
    async for chunk in _chunks(response, filters):
        exchange.deadlines.body_arrives()
        for piece in response_filter.feed(chunk):
            if response_filter.cut:
                # Before the last piece is sent: a client that reads slowly must not keep vLLM generating.
                response.close()
            if EVENT_NUMBER in piece:
                writer.last_numbered = piece
            await writer.write(piece)
        if response_filter.cut:
            break
    for piece in response_filter.end():
        await writer.write(piece)
    await writer.end()


async def _relay_body(exchange: Exchange, response: UpstreamResponse, filters: Sequence[ByteFilter]) -> None:
    writer = exchange.response
    is_numbered = writer.streamed and exchange.context.endpoint == "responses"
    async for chunk in _chunks(response, filters):
        exchange.deadlines.body_arrives()
        if is_numbered and EVENT_NUMBER in chunk:
            writer.last_numbered = chunk
        await writer.write(chunk)
    await writer.end()
