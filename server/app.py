"""The FastAPI application: routes, health, readiness, and what lives as long as the server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from lethe.server import admin_api, errors
from lethe.server.errors import GuardError, NotFound
from lethe.server.guard.guard import Guard
from lethe.server.http import openapi
from lethe.server.http.api_keys import Keyring
from lethe.server.http.gateway import Gateway
from lethe.server.observability.audit import Audit
from lethe.server.observability.metrics import Metrics
from lethe.server.policy_store import seed_artifact
from lethe.server.policy_store.store import Live
from lethe.server.requests.extract import Endpoint
from lethe.server.settings import Settings, SettingsError, check_exposure
from lethe.server.upstream.pool import Replicas, connections

if TYPE_CHECKING:
    from lethe.server.process.workers import Worker

log = logging.getLogger("lethe")


class _App(FastAPI):
    """FastAPI for what is rare. Requests for the model server go past it: it would cost more than their relay."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (scope["path"], scope["method"]) in RELAYED:
            gateway: Gateway = self.state.gateway
            await gateway.serve(scope, receive, send, RELAYED[scope["path"], scope["method"]])
        else:
            await super().__call__(scope, receive, send)


class _Relayed:
    """A raw ASGI endpoint; `gateway` is there once the lifespan has begun."""

    def __init__(self, app: FastAPI, path: str, endpoint: Endpoint | None) -> None:
        self._app = app
        self._path = path
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != self._path:
            raise HTTPException(404)  # Starlette's routes also match with a line break at the end
        gateway: Gateway = self._app.state.gateway
        await gateway.serve(scope, receive, send, self._endpoint)


def create_app(
    settings: Settings, *, guard: Guard | None = None, metrics: Metrics | None = None, worker: Worker | None = None
) -> FastAPI:
    """The gateway as an ASGI app. Loads policies and artifacts now, so that a fault stops the start.

    guard, metrics: given by tests that bring their own. worker: one of several processes that serve.
    Raises PolicyError, KeysError or SettingsError.
    """
    check_exposure(settings)
    metrics = metrics or Metrics()
    keys = Keyring(settings.keys, metrics) if settings.keys else None
    live = Live(settings, metrics) if guard is None else None
    first = guard or live.loaded.guard  # type: ignore[union-attr]  # one of them is there
    try:
        audit = Audit(settings.audit, metrics, None if worker is None else worker.turns)
    except OSError as error:
        raise SettingsError(f"LETHE_AUDIT = {str(settings.audit)!r}: {error.strerror}") from error

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        replicas = Replicas(connections(settings), first, metrics, interval_s=settings.probe_interval_s)
        limits = None if worker is None else worker.limits()
        gateway = Gateway(settings, replicas, first, audit, metrics, keys, limits)
        app.state.replicas, app.state.gateway = replicas, gateway
        loop = asyncio.get_running_loop()

        def exchange(guard: Guard) -> None:
            # Replicas first: a guard that is asked must know what they can do.
            replicas.serve(guard)
            gateway.guard = guard

        def put_on_record(record: dict[str, Any]) -> None:
            if worker is None or worker.tells(record):
                loop.call_soon_threadsafe(audit.put, record)

        if live is not None:
            live.start(lambda guard: loop.call_soon_threadsafe(exchange, guard), put_on_record)
            if settings.admin_key is not None and (worker is None or worker.is_first):
                seed_artifact.prepare(settings, live.loaded.encoder)
        watching = {asyncio.ensure_future(replicas.run()), asyncio.ensure_future(gateway.run())}
        try:
            async with (
                nullcontext() if worker is None else worker.answering(live, metrics),
                admin_api.serving(
                    settings, admin_api.create_admin(settings, metrics, replicas, live, document, worker), worker
                ),
            ):
                if worker is not None:
                    worker.show_gauges()
                metrics.workers.set(1)
                metrics.worker_starts.inc()
                yield
        finally:
            if live is not None:
                await asyncio.to_thread(live.stop)
            for task in watching:
                task.cancel()
            await asyncio.wait(watching)
            gateway.close()
            await replicas.close()
            audit.close()

    app = _App(
        title="Lethe",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    app.state.metrics = metrics
    document = openapi.document(ROUTES, settings)
    for path, method, endpoint in ROUTES:
        app.router.routes.append(Route(path, _Relayed(app, path, endpoint), methods=[method]))
    _add_own_routes(app, metrics)
    return app


# None: nothing of the request is read. Everything that is not here is answered 404: vLLM's stored responses
# (GET and cancel by id), too, for what they give out was made under the policies of another day.
ROUTES: tuple[tuple[str, str, Endpoint | None], ...] = (
    ("/v1/chat/completions", "POST", "chat"),
    ("/v1/chat/completions/batch", "POST", "batch"),
    ("/v1/completions", "POST", "completions"),
    ("/v1/responses", "POST", "responses"),
    ("/v1/messages", "POST", "messages"),
    ("/v1/messages/count_tokens", "POST", "count_tokens"),
    ("/v1/models", "GET", None),
    ("/v1/embeddings", "POST", "embeddings"),
    ("/v1/score", "POST", "score"),
    ("/score", "POST", "score"),
    ("/v1/rerank", "POST", "rerank"),
    ("/v2/rerank", "POST", "rerank"),
    ("/rerank", "POST", "rerank"),
    ("/pooling", "POST", "pooling"),
    ("/tokenize", "POST", "tokenize"),
    ("/detokenize", "POST", "detokenize"),
)
RELAYED = {(path, method): endpoint for path, method, endpoint in ROUTES}


def _add_own_routes(app: FastAPI, metrics: Metrics) -> None:
    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> JSONResponse:
        replicas: Replicas = app.state.replicas
        facts = replicas.facts(in_full=False)
        return JSONResponse(facts, status_code=200 if facts["ready"] else 503)

    @app.exception_handler(HTTPException)
    async def not_served(request: Request, error: HTTPException) -> Response:
        if error.status_code == 404:
            metrics.requests.labels("unknown", 404).inc()
            made: GuardError = NotFound(
                f"{request.method} {request.url.path[:200]} is not served", code="unknown_route"
            )
        else:
            made = NotFound(f"{request.method} is not served here", code="method_not_allowed")
        headers, payload = errors.answer(made, request.url.path)
        named = {**(error.headers or {}), **{name.decode(): value.decode() for name, value in headers}}
        return Response(payload, status_code=error.status_code, headers=named)
