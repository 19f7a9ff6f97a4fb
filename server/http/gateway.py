"""One request, one pass: read, judge, rewrite, forward, relay, record.

Raw ASGI under the FastAPI app: the relay needs the client's disconnect in every window, and bytes as
they came. Whatever can change the status happens before the first byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import orjson
from prometheus_client import Counter, Histogram
from starlette.types import Message, Receive, Scope, Send

from lethe.server import errors
from lethe.server.errors import GuardError, Overloaded, Refused, TooLarge, TooSlow, UpstreamFailed, UpstreamTimeout
from lethe.server.guard.executor import Judging
from lethe.server.guard.guard import Guard, Needs, Outcome, Watched
from lethe.server.guard.rewrite import Judged
from lethe.server.http import request_body as bodies
from lethe.server.http.api_keys import CREDENTIALS, Key, Keyring
from lethe.server.http.concurrency import Admission, KeyLimits
from lethe.server.http.connection_limits import LEFT
from lethe.server.observability import loop_lag, malloc
from lethe.server.observability.audit import Audit
from lethe.server.observability.metrics import Metrics
from lethe.server.output.filter import MAX_WHOLE_BYTES, Answer
from lethe.server.policy.verdict import Finding
from lethe.server.requests.extract import RELAYED, Endpoint
from lethe.server.requests.validation import doubtful
from lethe.server.settings import Settings
from lethe.server.upstream.client import response_headers
from lethe.server.upstream.http1 import Response
from lethe.server.upstream.pool import Replicas, beginning

log = logging.getLogger("lethe.routes")

T = TypeVar("T")


# A smaller body is read faster than a thread is woken; a larger one would hold up everybody else.
READ_AT_ONCE = 32_768
STREAM_END = b"data: [DONE]"
# The key that numbers events of responses.
NUMBERED = b'"sequence_number"'
# An error is read whole before it is told; a longer one is told without its own words.
MAX_ERROR_BYTES = 2**20
# What vLLM answers to a request that it finds wrong.
REFUSALS = frozenset([400, 404, 422])
# How long vLLM may take to refuse a request as it came; it does so before any work.
REFUSED_AT_ONCE_S = 5.0
# Status, headers and body of an error.
ErrorAnswer = tuple[int, list[tuple[bytes, bytes]], bytes]
# In place of vLLM's words on a rewritten request whose original it takes: they would tell that it was rewritten.
_WORDLESS = (
    b'{"error":{"message":"The request could not be processed.","type":"BadRequestError","param":null,"code":400}}'
)
NO_WORDS: ErrorAnswer = (
    400,
    [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(_WORDLESS))],
    _WORDLESS,
)
MODEL_NAME = re.compile(r"[\w./:@+-]{1,200}", re.ASCII)


@dataclass(eq=False)
class Exchange:
    """One request on its way; `window` says where it is, for the client that leaves.

    Whatever ends it early cancels its task, and says why first: `left` a client that is gone, `stop` a time that is
    over. Both are told from outside, so that nothing has to wait for them beside the request.
    """

    scope: Scope
    send: Send
    endpoint: str
    request_id: str
    task: asyncio.Task[Any]
    started: float = field(default_factory=time.perf_counter)
    # When it is given up: the whole of it, and what it is at now.
    ends: float = math.inf
    due: float = math.inf
    gone: bool = False
    stopped: GuardError | None = None
    over: bool = False
    window: str = "reading"
    status: int = 0
    streamed: bool = False
    last: bytes = b""  # of a stream with numbered events: the piece that told the last number
    original: tuple[Any, bytes] | None = None  # model and body as they came, where another body goes up
    # Which replica may answer, and which had better.
    model: Any = None
    affinity: bytes | None = None
    needs: Needs = field(default_factory=Needs)
    answer: Answer | None = None  # the answer, where it is watched
    watched: Watched | None = None
    key: Key | None = None
    failed: GuardError | None = None
    told: list[tuple[bytes, bytes]] = field(default_factory=list)  # what a trusted key may know of the verdict

    def left(self) -> None:
        """The client is gone."""
        if not (self.over or self.gone):
            self.gone = True
            self.task.cancel()

    def stop(self, error: GuardError) -> None:
        """A time is over; answer with `error`."""
        if not (self.over or self.gone or self.stopped):
            self.stopped = error
            self.task.cancel()

    def heard(self) -> None:
        """A byte of the answer's body is there."""
        self.window, self.due = "streaming", math.inf

    def watch(self, guard: Guard, body: dict[str, Any], watched: Watched | None) -> None:
        """Hold the answer to what is watched for. An answer that can't be read is the policies' to decide."""
        if watched is None:
            return

        def unwatchable(reason: str) -> None:
            if refusal := guard.failed(list(watched.policies), "watch", reason):
                raise refusal

        self.watched = watched
        self.answer = Answer(watched.watch, body, unwatchable, added=watched.added)

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.status = status
        there = {name for name, _ in headers}
        ids = errors.id_headers(self.request_id, errors.dialect(self.scope["path"]))
        headers = [*headers, *(pair for pair in ids if pair[0] not in there)]
        await self.send({"type": "http.response.start", "status": status, "headers": [*headers, *self.told]})

    async def fail(self, error: GuardError) -> None:
        """Answer with the error body of the route's clients, or end a stream that has begun with an error event."""
        self.failed = self.failed or error
        path = self.scope["path"]
        if self.status == 0:
            headers, payload = errors.answer(error, path, self.request_id)
            await self.start(error.status, headers)
            await self.send({"type": "http.response.body", "body": payload})
        elif self.streamed:
            event = errors.event(error, errors.dialect(path), self.request_id, self.last)
            await self.send({"type": "http.response.body", "body": event})
        else:
            # Part of a whole answer is out: only a broken connection tells the client so.
            raise error


async def read_body(receive: Receive, limit: int, take: Callable[[int], None]) -> bytes:
    """The whole request body. Raises TooLarge past `limit` bytes, ConnectionResetError if the client left.

    take: told of every chunk's size before it is kept; what it raises ends the reading.
    """
    chunks: list[bytes] = []
    size = 0
    while True:
        message: Message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionResetError
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        take(len(chunk))
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"the body is larger than {limit} bytes (LETHE_MAX_BODY_BYTES)", code="body_too_large")


class Gateway:
    """Serves the guarded routes, and those that are relayed without judging."""

    def __init__(
        self,
        settings: Settings,
        upstream: Replicas,
        guard: Guard,
        audit: Audit,
        metrics: Metrics,
        keys: Keyring | None = None,
        limits: KeyLimits | None = None,
    ) -> None:
        self._settings = settings
        self._upstream = upstream
        # Replaced as a whole when policies change; a request holds on to the one that it began with.
        self.guard = guard
        self._audit = audit
        self._metrics = metrics
        self._keys = keys
        self._admission = Admission(settings, metrics, limits)
        self._judging = Judging(
            settings.judge_threads,
            waiting=settings.judge_queue,
            wait_s=settings.judge_wait_s,
            timeout_s=settings.judge_timeout_s,
            metrics=metrics,
        )
        self._serving: set[Exchange] = set()
        metrics.compute(metrics.in_flight, lambda: len(self._serving))
        shortest = min(settings.body_timeout_s, settings.first_byte_timeout_s, settings.request_timeout_s)
        self._interval_s = min(shortest / 8, 1.0)
        self._finished: dict[tuple[str, int | str], tuple[Counter, Histogram]] = {}
        # One at a time: what is read holds the interpreter, and several readers would hold up the event loop more.
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="lethe-read")

    async def run(self) -> None:
        """What goes on beside the requests, until cancelled: times, the keys' file and the event loop are watched."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_times())
            group.create_task(loop_lag.watch(self._metrics))
            group.create_task(malloc.give_back())
            if self._keys is not None:
                self._keys.warn(self.guard.known)
                group.create_task(self._keys.watch())

    def close(self) -> None:
        self._judging.close()
        self._reading.shutdown(wait=False, cancel_futures=True)

    async def serve(self, scope: Scope, receive: Receive, send: Send, endpoint: Endpoint | None) -> None:
        """Answer one request; endpoint None: relay without judging (no text of it reaches a model)."""
        headers = dict(scope["headers"])
        request_id = headers.get(b"x-request-id", b"").decode("latin-1")
        if not (0 < len(request_id) <= 128 and request_id.isascii() and request_id.isprintable()):
            request_id = errors.new_request_id()
        task = asyncio.current_task()
        assert task is not None
        exchange = Exchange(scope, send, endpoint or scope["path"].rsplit("/", 1)[-1], request_id, task)
        exchange.ends = exchange.started + self._settings.request_timeout_s
        self._serving.add(exchange)
        scope[LEFT] = exchange.left
        try:
            await self._admitted(exchange, receive, endpoint)
        except asyncio.CancelledError:
            await self._cancelled(exchange)
        finally:
            exchange.over = True
            self._serving.discard(exchange)
            self._count(exchange)

    async def _cancelled(self, exchange: Exchange) -> None:
        """Nobody waits any more, a time is over, or the server ends."""
        exchange.over = True
        if exchange.gone:
            exchange.task.uncancel()
            self._metrics.client_gone.labels(exchange.window).inc()
        elif exchange.stopped is not None:
            exchange.task.uncancel()
            await exchange.fail(exchange.stopped)
        else:
            # The time to drain is over: the last word is an error that clients understand.
            message = "the gateway is shutting down (LETHE_DRAIN_TIMEOUT_S)"
            await exchange.fail(Overloaded(message, code="shutting_down", retry_after_s=1))

    def _count(self, exchange: Exchange) -> None:
        if exchange.failed is not None:
            self._metrics.refusals.labels(exchange.failed.code or exchange.failed.kind).inc()
        kind = exchange.endpoint, exchange.status or "gone"
        if kind not in self._finished:
            requests, seconds = self._metrics.requests.labels(*kind), self._metrics.request_seconds
            self._finished[kind] = requests, seconds.labels(exchange.endpoint)
        counted, timed = self._finished[kind]
        counted.inc()
        timed.observe(time.perf_counter() - exchange.started)

    async def _watch_times(self) -> None:
        """End the requests whose time is over. One watch for all costs less than timers in each."""
        while True:
            await asyncio.sleep(self._interval_s)
            now = time.perf_counter()
            for exchange in list(self._serving):
                if now > exchange.due or now > exchange.ends:
                    exchange.stop(self._late(exchange, now))

    def _late(self, exchange: Exchange, now: float) -> GuardError:
        limits = self._settings
        if now > exchange.due and exchange.window == "reading":
            message = f"the body did not arrive within {limits.body_timeout_s:g} s (LETHE_BODY_TIMEOUT_S)"
            return TooSlow(message, code="body_timeout")
        if now > exchange.due:
            most = limits.first_byte_timeout_s
            message = f"the model server sent nothing within {most:g} s (LETHE_FIRST_BYTE_TIMEOUT_S)"
            self._metrics.upstream_errors.labels("first_byte_timeout").inc()
            return UpstreamTimeout(message, code="first_byte_timeout")
        message = f"the request took longer than {limits.request_timeout_s:g} s (LETHE_REQUEST_TIMEOUT_S)"
        return UpstreamTimeout(message, code="request_timeout")

    async def _admitted(self, exchange: Exchange, receive: Receive, endpoint: Endpoint | None) -> None:
        """Answer, if key and limits allow. These checks come first: they cost little and read no body."""
        headers = exchange.scope["headers"]
        try:
            if self._keys is not None:
                exchange.key = self._keys.identify(headers)
            for name, value in headers:
                if name == b"content-length" and int(value) > self._settings.max_body_bytes:
                    raise _too_large(self._settings.max_body_bytes)
            with self._admission.keys.one(exchange.key), self._admission.memory.share() as take:
                exchange.due = exchange.started + self._settings.body_timeout_s
                try:
                    raw = await read_body(receive, self._settings.max_body_bytes, take)
                except ConnectionResetError:
                    self._metrics.client_gone.labels("reading").inc()
                    return
                exchange.due = math.inf
                exchange.window = "waiting"
                async with self._admission.places:
                    await self._served(exchange, raw, endpoint)
        except GuardError as error:
            await exchange.fail(error)
        except Exception:
            if exchange.status:
                raise
            log.exception("request %s failed", exchange.request_id)
            await exchange.fail(GuardError("internal error"))

    async def _served(self, exchange: Exchange, raw: bytes, endpoint: Endpoint | None) -> None:
        payload: bytes | None = raw or None
        if endpoint is not None:
            made = await self._guarded(exchange, raw, endpoint)
            if isinstance(made, tuple):
                await _tell(exchange, made)
                return
            payload = made
        else:
            limited = exchange.key is not None and exchange.key.models is not None
            merged = self._upstream.models()
            if limited or merged is not None:
                await self._listed(exchange, merged)
                return
        await self._forward(exchange, payload)

    async def _listed(self, exchange: Exchange, raw: bytes | None) -> None:
        """Answer with the list of models (None: any replica's), as far as the key may use them."""
        path, headers = exchange.scope["path"], self._own_headers(exchange)
        if raw is None:
            async with self._upstream.open("GET", path.encode(), headers, None) as response:
                raw = await response.read()
            if raw is None:
                raise UpstreamFailed("the model server's list of models has no end", code="too_long")
        try:
            found = orjson.loads(raw)
            listed = [model for model in found["data"] if exchange.key is None or exchange.key.may_use(model["id"])]
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise UpstreamFailed("the model server's list of models can't be read", code="broken") from error
        payload = orjson.dumps({**found, "data": listed})
        length = (b"content-length", str(len(payload)).encode())
        await exchange.start(200, [(b"content-type", b"application/json"), length])
        await exchange.send({"type": "http.response.body", "body": payload})

    def _own_headers(self, exchange: Exchange) -> list[tuple[bytes, bytes]]:
        """The request's headers for upstream. A client's key is ours to know: vLLM gets its own in its place."""
        headers: list[tuple[bytes, bytes]] = exchange.scope["headers"]
        if self._keys is None:
            return headers
        headers = [(name, value) for name, value in headers if name not in CREDENTIALS]
        if self._settings.upstream_key is not None:
            headers.append((b"authorization", b"Bearer " + self._settings.upstream_key.get_secret_value().encode()))
        return headers

    async def _guarded(self, exchange: Exchange, raw: bytes, endpoint: Endpoint) -> bytes | ErrorAnswer:
        """The bytes to send upstream: those that came, or the rewritten ones. Or vLLM's error on those that came.

        Raises GuardError to answer with.
        """
        exchange.window = "judging"
        bodies.check_headers(exchange.scope["headers"])
        guard, key = self.guard, exchange.key
        if key is not None:
            guard = guard.only(key.held_to(guard.policies, guard.known))
        judged = await self._aside(raw, self._read, guard, raw, endpoint)
        if key is not None:
            key.check_model(judged.body)
        exchange.model = judged.body.get("model")
        if self._upstream.several:
            exchange.affinity = beginning(judged.body)
        if endpoint in RELAYED or not guard.covering(judged.body):
            return raw
        try:
            outcome = guard.examine_at_once(judged) if len(raw) < READ_AT_ONCE else None
            if outcome is None:
                size = sum(len(text) for text in judged.texts)
                outcome = await self._judging.run(lambda: guard.examine(judged), size=size)
        except Overloaded:
            # Not a failure of the guard, which a policy might let pass: whoever floods it must gain nothing.
            raise
        except Exception as error:
            # The classifier's or the rewrite's own failure, time-outs included: a decision of policy.
            note = "judging took too long"
            if not isinstance(error, TimeoutError):
                note = f"judging failed: {type(error).__name__}"
                log.exception("judging request %s failed", exchange.request_id)
            refusal = guard.failed([p for p, _ in guard.covering(judged.body).values()], "judge", note)
            self._record(exchange, judged, None, "refuse" if refusal else "pass", note)
            if refusal is not None:
                raise refusal from None
            payload, exchange.needs, watched = guard.unjudged(judged)
            if payload is not None:
                exchange.original = exchange.model, raw
            exchange.watch(guard, judged.body, watched)
            return payload or raw
        self._metrics.judge_seconds.observe((outcome.judge_ms + outcome.rewrite_ms) / 1e3)
        self._metrics.actions.labels(outcome.action).inc()
        self._record(exchange, judged, outcome, outcome.action, outcome.note)
        if key is not None and key.debug:
            exchange.told = _told(outcome)
        if outcome.hides and await self._aside(raw, doubtful, endpoint, judged.body):
            if said := await self._refused_as_it_came(exchange, exchange.model, raw):
                return said
        if outcome.refusal is not None:
            raise outcome.refusal
        if outcome.payload is not None:
            exchange.original = exchange.model, raw
        exchange.model, exchange.needs = outcome.model, outcome.needs
        exchange.watch(guard, judged.body, outcome.watch)
        return raw if outcome.payload is None else outcome.payload

    async def _aside(self, raw: bytes, work: Callable[..., T], *given: Any) -> T:
        """`work` on what came as `raw`: in a thread where it is long."""
        if len(raw) < READ_AT_ONCE:
            return work(*given)
        return await asyncio.get_running_loop().run_in_executor(self._reading, work, *given)

    def _read(self, guard: Guard, raw: bytes, endpoint: Endpoint) -> Judged:
        limits = self._settings
        return guard.read(
            endpoint, bodies.parse(raw, max_depth=limits.max_json_depth, max_values=limits.max_json_values)
        )

    async def _forward(self, exchange: Exchange, payload: bytes | None) -> None:
        """Send upstream and relay the answer's bytes as they come, whole or streamed alike."""
        exchange.window = "headers"
        scope, path = exchange.scope, _path(exchange.scope)
        sent = time.perf_counter()
        exchange.due = sent + self._settings.first_byte_timeout_s
        try:
            async with self._upstream.open(
                scope["method"], path, _readable(self._own_headers(exchange), exchange.answer), payload,
                model=exchange.model, affinity=exchange.affinity, needs=exchange.needs,
            ) as response:  # fmt: skip
                self._metrics.upstream_seconds.observe(time.perf_counter() - sent)
                exchange.window = "first_byte"
                if response.status >= 400:
                    await self._relay_error(exchange, response)
                    return
                exchange.streamed = response.content_type == "text/event-stream"
                if exchange.answer is not None:
                    await self._relay_watched(exchange, response, exchange.answer)
                    return
                await exchange.start(response.status, response_headers(response))
                await _relay(exchange, response)
        except Refused:
            # The watch's own decision on an answer that it can't read.
            raise
        except GuardError as error:
            self._metrics.upstream_errors.labels(error.code).inc()
            raise

    async def _relay_error(self, exchange: Exchange, response: Response) -> None:
        """The upstream's error; of a rewritten request what it says of the one that came."""
        answered = await _error(response, exchange.heard)
        if exchange.original is not None and answered[0] in REFUSALS:
            refused = await self._refused_as_it_came(exchange, *exchange.original)
            if refused is None:
                self._metrics.upstream_errors.labels("rewritten_refused").inc()
                log.warning("request %s: vLLM refused what it was rewritten to", exchange.request_id)
            answered = refused or NO_WORDS
        await _tell(exchange, answered)

    async def _refused_as_it_came(self, exchange: Exchange, model: Any, body: bytes) -> ErrorAnswer | None:
        """What vLLM says of the request as it came, where it refuses that.

        Its words on the rewritten one (how many fields there are, of which kind) would tell that it was rewritten.
        """
        path, headers = _path(exchange.scope), self._own_headers(exchange)
        with contextlib.suppress(TimeoutError, GuardError):
            async with asyncio.timeout(REFUSED_AT_ONCE_S) as limit:
                async with self._upstream.open(
                    "POST", path, headers, body, model=model, affinity=exchange.affinity
                ) as response:
                    if response.status in REFUSALS:
                        # Once more as long for its words.
                        now = asyncio.get_running_loop().time()
                        return await _error(response, lambda: limit.reschedule(now + REFUSED_AT_ONCE_S))
                    if response.content_type == "text/event-stream" and (told := await _only_an_error(response)):
                        return response.status, response_headers(response), told
                    # It is answered, and nobody reads the answer: leaving it ends it.
        return None

    async def _relay_watched(self, exchange: Exchange, response: Response, answer: Answer) -> None:
        """Relay what the watch lets out. Leaving before the upstream's end aborts it."""
        headers = [(name, value) for name, value in response_headers(response) if name != b"content-length"]
        encoded = response.header(b"content-encoding").lower() not in ("", "identity")
        try:
            if encoded or not (exchange.streamed or response.content_type.endswith("json")):
                answer.unwatchable("an answer that is neither JSON nor a stream of events, or is compressed")
                await exchange.start(response.status, headers)
                await _relay(exchange, response)
            elif exchange.streamed:
                await exchange.start(response.status, headers)
                async for chunk in response.chunks():
                    exchange.heard()
                    for piece in answer.feed(chunk):
                        if answer.cut:
                            # Before the end is sent: a client that reads slowly must not keep vLLM at work.
                            response.close()
                        exchange.last = piece if NUMBERED in piece else exchange.last
                        await exchange.send({"type": "http.response.body", "body": piece, "more_body": True})
                    if answer.cut:
                        break
                for piece in answer.end():
                    await exchange.send({"type": "http.response.body", "body": piece, "more_body": True})
                await exchange.send({"type": "http.response.body", "body": b""})
            else:
                payload = await self._whole(response, answer, exchange.heard)
                await exchange.start(response.status, [*headers, (b"content-length", str(len(payload)).encode())])
                await exchange.send({"type": "http.response.body", "body": payload})
        finally:
            self._count_hits(exchange, answer)

    async def _whole(self, response: Response, answer: Answer, heard: Callable[[], None]) -> bytes:
        raw = await response.read(MAX_WHOLE_BYTES, heard)
        if raw is None:
            raise UpstreamFailed("the model server's answer is too long to be watched", code="too_long")
        return await self._aside(raw, answer.whole, raw)

    def _count_hits(self, exchange: Exchange, answer: Answer) -> None:
        """Count what was found in the answer, and put it on record: how often, never what."""
        if not answer.hits or exchange.watched is None:
            return
        for policy in exchange.watched.policies:
            if (hits := answer.hits[policy.name]) and policy.watching is not None:
                self._metrics.watch_hits.labels(policy.name, policy.watching.on_hit).inc(hits)
        self._audit.put({
            "time": time.time(),
            "request_id": exchange.request_id,
            "endpoint": exchange.endpoint,
            "watch": dict(answer.hits),
            "cut": answer.cut,
        })  # fmt: skip

    def _record(
        self, exchange: Exchange, judged: Judged, outcome: Outcome | None, action: str, note: str | None
    ) -> None:
        model = str(judged.body.get("model", ""))
        record: dict[str, Any] = {
            "time": time.time(),
            "request_id": exchange.request_id,
            "endpoint": exchange.endpoint,
            # Only what looks like a model's name: the field is the client's to write anything into.
            "model": model if MODEL_NAME.fullmatch(model) else None,
            "action": action,
            "note": note,
        }
        if exchange.key is not None:
            record["key"] = exchange.key.name
        if outcome is not None:
            record["policies"] = [_finding(f, judged) for f in outcome.verdict.findings]
            record["judge_ms"] = round(outcome.judge_ms, 3)
            record["rewrite_ms"] = round(outcome.rewrite_ms, 3)
        record["decided_ms"] = round((time.perf_counter() - exchange.started) * 1e3, 3)
        if self._settings.audit_prompts:
            record["texts"] = {piece.place: piece.text for piece in judged.pieces}
        self._audit.put(record)


async def _error(response: Response, heard: Callable[[], None]) -> ErrorAnswer:
    """An error that the upstream answers, read whole; one that is too long is left without a body."""
    raw = await response.read(MAX_ERROR_BYTES, heard)
    if raw is None:
        return response.status, [], b""
    return response.status, response_headers(response), raw


async def _only_an_error(response: Response) -> bytes | None:
    """A stream that is an error and nothing else: so vLLM's server tells what its engine refuses. None: another one."""
    raw, begun = b"", False
    async for chunk in response.chunks():
        raw += chunk
        first, parted, rest = raw.partition(b"\n\n")
        if parted and not begun:
            try:
                told = orjson.loads(first.partition(b"data: ")[2])
            except orjson.JSONDecodeError:
                return None
            if not (isinstance(told, dict) and isinstance(told.get("error"), dict)):
                return None
            begun = True
        # Whatever else came with it could be an answer that nobody guarded.
        if not STREAM_END.startswith(rest.strip()) or len(raw) > MAX_ERROR_BYTES:
            return None
    return raw if begun else None


async def _tell(exchange: Exchange, answered: ErrorAnswer) -> None:
    """Answer with the upstream's error, in the form that the route's clients read. No model said anything in it."""
    status, headers, raw = answered
    said = None
    if status >= 400 and not any(name == b"content-encoding" for name, _ in headers):
        said = errors.retold(status, raw, errors.dialect(exchange.scope["path"]), exchange.request_id)
    if said is not None:
        headers = [pair for pair in headers if pair[0] not in (b"content-type", b"content-length")]
        headers += [(b"content-type", b"application/json"), (b"content-length", str(len(said)).encode())]
    await exchange.start(status, headers)
    await exchange.send({"type": "http.response.body", "body": raw if said is None else said})


def _path(scope: Scope) -> bytes:
    """Path and query for upstream, in the route's own spelling: another one could be another route to vLLM."""
    path: str = scope["path"]
    query: bytes = scope["query_string"]
    return path.encode() + (b"?" + query if query else b"")


async def _relay(exchange: Exchange, response: Response) -> None:
    """The answer's bytes as they come."""
    numbered = exchange.streamed and exchange.endpoint == "responses"
    async for chunk in response.chunks():
        exchange.heard()
        if numbered and NUMBERED in chunk:
            exchange.last = chunk
        await exchange.send({"type": "http.response.body", "body": chunk, "more_body": True})
    await exchange.send({"type": "http.response.body", "body": b""})


def _readable(headers: list[tuple[bytes, bytes]], answer: Answer | None) -> list[tuple[bytes, bytes]]:
    """The request's headers, without leave to compress an answer that has to be read."""
    if answer is None:
        return headers
    return [
        *((name, value) for name, value in headers if name != b"accept-encoding"),
        (b"accept-encoding", b"identity"),
    ]


def _told(outcome: Outcome) -> list[tuple[bytes, bytes]]:
    """The verdict as headers, the policies as a structured-field dictionary (RFC 9651); names and numbers only."""
    said = [
        f"{finding.policy.name};mode={finding.policy.mode};flagged=?{finding.flagged:d};score={finding.score.score:.4f}"
        f";threshold={finding.threshold:.4f};seen={finding.score.characters_seen};present={finding.score.characters_present}"
        for finding in outcome.verdict.findings
    ]
    return [(b"x-lethe-action", outcome.action.encode()), (b"x-lethe-policies", ", ".join(said).encode())]


def _finding(finding: Finding, judged: Judged) -> dict[str, Any]:
    policy = finding.policy
    return {
        "policy": policy.name,
        "hash": policy.hash,
        "mode": policy.mode,
        "action": policy.action,
        **finding.facts(judged.place(finding.score.text)),
    }
