"""The admin port: metrics, readiness with details, and the admin API (`server/admin_api.py`).

It has an address of its own (LETHE_ADMIN_HOST, LETHE_ADMIN_PORT), loopback by default.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any, cast

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.routing import Route

from lethe.server import errors
from lethe.server.admin_api import admin_routes
from lethe.server.admin_limits import AdminLimits, admin_uvicorn_options
from lethe.server.errors import BadRequest, GatewayError, NotFound
from lethe.server.http import openapi
from lethe.server.observability.metrics import Metrics
from lethe.server.policy_store.store import PolicyStore
from lethe.server.process import sockets
from lethe.server.process.workers import Worker
from lethe.server.settings import Settings
from lethe.server.upstream.pool import ReplicaPool


def create_admin_app(
    settings: Settings,
    metrics: Metrics,
    replicas: ReplicaPool,
    store: PolicyStore | None,
    public_document: dict[str, Any] | None = None,
    worker: Worker | None = None,
) -> FastAPI:
    """Return the admin port's application.

    store: None in tests that bring their own guard; then there is no admin API. public_document: the OpenAPI document
    of the public port. worker: this process, if it is one of several workers.
    """
    app = AdminApplication(title="Lethe admin", docs_url=None, redoc_url=None, redirect_slashes=False)

    @app.get("/public/openapi.json")
    async def show_public_document() -> dict[str, Any]:
        return public_document or {}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def show_metrics() -> Response:
        if worker is not None:
            await asyncio.to_thread(worker.refresh_gauges)
        return Response(metrics.render(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready", responses={503: {"description": "No replica of the model server is ready."}})
    async def ready() -> JSONResponse:
        status = replicas.status(details=True)
        return JSONResponse(status, status_code=200 if status["ready"] else 503)

    if settings.admin_key is not None and store is not None:
        app.include_router(admin_routes(settings.admin_key, store, worker))

    @app.exception_handler(HTTPException)
    async def answer_unknown_route(request: Request, error: HTTPException) -> Response:
        if error.status_code == 405:
            # Starlette names the methods of only the first route of a path.
            routes = [
                route for route in app.routes if isinstance(route, Route) and route.matches(request.scope)[0].value
            ]
            allowed = ", ".join(sorted({method for route in routes for method in route.methods or ()}))
            not_allowed = NotFound(f"{request.method} is not served here", code="method_not_allowed")
            return _error_response(not_allowed, 405, {"allow": allowed})
        hint = "; LETHE_ADMIN_KEY is not set, so there is no admin API" if settings.admin_key is None else ""
        return _error_response(NotFound(f"not served here{hint}", code="unknown_route"), error.status_code)

    @app.exception_handler(RequestValidationError)
    async def answer_invalid_body(request: Request, error: RequestValidationError) -> Response:
        # Place and reason only: the value may be a text to forget.
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        return _error_response(BadRequest(f"{place}: {first['msg']}", param=place, code="invalid_request"))

    @app.exception_handler(GatewayError)
    async def answer_error(request: Request, error: GatewayError) -> Response:
        return _error_response(error)

    return app


class AdminApplication(FastAPI):
    """A FastAPI application whose OpenAPI document describes this project's error bodies instead of FastAPI's."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            document = get_openapi(title=self.title, version=version("lethe-gateway"), routes=self.routes)
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            schemas["Error"] = openapi.ERROR
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            for operations in document["paths"].values():
                for operation in operations.values():
                    operation["responses"].pop("422", None)
            self.openapi_schema = document
        return self.openapi_schema


def _error_response(
    error: GatewayError, status: int | None = None, extra_headers: Mapping[str, str] | None = None
) -> Response:
    error_headers = {name.decode(): value.decode() for name, value in errors.error_headers(error)}
    headers = {**(extra_headers or {}), **error_headers}
    return Response(errors.error_body(error), status_code=status or error.status, headers=headers)


class AdminServer(uvicorn.Server):
    """A second uvicorn server in the process: only the first one receives signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def serve_admin_port(
    settings: Settings, app: FastAPI, metrics: Metrics, worker: Worker | None = None
) -> AsyncIterator[None]:
    """Serve the application on the admin port inside the block. Raises SettingsError if the port is in use.

    Of several workers, only the first serves it, with a socket that no other has: if it dies, requests that it has not
    read must not be executed by the next one.
    """
    if settings.admin_address is None or not (worker is None or worker.is_first):
        yield
        return
    with sockets.bind_socket(*settings.admin_address, "LETHE_ADMIN_PORT", listen=True) as listening:
        config = uvicorn.Config(
            cast(Any, AdminLimits(app, settings, metrics)),
            log_config=None,
            # Seconds for open requests at shutdown, chosen: requests of the admin port are short.
            timeout_graceful_shutdown=1,
            lifespan="off",
            **admin_uvicorn_options(settings, metrics),
        )
        server = AdminServer(config)
        serving = asyncio.ensure_future(server.serve(sockets=[listening]))
        try:
            yield
        finally:
            server.should_exit = True
            await serving
