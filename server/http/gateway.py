"""One request, one pass: read → decide → record → check with vLLM where needed → forward → relay.

Raw ASGI under the FastAPI app: the relay has to notice at every stage that the client disconnects, and passes bytes on
as they come. Everything that can change the status happens before the first byte of the response, unless keep-alive
comments are on (`LETHE_SSE_COMMENT_S`): then 200 may be sent first, and a later error is an event.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

from prometheus_client import Counter, Histogram
from starlette.types import Receive, Scope, Send

from lethe.server import errors
from lethe.server.admission.api_keys import CREDENTIALS, Keyring
from lethe.server.admission.concurrency import RequestLimits
from lethe.server.admission.connection_limits import DISCONNECT_CALLBACK
from lethe.server.admission.rate_limits import KeyLimits
from lethe.server.errors import GatewayError, Overloaded, Refused, Unreadable
from lethe.server.guard.decision import Decision, Forward, Reply
from lethe.server.guard.executor import JudgeExecutor
from lethe.server.guard.guard import Guard
from lethe.server.guard.parsed_request import ParsedRequest
from lethe.server.http.audit_records import debug_headers, decision_record, filter_record
from lethe.server.http.body_reader import check_content_length, read_body
from lethe.server.http.deadlines import Deadlines, watch_deadlines
from lethe.server.http.exchange import ClientDisconnected, Exchange, Headers, RequestContext, ResponseWriter
from lethe.server.http.keep_alive import send_comments
from lethe.server.http.model_list import model_list
from lethe.server.http.original_request import (
    ERROR_WITHOUT_REASON,
    INVALID_REQUEST,
    OriginalRequest,
    UpstreamError,
    read_error,
    rejection_of_original,
    send_error,
)
from lethe.server.http.refusal_answer import RefusalAnswer, has_refusal_answer, wants_stream
from lethe.server.http.relay import relay, relay_filtered, without_compression
from lethe.server.http.upstream_request import UpstreamRequest, planned_request
from lethe.server.http.worker_thread import INLINE_BYTES, LargeBodyThread
from lethe.server.observability import loop_lag, malloc
from lethe.server.observability.audit import AuditLog
from lethe.server.observability.metrics import Metrics
from lethe.server.output.filter import ResponseFilter
from lethe.server.policy.schema import Policy
from lethe.server.requests import request_body
from lethe.server.requests.extract import check_no_refused_field
from lethe.server.requests.fields import RELAYED, Endpoint
from lethe.server.requests.validation import may_be_invalid, with_plain_values
from lethe.server.settings import Settings
from lethe.server.upstream.http1 import UpstreamResponse
from lethe.server.upstream.pool import ReplicaPool, conversation_digest

log = logging.getLogger("lethe.gateway")


class Gateway:
    """Serves the judged routes, and the unjudged ones (`RELAYED`)."""

    def __init__(
        self,
        settings: Settings,
        pool: ReplicaPool,
        guard: Guard,
        audit: AuditLog,
        metrics: Metrics,
        keys: Keyring | None = None,
        limits: KeyLimits | None = None,
    ) -> None:
        self._settings = settings
        self._pool = pool
        # Replaced as a whole when policies change; a request keeps the one that it began with.
        self.guard = guard
        self._audit = audit
        self._metrics = metrics
        self._keys = keys
        self._limits = RequestLimits(settings, metrics, limits)
        self._judge_executor = JudgeExecutor(
            settings.judge_threads,
            max_waiting=settings.judge_queue,
            wait_s=settings.judge_wait_s,
            timeout_s=settings.judge_timeout_s,
            cpu_s=settings.judge_cpu_s,
            metrics=metrics,
        )
        self._large_body_thread = LargeBodyThread()
        self._in_flight: set[Exchange] = set()
        metrics.compute(metrics.in_flight, lambda: len(self._in_flight))
        self._finished_metrics: dict[tuple[str, int | str], tuple[Counter, Histogram]] = {}

    async def run(self) -> None:
        """Watch deadlines, the keys' file and the event loop until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(watch_deadlines(self._in_flight, self._settings, self._metrics))
            group.create_task(loop_lag.measure_loop_lag(self._metrics))
            group.create_task(malloc.trim_periodically())
            if self._settings.sse_comment_s:
                group.create_task(send_comments(self._in_flight, self._settings.sse_comment_s))
            if self._keys is not None:
                self._keys.warn_of_unknown_policies(self.guard.policy_names)
                group.create_task(self._keys.watch())

    def close(self) -> None:
        """Start no more work in threads."""
        self._judge_executor.close()
        self._large_body_thread.close()

    # Answering one request, from top to bottom ----------------------------------------------------------------

    async def serve(self, scope: Scope, receive: Receive, send: Send, endpoint: Endpoint | None) -> None:
        """Answer one request.

        endpoint None: `/v1/models`, which has no body. Endpoints in `RELAYED` are parsed and checked, but not judged.
        """
        exchange = self._open(scope, send, endpoint)
        try:
            await self._answer(exchange, receive)
        except asyncio.CancelledError:
            await self._after_cancellation(exchange)
        finally:
            exchange.deadlines.finish()
            self._in_flight.discard(exchange)
            self._count(exchange)

    def _open(self, scope: Scope, send: Send, endpoint: Endpoint | None) -> Exchange:
        started = time.perf_counter()
        request_id = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        if not (0 < len(request_id) <= 128 and request_id.isascii() and request_id.isprintable()):
            request_id = errors.new_request_id()
        task = asyncio.current_task()
        assert task is not None
        context = RequestContext(scope, endpoint, request_id, started)
        deadlines = Deadlines(task, self._settings.request_timeout_s, started)
        exchange = Exchange(context, deadlines, ResponseWriter(context, send))
        self._in_flight.add(exchange)
        scope[DISCONNECT_CALLBACK] = deadlines.on_disconnect
        return exchange

    async def _answer(self, exchange: Exchange, receive: Receive) -> None:
        """Answer the request, or report the error that ends it."""
        try:
            if self._keys is not None:
                key = self._keys.identify(exchange.context.headers)
                exchange = dataclasses.replace(exchange, context=dataclasses.replace(exchange.context, key=key))
            async with self._admitted(exchange, receive) as raw:
                await self._serve_body(exchange, raw)
        except ClientDisconnected:
            self._metrics.client_gone.labels("reading").inc()
        except GatewayError as error:
            await exchange.response.fail(error)
        except Exception:
            if exchange.response.status:
                raise
            log.exception("request %s failed", exchange.context.request_id)
            await exchange.response.fail(GatewayError("internal error"))

    @contextlib.asynccontextmanager
    async def _admitted(self, exchange: Exchange, receive: Receive) -> AsyncIterator[bytes]:
        """Read the body after the checks that need none of it: announced size and the key's rate.

        The request holds its memory and its concurrency slot until the `async with` block ends. Raises GatewayError.
        """
        limit = self._settings.max_body_bytes
        check_content_length(exchange.context.headers, limit)
        memory = self._limits.memory.reservation(exchange.context.client_name, exchange.deadlines.give_up)
        with self._limits.key_limits.admit(exchange.context.key), memory:
            exchange.deadlines.enter("reading", exchange.context.started + self._settings.body_timeout_s)
            raw = await read_body(receive, limit, memory.take)
            memory.complete()
            exchange.deadlines.enter("waiting")
            async with self._limits.concurrency:
                yield raw

    async def _serve_body(self, exchange: Exchange, raw: bytes) -> None:
        """Read, decide, check with vLLM where needed, and forward. Raises GatewayError to answer with."""
        began = time.perf_counter()
        if exchange.context.endpoint is None:
            models = await model_list(self._pool, exchange.context, self._upstream_headers(exchange))
            if models is None:
                await self._forward(exchange, UpstreamRequest(raw or None))
            else:
                await exchange.response.send_json(models)
            return
        try:
            guard, request = await self._parse_request(exchange, raw, exchange.context.endpoint)
        except Unreadable as unreadable:
            rejection = await self._rejection_of_unreadable(exchange, raw, exchange.context.endpoint, unreadable)
            if rejection is None:
                raise
            await send_error(exchange, rejection)
            return
        if self._settings.sse_comment_s and wants_stream(request.endpoint, request.body):
            exchange.response.allow_comments()
        affinity = conversation_digest(request.body) if self._pool.has_several else None
        policies = guard.policies_for(request.model)
        if request.endpoint in RELAYED or not policies:
            await self._forward(exchange, UpstreamRequest(raw, request.model, affinity))
            return
        if has_refusal_answer(request.endpoint):
            exchange.response.refusal_answer = RefusalAnswer(request.endpoint, request.body)
        # Before the guard: where no replica can answer, a flagged request must look like any other, and a guard that
        # needs a replica must not seem to fail.
        with self._upstream_errors_counted():
            self._pool.check_available(request.model)
        guard.check_supported(request)
        decision = await self._decide(exchange, guard, request, len(raw))
        original = OriginalRequest(request.model, raw, affinity)
        rejection = await self._vllm_rejection(exchange, request, decision, original)
        if policies.is_enforced and (wait_s := began + self._settings.decision_time_s - time.perf_counter()) > 0:
            # Flagged requests take longer to decide on. The client's disconnect and the deadlines end this wait, too.
            await asyncio.sleep(wait_s)
        if rejection is not None:
            await send_error(exchange, rejection)
            return
        match decision.result:
            case Reply(error) if error.as_answer and request.endpoint == "count_tokens":
                # Its answer is only a number, so it can't hold a refusal, and the number tells only about the client's
                # own text.
                await self._forward(exchange, UpstreamRequest(raw, request.model, affinity))
            case Reply(error):
                # A request that is forwarded would notice if the model server is down since its last check.
                with self._upstream_errors_counted():
                    await self._pool.check_reachable(request.model, affinity)
                raise error
            case Forward() as result:
                await self._forward(exchange, planned_request(guard, request, result, original))

    @contextlib.contextmanager
    def _upstream_errors_counted(self) -> Iterator[None]:
        try:
            yield
        except Refused:
            # The output filter's own decision on an answer that it can't read.
            raise
        except GatewayError as error:
            self._metrics.upstream_errors.labels(error.code).inc()
            raise

    async def _parse_request(self, exchange: Exchange, raw: bytes, endpoint: Endpoint) -> tuple[Guard, ParsedRequest]:
        """The guard that judges this request, and the request with its texts. Raises GatewayError."""
        exchange.deadlines.enter("judging")
        request_body.check_headers(exchange.context.headers)
        guard, key = self.guard, exchange.context.key
        if key is not None:
            guard = guard.restricted_to(key.applicable_policies(guard.policies, guard.policy_names))
        request = await self._large_body_thread.run(len(raw), self._parse, guard, raw, endpoint)
        if key is not None:
            key.check_model(request.body)
        return guard, request

    async def _rejection_of_unreadable(
        self, exchange: Exchange, raw: bytes, endpoint: Endpoint, error: Unreadable
    ) -> UpstreamError | None:
        """vLLM's own error for a request that the gateway can't read.

        Whatever vLLM says, the request is not served: None (vLLM takes it, or doesn't answer in time) means that the
        gateway's error is sent.

        Raises BadRequest for what vLLM must not even be asked about, NotFound for a model that the key may not use.
        """
        body = error.body or self._read_json(raw)
        check_no_refused_field(endpoint, body)
        if exchange.context.key is not None:
            exchange.context.key.check_model(body)
        original = OriginalRequest(body.get("model"), raw, None)
        return await rejection_of_original(exchange, self._pool, self._upstream_headers(exchange), original)

    def _is_doubtful(self, endpoint: Endpoint, raw: bytes) -> bool:
        """Whether vLLM may reject the request as it came.

        That includes a value which the guard had to convert ("5" to 5), since vLLM might not accept the original form.
        """
        body = self._read_json(raw)
        return may_be_invalid(endpoint, body) or with_plain_values(endpoint, body) != body

    def _parse(self, guard: Guard, raw: bytes, endpoint: Endpoint) -> ParsedRequest:
        return guard.parse(endpoint, self._read_json(raw))

    def _read_json(self, raw: bytes) -> dict[str, Any]:
        settings = self._settings
        return request_body.parse(raw, max_depth=settings.max_json_depth, max_values=settings.max_json_values)

    async def _decide(self, exchange: Exchange, guard: Guard, request: ParsedRequest, size: int) -> Decision:
        """The guard's decision, counted and written to the audit trail. size: bytes of the body. Raises Overloaded."""
        decision = await self._run_judge(exchange, guard, request, size)
        if decision.verdict is not None:
            self._metrics.judge_seconds.observe((decision.judge_ms + decision.rewrite_ms) / 1e3)
            self._metrics.actions.labels(decision.action).inc()
            if exchange.context.key is not None and exchange.context.key.debug:
                exchange.response.debug_headers = debug_headers(decision.action, decision.verdict)
        with_texts = self._settings.audit_prompts
        self._audit.put(decision_record(exchange.context, request, decision, with_texts=with_texts))
        return decision

    async def _run_judge(self, exchange: Exchange, guard: Guard, request: ParsedRequest, size: int) -> Decision:
        capabilities = self._pool.capabilities()
        try:
            decision = guard.decide_from_cache(request, capabilities) if size < INLINE_BYTES else None
            if decision is not None:
                return decision
            characters = sum(len(text) for text in request.texts)
            return await self._judge_executor.run(partial(guard.decide, request, capabilities), size=characters)
        except Overloaded:
            # Always 503, also where judging itself was too slow. If overload counted as a failure of the guard, a flood
            # of requests could switch off a guard whose policies say `on_failure: pass`.
            raise
        except Exception as error:
            reason = f"judging failed: {type(error).__name__}"
            log.exception("judging request %s failed", exchange.context.request_id)
        return guard.decide_without_scores(request, capabilities, reason)

    async def _vllm_rejection(
        self, exchange: Exchange, request: ParsedRequest, decision: Decision, original: OriginalRequest
    ) -> UpstreamError | None:
        """vLLM's error for the request as it came, if that may be invalid and the decision must stay hidden.

        An unflagged invalid request gets vLLM's error; a flagged one must get the same.
        """
        if not decision.is_hidden or decision.verdict is None:
            return None
        if not await self._large_body_thread.run(
            len(original.body), self._is_doubtful, request.endpoint, original.body
        ):
            return None
        return await rejection_of_original(exchange, self._pool, self._upstream_headers(exchange), original)

    async def _forward(self, exchange: Exchange, outgoing: UpstreamRequest) -> None:
        """Send the request upstream and relay the answer, whole or streamed alike."""
        sent = time.perf_counter()
        exchange.deadlines.enter("headers", sent + self._settings.first_byte_timeout_s)
        headers = self._upstream_headers(exchange)
        if outgoing.reads_answer:
            headers = without_compression(headers)
        with self._upstream_errors_counted():
            async with self._pool.open(
                exchange.context.method, exchange.context.target, headers, outgoing.payload,
                model=outgoing.model, affinity=outgoing.affinity, needs=outgoing.needs,
            ) as response:  # fmt: skip
                self._metrics.upstream_seconds.observe(time.perf_counter() - sent)
                exchange.deadlines.headers_arrived()
                await self._relay(exchange, outgoing, response)

    async def _relay(self, exchange: Exchange, outgoing: UpstreamRequest, response: UpstreamResponse) -> None:
        """Relay one response: an error, an answer under the output filter, or the bytes as they come."""
        if response.status >= 400:
            await self._relay_error(exchange, outgoing, response)
            return
        is_stream = response.content_type == "text/event-stream"
        exchange.response.streamed = is_stream or exchange.response.streamed  # comments may have begun a stream
        dialect = errors.dialect_of(exchange.context.path)
        filters = outgoing.byte_filters(response, dialect, partial(self._count_hidden_error, exchange))
        if outgoing.response_filter is None:
            await relay(exchange, response, filters)
            return
        try:
            await relay_filtered(exchange, response, outgoing.response_filter, self._large_body_thread, filters)
        finally:
            self._record_hits(exchange, outgoing.response_filter, outgoing.filtering)

    async def _relay_error(self, exchange: Exchange, outgoing: UpstreamRequest, response: UpstreamResponse) -> None:
        """Relay upstream's error; for a rewritten request what vLLM says of the request as it came."""
        error = await read_error(response, exchange.deadlines.body_arrives)
        if outgoing.original is not None and error.status in INVALID_REQUEST:
            headers = self._upstream_headers(exchange)
            rejection = await rejection_of_original(exchange, self._pool, headers, outgoing.original)
            if rejection is None:
                self._count_hidden_error(exchange)
            error = rejection or ERROR_WITHOUT_REASON
        await send_error(exchange, error)

    def _count_hidden_error(self, exchange: Exchange) -> None:
        self._metrics.upstream_errors.labels("rewritten_refused").inc()
        log.warning("request %s: vLLM rejected the rewritten request", exchange.context.request_id)

    def _record_hits(self, exchange: Exchange, response_filter: ResponseFilter, policies: tuple[Policy, ...]) -> None:
        """Count the phrases that the output filter removed, and write the counts to the audit trail."""
        if not response_filter.hits:
            return
        for policy in policies:
            if (hits := response_filter.hits[policy.name]) and policy.output_filter is not None:
                self._metrics.watch_hits.labels(policy.name, policy.output_filter.on_hit).inc(hits)
        self._audit.put(filter_record(exchange.context, response_filter))

    def _upstream_headers(self, exchange: Exchange) -> Headers:
        """The request's headers for upstream. Where the gateway has keys, vLLM gets its own key, never a client's."""
        headers = exchange.context.headers
        if self._keys is None:
            return headers
        headers = [pair for pair in headers if pair[0] not in CREDENTIALS]
        if self._settings.upstream_key is not None:
            headers.append((b"authorization", b"Bearer " + self._settings.upstream_key.get_secret_value().encode()))
        return headers

    # Ending requests early, and counting ----------------------------------------------------------------------

    async def _after_cancellation(self, exchange: Exchange) -> None:
        """The client disconnected, a deadline passed, the upload was too slow, or the server stops."""
        deadlines = exchange.deadlines
        deadlines.finish()
        if deadlines.client_disconnected:
            deadlines.task.uncancel()
            self._metrics.client_gone.labels(deadlines.stage).inc()
        elif deadlines.error is not None:
            deadlines.task.uncancel()
            await exchange.response.fail(deadlines.error)
        else:
            # The time to drain is over. The client gets an error that it understands.
            message = "the gateway is shutting down (LETHE_DRAIN_TIMEOUT_S)"
            await exchange.response.fail(Overloaded(message, code="shutting_down", retry_after_s=1))

    def _count(self, exchange: Exchange) -> None:
        error, response, request = exchange.response.error, exchange.response, exchange.context
        if error is not None:
            self._metrics.refusals.labels(error.code or error.kind).inc()
        labels = request.endpoint_name, response.status or "gone"
        if labels not in self._finished_metrics:
            requests, seconds = self._metrics.requests.labels(*labels), self._metrics.request_seconds
            self._finished_metrics[labels] = requests, seconds.labels(request.endpoint_name)
        requests, duration = self._finished_metrics[labels]
        requests.inc()
        duration.observe(time.perf_counter() - request.started)
