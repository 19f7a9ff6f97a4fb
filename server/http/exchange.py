"""One request being answered: what is known of it, when it is given up, and the way back to the client."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from typing import Any

from starlette.types import Scope, Send

from lethe.server import errors
from lethe.server.errors import GuardError
from lethe.server.http.api_keys import Key
from lethe.server.requests.fields import Endpoint

Headers = list[tuple[bytes, bytes]]


class ClientDisconnected(Exception):
    """The client closed the connection before its request was complete."""


@dataclass(frozen=True)
class RequestContext:
    """What is known of a request before its body is read.

    endpoint: which schema the body has; None: nothing of it reaches a model, and it is relayed unread. started: on the
    clock of `time.perf_counter`, in seconds. key: the client's API key, where the gateway has keys.
    """

    scope: Scope
    endpoint: Endpoint | None
    request_id: str
    started: float
    key: Key | None = None

    @property
    def method(self) -> str:
        """The HTTP method, in capitals."""
        return str(self.scope["method"])

    @property
    def path(self) -> str:
        """The path without the query."""
        return str(self.scope["path"])

    @property
    def target(self) -> bytes:
        """Path and query for upstream, spelled as the route: vLLM might read another spelling as another route."""
        query: bytes = self.scope["query_string"]
        return self.path.encode() + (b"?" + query if query else b"")

    @property
    def headers(self) -> Headers:
        """The client's headers; names are in lower case."""
        headers: Headers = self.scope["headers"]
        return headers

    @property
    def endpoint_name(self) -> str:
        """The endpoint as metrics and audit trail name it."""
        return self.endpoint or self.path.rsplit("/", 1)[-1]


class Deadlines:
    """When a request is given up: its deadlines, and the client that disconnects.

    Whoever gives it up notes the reason here and cancels the task, so that the request has nothing to wait for on
    the side. stage: where the request is, for the metric of disconnected clients.
    """

    def __init__(self, task: asyncio.Task[Any], total_s: float, now: float) -> None:
        """total_s: seconds for the whole request, from `now` on (`time.perf_counter`)."""
        self.task = task
        self.stage = "reading"
        self.request_ends = now + total_s
        self.stage_ends = math.inf
        self.client_disconnected = False
        self.error: GuardError | None = None
        self._finished = False

    def enter(self, stage: str, ends: float = math.inf) -> None:
        """Begin a stage that has to end at `ends` (`time.perf_counter`)."""
        self.stage, self.stage_ends = stage, ends

    def body_arrives(self) -> None:
        """A byte of the response body is here."""
        self.enter("streaming")

    def expired(self, now: float) -> bool:
        """Whether one of the deadlines has passed."""
        return now > self.stage_ends or now > self.request_ends

    def on_disconnect(self) -> None:
        """The client is gone: cancel the request."""
        if not (self._finished or self.client_disconnected):
            self.client_disconnected = True
            self.task.cancel()

    def give_up(self, error: GuardError) -> None:
        """A deadline has passed: cancel the request, to be answered with `error`."""
        if not (self._finished or self.client_disconnected or self.error):
            self.error = error
            self.task.cancel()

    def finish(self) -> None:
        """From now on nothing cancels the request."""
        self._finished = True


class ResponseWriter:
    """Sends the response to the client.

    status: of the response; 0 until it has begun. streamed: its body is a stream of events. last_numbered: of a
    stream with numbered events, the piece with the newest number. debug_headers: what a trusted key may see of the
    verdict. error: what the request failed with.
    """

    def __init__(self, request: RequestContext, send: Send) -> None:
        self._request = request
        self._send = send
        self.status = 0
        self.streamed = False
        self.last_numbered = b""
        self.debug_headers: Headers = []
        self.error: GuardError | None = None

    async def start(self, status: int, headers: Headers) -> None:
        """Send status and headers, with the request's id if `headers` has none."""
        self.status = status
        names = {name for name, _ in headers}
        ids = errors.id_headers(self._request.request_id, errors.dialect_of(self._request.path))
        headers = [*headers, *(pair for pair in ids if pair[0] not in names), *self.debug_headers]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, piece: bytes) -> None:
        """Send a piece of the body; more will follow."""
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def end(self, piece: bytes = b"") -> None:
        """Send the last piece of the body."""
        await self._send({"type": "http.response.body", "body": piece})

    async def fail(self, error: GuardError) -> None:
        """Answer with an error body in the client's dialect, or end a stream that has begun with an error event."""
        self.error = self.error or error
        path, request_id = self._request.path, self._request.request_id
        if self.status == 0:
            headers, payload = errors.error_response(error, path, request_id)
            await self.start(error.status, headers)
            await self.end(payload)
        elif self.streamed:
            await self.end(errors.error_event(error, errors.dialect_of(path), request_id, self.last_numbered))
        else:
            # A part of a whole body is sent: only a broken connection tells the client that it is not complete.
            raise error


@dataclass(frozen=True, eq=False)
class Exchange:
    """One request with its deadlines and its response."""

    request: RequestContext
    deadlines: Deadlines
    response: ResponseWriter
