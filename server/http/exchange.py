"""One request being answered: what is known of it, its deadlines, and the way back to the client."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from starlette.types import Scope, Send

from lethe.server import errors
from lethe.server.admission.api_keys import Key
from lethe.server.errors import GatewayError, Refused
from lethe.server.http.deadlines import Deadlines
from lethe.server.http.refusal_answer import RefusalAnswer
from lethe.server.output.sse import EVENT_ENDS, Event
from lethe.server.requests.fields import Endpoint

Headers = list[tuple[bytes, bytes]]

EVENT_STREAM = b"text/event-stream; charset=utf-8"
COMMENT = b": keep-alive\n\n"


class ClientDisconnected(Exception):
    """The client closed the connection before its request was complete."""


@dataclass(frozen=True)
class RequestContext:
    """What is known of a request before its body is read.

    endpoint: which schema the body has; None: `/v1/models`, which has no body. Endpoints in `RELAYED` are parsed and
    checked, but not judged. started: on the clock of `time.perf_counter`, in seconds. key: the client's API key, where
    the gateway has keys.
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
    def client_name(self) -> str:
        """Whose request it is: the key's name, or else the address that it came from."""
        if self.key is not None:
            return f"key {self.key.name}"
        return f"address {(self.scope.get('client') or ('',))[0]}"

    @property
    def endpoint_name(self) -> str:
        """The endpoint as metrics and audit trail name it."""
        return self.endpoint or self.path.rsplit("/", 1)[-1]


@dataclass
class CommentState:
    """State of keep-alive comments (`: …` lines of server-sent events).

    last_sent: on the clock of `time.monotonic`. between_events: what was sent last ended an event. has_begun: a comment
    has begun the response. is_alone: nothing else was sent. replaced_status: the true status of a response that isn't a
    stream, when a comment had already sent 200; collected: that response's body so far.
    """

    last_sent: float
    between_events: bool = True
    has_begun: bool = False
    is_alone: bool = False
    replaced_status: int | None = None
    collected: bytearray = field(default_factory=bytearray)

    def collect_or_note_sent(self, piece: bytes) -> bool:
        """Keep the piece until the body ends (True), or note that it is being sent now (False)."""
        if self.replaced_status is not None:
            self.collected += piece
            return True
        self.last_sent, self.is_alone = time.monotonic(), False
        self.between_events = piece.endswith(EVENT_ENDS)
        return False


class ResponseWriter:
    """Sends the response to the client.

    status: the HTTP status; 0 until the response has begun. streamed: the body is a stream of events. last_numbered:
    the last piece that was sent with a sequence number in it. debug_headers: what an API key with `debug` may see
    of the verdict. error: what the request failed with. refusal_answer: the answer to a request that a policy refuses;
    None before the request was read.
    """

    def __init__(self, request: RequestContext, send: Send) -> None:
        self._request = request
        self._send = send
        self.status = 0
        self.streamed = False
        self.last_numbered = b""
        self.debug_headers: Headers = []
        self.error: GatewayError | None = None
        self.refusal_answer: RefusalAnswer | None = None
        self._comments: CommentState | None = None
        self._lock = asyncio.Lock()

    def allow_comments(self) -> None:
        """The client wants a stream: comments may be sent while there is nothing else to send."""
        self._comments = CommentState(time.monotonic())

    def comment_is_due(self, silence_s: float) -> bool:
        """Whether nothing was sent for so long, and a comment would not cut an event."""
        state = self._comments
        return state is not None and state.between_events and time.monotonic() - state.last_sent >= silence_s

    async def send_comment(self) -> None:
        """Send a comment; it begins the response where nothing has."""
        async with self._lock:
            state = self._comments
            if state is None or not state.between_events:
                return
            state.last_sent = time.monotonic()
            if self.status == 0:
                self.streamed = state.has_begun = state.is_alone = True
                await self._send_start(200, [(b"content-type", EVENT_STREAM)])
            await self._send({"type": "http.response.body", "body": COMMENT, "more_body": True})

    async def start(self, status: int, headers: Headers) -> None:
        """Send status and headers, with the request's id if `headers` has none.

        Where a comment has begun the response already, only a stream can follow: any other body becomes an event.
        """
        async with self._lock:
            if self._comments is None or not self._comments.has_begun:
                await self._send_start(status, headers)
            elif not dict(headers).get(b"content-type", b"").startswith(b"text/event-stream"):
                self._comments.replaced_status = status

    async def _send_start(self, status: int, headers: Headers) -> None:
        self.status = status
        names = {name for name, _ in headers}
        ids = errors.id_headers(self._request.request_id, errors.dialect_of(self._request.path))
        headers = [*headers, *(pair for pair in ids if pair[0] not in names), *self.debug_headers]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, piece: bytes) -> None:
        """Send a piece of the body; more will follow."""
        if self._comments is None:
            await self._send({"type": "http.response.body", "body": piece, "more_body": True})
            return
        async with self._lock:
            if self._comments.collect_or_note_sent(piece):
                return
            await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def end(self, piece: bytes = b"") -> None:
        """Send the last piece of the body."""
        async with self._lock:
            state, self._comments = self._comments, None
            if state is not None and state.replaced_status is not None:
                piece = self._as_event(state.replaced_status, bytes(state.collected) + piece)
            await self._send({"type": "http.response.body", "body": piece})

    def _as_event(self, status: int, body: bytes) -> bytes:
        """A whole body as the one event of a stream that a comment has begun."""
        dialect = errors.dialect_of(self._request.path)
        if status < 400 or dialect == "openai":
            return Event(body.decode("utf-8", "replace")).encode()
        error = GatewayError(errors.message_of(body) or f"upstream returned status {status}")
        return errors.error_event(error, dialect, self._request.request_id)

    async def send_json(self, payload: bytes) -> None:
        """Answer 200 with a JSON body."""
        length = (b"content-length", str(len(payload)).encode())
        await self.start(200, [(b"content-type", b"application/json"), length])
        await self.end(payload)

    async def fail(self, error: GatewayError) -> None:
        """Answer with an error body in the client's dialect, or end a stream that has begun with an error event.

        A refusal with `as_answer` is sent as an ordinary answer, if no part of an answer was sent before.
        """
        self.error = self.error or error
        is_untouched = self.status == 0 or (self._comments is not None and self._comments.is_alone)
        if isinstance(error, Refused) and error.as_answer and self.refusal_answer is not None and is_untouched:
            await self._refuse(self.refusal_answer, error.message)
            return
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

    async def _refuse(self, answer: RefusalAnswer, message: str) -> None:
        if not answer.streamed:
            await self.send_json(answer.whole(message))
            return
        self.streamed = True
        await self.start(200, [(b"content-type", EVENT_STREAM)])
        await self.end(answer.stream(message))


@dataclass(frozen=True, eq=False)
class Exchange:
    """One request with its deadlines and its response."""

    context: RequestContext
    deadlines: Deadlines
    response: ResponseWriter
