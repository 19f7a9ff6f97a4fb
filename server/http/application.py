"""The ASGI application of the public port: routes, health, readiness and errors outside the gateway's routes.

Requests for the model server bypass FastAPI's routing and go straight to the gateway (`server/http/gateway.py`):
routing would cost more CPU time than relaying them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from lethe.server import errors
from lethe.server.admission.cross_origin import CrossOrigin
from lethe.server.errors import NotFound
from lethe.server.http.gateway import Gateway
from lethe.server.observability.metrics import Metrics
from lethe.server.requests.fields import Endpoint
from lethe.server.requests.routes import ENDPOINT_OF_ROUTE, ROUTES
from lethe.server.upstream.pool import ReplicaPool

# Paths of the model server. vLLM redirects to them from the same path with a slash at its end.
_PATHS = frozenset(path for path, _, _ in ROUTES)


class GatewayApplication(FastAPI):
    """A FastAPI application that passes requests for the model server to `state.gateway`.

    lifespan must set `state.gateway` and `state.replicas`.
    """

    def __init__(
        self,
        lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]],
        metrics: Metrics,
        cross_origin: CrossOrigin | None = None,
    ) -> None:
        super().__init__(
            title="Lethe",
            lifespan=lifespan,
            docs_url=None,
            redoc_url=None,
            openapi_url=None,
            redirect_slashes=False,
        )
        self.state.metrics = metrics
        self._cross_origin = cross_origin or CrossOrigin("")
        for path, method, endpoint in ROUTES:
            self.router.routes.append(Route(path, _GatewayRoute(self, path, endpoint), methods=[method]))
        _add_own_routes(self, metrics)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._cross_origin:
            if await self._cross_origin.answer_preflight(scope, receive, send):
                return
            send = self._cross_origin.sending_headers(scope, send)
        if scope["type"] == "http" and (scope["path"], scope["method"]) in ENDPOINT_OF_ROUTE:
            gateway: Gateway = self.state.gateway
            await gateway.serve(scope, receive, send, ENDPOINT_OF_ROUTE[scope["path"], scope["method"]])
        elif scope["type"] == "http" and scope["path"].rstrip("/") in _PATHS and scope["path"][-1] == "/":
            await _redirect_without_slash(scope, send)
        else:
            await super().__call__(scope, receive, send)


async def _redirect_without_slash(scope: Scope, send: Send) -> None:
    """Answer as vLLM does a path with a slash at its end: 307, to the path without it.

    The location is relative, so that it is right behind a proxy too.
    """
    query: bytes = scope["query_string"]
    location = scope["path"].rstrip("/").encode() + (b"?" + query if query else b"")
    headers = [(b"location", location), (b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 307, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


class _GatewayRoute:
    """One route for Starlette, which answers 405 to other methods.

    `GatewayApplication` already serves every listed path and method, so this runs only for what Starlette also matches:
    HEAD on a GET route, or a path that ends with a line break.
    """

    def __init__(self, app: FastAPI, path: str, endpoint: Endpoint | None) -> None:
        self._app = app
        self._path = path
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != self._path:
            raise HTTPException(404)  # Starlette's routes also match a path that ends with a line break
        gateway: Gateway = self._app.state.gateway
        await gateway.serve(scope, receive, send, self._endpoint)


def _add_own_routes(app: FastAPI, metrics: Metrics) -> None:
    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> JSONResponse:
        replicas: ReplicaPool = app.state.replicas
        status = replicas.status(details=False)
        return JSONResponse(status, status_code=200 if status["ready"] else 503)

    @app.exception_handler(HTTPException)
    async def answer_unknown_route(request: Request, error: HTTPException) -> Response:
        if error.status_code == 404:
            metrics.requests.labels("unknown", 404).inc()
            message, code = f"{request.method} {request.url.path[:200]} is not served", "unknown_route"
        else:
            message, code = f"{request.method} is not served here", "method_not_allowed"
        headers, body = errors.error_response(NotFound(message, code=code), request.url.path)
        all_headers = {**(error.headers or {}), **{name.decode(): value.decode() for name, value in headers}}
        return Response(body, status_code=error.status_code, headers=all_headers)
