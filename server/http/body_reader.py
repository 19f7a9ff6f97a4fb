"""The request body, read from the client with a limit on its size."""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import Message, Receive

from lethe.server.errors import TooLarge
from lethe.server.http.exchange import ClientDisconnected, Headers


async def read_body(receive: Receive, limit: int, reserve: Callable[[int], None]) -> bytes:
    """The whole request body. Raises TooLarge past `limit` bytes, or ClientDisconnected.

    reserve: called with the size of every chunk before it is kept; what it raises ends the reading.
    """
    chunks: list[bytes] = []
    size = 0
    while True:
        message: Message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise too_large(limit)
        reserve(len(chunk))
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


def too_large(limit: int) -> TooLarge:
    return TooLarge(f"the body is larger than {limit} bytes (LETHE_MAX_BODY_BYTES)", code="body_too_large")


def check_content_length(headers: Headers, limit: int) -> None:
    """Raise TooLarge for a body that is announced to exceed `limit` bytes, before any of it is read."""
    for name, value in headers:
        if name == b"content-length" and int(value) > limit:
            raise too_large(limit)
