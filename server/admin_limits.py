"""Limits of the admin port: the key first, then the body, with the client port's limits on size, time and JSON.

An ASGI application around the admin port's own, because FastAPI reads a request's body before it checks anything.
Limits on headers and connections are those of `server/admission/connection_limits.py`.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import hmac
from collections.abc import Awaitable, Callable
from typing import Any

from prometheus_client import Gauge
from pydantic import SecretStr
from starlette.types import Message, Receive, Scope, Send

from lethe.server import errors
from lethe.server.admission.concurrency import MemoryBudget
from lethe.server.admission.connection_limits import uvicorn_options
from lethe.server.errors import BadRequest, GatewayError, TooSlow, Unauthorized
from lethe.server.http.body_reader import check_content_length, read_body
from lethe.server.http.exchange import ClientDisconnected, Headers
from lethe.server.observability.metrics import Metrics
from lethe.server.requests import request_body
from lethe.server.settings import Settings

# Bodies of LETHE_MAX_BODY_BYTES that the admin port holds in memory at a time. Chosen: few people use it at once.
MAX_BODIES = 2

App = Callable[[Scope, Receive, Send], Awaitable[None]]


def has_admin_key(headers: Headers, key: SecretStr) -> bool:
    """Whether the headers hold the admin key: `Authorization: Bearer KEY`. Takes the same time for every wrong key."""
    values = [value for name, value in headers if name == b"authorization"]
    scheme, _, token = (values[0] if len(values) == 1 else b"").partition(b" ")
    digests = [hashlib.sha256(text).digest() for text in (token.strip(), key.get_secret_value().encode())]
    return hmac.compare_digest(*digests) and scheme.lower() == b"bearer"


def invalid_admin_key() -> Unauthorized:
    return Unauthorized("send the admin key: 'Authorization: Bearer …'", code="invalid_admin_key")


class AdminLimits:
    """Passes to `app` only requests of the admin API that have the key, with their whole body."""

    def __init__(self, app: App, settings: Settings, metrics: Metrics) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._memory = MemoryBudget(MAX_BODIES * settings.max_body_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            with self._memory.reservation() as memory:
                body = await self._checked_body(scope, receive, memory.take)
                await self._app(scope, _replay(body, receive), send)
        except ClientDisconnected:
            pass
        except GatewayError as error:
            self._metrics.refusals.labels(error.code or error.kind).inc()
            headers, body = errors.error_response(error, scope["path"])
            await send({"type": "http.response.start", "status": error.status, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    async def _checked_body(self, scope: Scope, receive: Receive, reserve: Callable[[int], None]) -> bytes:
        """The body of a request to the admin API; b"" for any other request, whose body is never read."""
        settings, key = self._settings, self._settings.admin_key
        if key is None or not scope["path"].startswith("/admin"):
            return b""
        if not has_admin_key(scope["headers"], key):
            raise invalid_admin_key()
        check_content_length(scope["headers"], settings.max_body_bytes)
        try:
            async with asyncio.timeout(settings.body_timeout_s):
                body = await read_body(receive, settings.max_body_bytes, reserve)
        except TimeoutError:
            message = f"the body did not arrive within {settings.body_timeout_s:g} s (LETHE_BODY_TIMEOUT_S)"
            raise TooSlow(message, code="body_timeout") from None
        if body:
            await asyncio.to_thread(self._check_json, body)
        return body

    def _check_json(self, body: bytes) -> None:
        settings = self._settings
        try:
            request_body.parse(body, max_depth=settings.max_json_depth, max_values=settings.max_json_values)
        except BadRequest as error:
            if error.code == "duplicate_key":
                # The key may be a text to forget.
                raise BadRequest("a key is twice in a JSON object", code=error.code) from None
            raise


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body at once, and then what the client's connection gives."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return messages.pop() if messages else await receive()

    return receive_again


def admin_uvicorn_options(settings: Settings, metrics: Metrics) -> dict[str, Any]:
    """uvicorn's options for the admin port: those of the client port, without its count of connections and CORS."""
    own_metrics = copy.copy(metrics)
    own_metrics.connections = Gauge("admin_connections", "Connections of the admin port.", registry=None)
    return uvicorn_options(settings.model_copy(update={"cors_origins": ""}), own_metrics)
