"""Stand-ins for what the real parts won't do on demand: a judge by keyword, an upstream that misbehaves."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from aiohttp import web
from multidict import CIMultiDict

from lethe.classifier.judge import Score
from lethe.evaluation.serving import free_port
from lethe.server.admission.connection_limits import uvicorn_options
from lethe.server.app import create_app
from lethe.server.guard.decision import Decision
from lethe.server.guard.guard import Guard
from lethe.server.guard.parsed_request import ParsedRequest
from lethe.server.observability.metrics import Metrics
from lethe.server.policy.schema import Policy
from lethe.server.settings import Settings
from lethe.server.upstream.capabilities import Capabilities
from lethe.server.upstream.verbatim_index import PROBE_PHRASE, UNKNOWN_INDEX

KEYWORD = "zanzibar"


def score(value: float, *, texts: Sequence[float] = (), asked: tuple[tuple[int, ...], ...] = ((0,),)) -> Score:
    """A score of `value`; `texts` are the single texts' scores."""
    return Score(
        score=value, text=0, view="raw", window=(0, 1), words_logit=0.0, embedding_logit=0.0, cosine=0.0,
        decided_by="lexical", text_scores=tuple(texts) or (value,), window_items=asked, characters_seen=1,
        characters_present=1, windows=1,
    )  # fmt: skip


@dataclass
class KeywordJudge:
    """Scores 1 for a text that holds the keyword. `hold` keeps it judging until it is set."""

    hold: threading.Event | None = None
    error: Exception | None = None
    judged: list[list[str]] = field(default_factory=list)
    begun: threading.Event = field(default_factory=threading.Event)
    remembered: bool = False

    def judge(self, texts: Sequence[str], *, thresholds: Mapping[str, float]) -> dict[str, Score]:
        self.judged.append(list(texts))
        self.begun.set()
        if self.hold is not None:
            self.hold.wait(10)
        if self.error is not None:
            raise self.error
        found = [float(KEYWORD in text.casefold()) for text in texts]
        return {"a": score(max(found, default=0.0), texts=found)}

    def judge_cached(self, texts: Sequence[str], *, thresholds: Mapping[str, float]) -> dict[str, Score] | None:
        """Remembers nothing, unless told to: `remembered`."""
        if not self.remembered:
            return None
        return {"a": score(max((float(KEYWORD in text.casefold()) for text in texts), default=0.0))}


def policy(**given: Any) -> Policy:
    return Policy.model_validate({"name": "p", "artifact": "a", "action": "refuse", **given})


# What the refusal of each API has in it and no other answer of the fakes: chat and completions, messages, responses.
REFUSAL_MARKS = (b'"finish_reason":"content_filter"', b'"stop_reason":"refusal"', b'"type":"refusal"')


def is_refusal(status: int, raw: bytes) -> bool:
    """Whether an answer is a policy's refusal, in any API, whole or streamed."""
    return status == 200 and any(mark in raw for mark in REFUSAL_MARKS)


# What `status_or_refused` says of a refusal.
REFUSED = "refused"


def status_or_refused(status: int, raw: bytes) -> int | str:
    """The status of an answer, or REFUSED where it is a policy's refusal."""
    return REFUSED if is_refusal(status, raw) else status


class GuardWithReplicas(Guard):
    """A guard, and what the replicas can do that it decides for."""

    capabilities = Capabilities()

    def examine(self, request: ParsedRequest) -> Decision:
        return self.decide(request, self.capabilities)


def make_guard(
    *policies: Policy, judge: KeywordJudge | None = None, metrics: Metrics | None = None, **given: Any
) -> GuardWithReplicas:
    return GuardWithReplicas(
        {p.name: (p, 0.5) for p in policies},
        given.pop("artifacts", {}),
        judge or KeywordJudge(),  # type: ignore[arg-type]  # judges by keyword, without an encoder
        metrics or Metrics(),
        max_prompt_chars=given.pop("max_prompt_chars", 100_000),
        **given,
    )


Handler = Callable[["FakeUpstream", web.Request], Awaitable[web.StreamResponse]]


@dataclass
class FakeUpstream:
    """A loopback server that records what it got, answers as `handler` says, and notices who leaves."""

    handler: Handler
    url: str = ""
    bodies: list[bytes] = field(default_factory=list)
    headers: list[CIMultiDict[str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    answers_probes: bool = True

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        if request.path in ("/health", "/metrics"):
            return web.Response()
        if request.method == "GET" and "User-Agent" not in request.headers:
            return await self.handler(self, request)  # the gateway's own question
        body = await request.read()
        is_probe = UNKNOWN_INDEX.encode() in body or PROBE_PHRASE.encode() in body
        if self.answers_probes and is_probe and "User-Agent" not in request.headers:
            return web.json_response({"choices": []})  # the gateway's probe for the plugin, which isn't there
        self.bodies.append(body)
        self.headers.append(request.headers.copy())
        self.paths.append(request.raw_path)
        self.arrived.set()
        try:
            return await self.handler(self, request)
        except (asyncio.CancelledError, ConnectionResetError):
            self.closed.set()
            raise


@contextlib.asynccontextmanager
async def upstream(handler: Handler) -> AsyncIterator[FakeUpstream]:
    fake = FakeUpstream(handler)
    app = web.Application(client_max_size=2**26)
    app.router.add_route("*", "/{path:.*}", fake._serve)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield fake
    finally:
        await runner.cleanup()


@dataclass
class Running:
    url: str
    metrics: Metrics
    port: int

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@contextlib.asynccontextmanager
async def gateway(upstream_url: str, guard: Guard | None = None, **settings: Any) -> AsyncIterator[Running]:
    """The real app behind a real uvicorn on a loopback port."""
    metrics = Metrics()
    ours = {"upstream": upstream_url, "audit": None, "probe_interval_s": 60, "admin_port": 0}
    given = Settings.model_validate({**ours, **settings})
    guard = guard or make_guard(metrics=metrics)
    guard._metrics = metrics
    port = free_port()
    app = create_app(given, guard=guard, metrics=metrics)
    server = uvicorn.Server(
        uvicorn.Config(
            app, host="127.0.0.1", port=port, log_config=None, timeout_graceful_shutdown=1,
            **uvicorn_options(given, metrics),
        )
    )  # fmt: skip
    serving = asyncio.ensure_future(server.serve())
    try:
        deadline = time.monotonic() + 20
        while not server.started and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        assert server.started
        yield Running(f"http://127.0.0.1:{port}", metrics, port)
    finally:
        server.should_exit = True
        await serving
