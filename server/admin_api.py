"""The admin port: metrics, readiness in full, and the API by which policies are changed.

It has an address of its own (LETHE_ADMIN_HOST, LETHE_ADMIN_PORT), loopback by default, and a key of its own
(LETHE_ADMIN_KEY). Without a key there is no API, only metrics, health and readiness. No answer and no audit
record repeats a text that was to be forgotten.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict, Field, SecretStr
from starlette.exceptions import HTTPException
from starlette.routing import Route

from lethe.server import errors
from lethe.server.errors import BadRequest, GuardError, NotFound, Overloaded, Unauthorized
from lethe.server.http import openapi
from lethe.server.observability.metrics import Metrics
from lethe.server.policy.schema import Policy, PolicyError, with_mode
from lethe.server.policy_store import forget_requests
from lethe.server.policy_store.seed_artifact import NoBase
from lethe.server.policy_store.store import Live, Unusable
from lethe.server.policy_store.versions import HistoryError, Version, write
from lethe.server.process import sockets
from lethe.server.settings import Settings, SettingsError
from lethe.server.upstream.pool import Replicas

if TYPE_CHECKING:
    from lethe.server.process.workers import Worker

MODES: dict[str, Literal["enforce", "shadow", "off"]] = {"enable": "enforce", "shadow": "shadow", "disable": "off"}
MOST_ROWS = 10_000


class Conflict(GuardError):
    status = 409
    kind = "conflict_error"


class Row(BaseModel):
    """One item: a fact, or a document."""

    model_config = ConfigDict(extra="forbid")

    prompt: str | None = None
    answer: str | None = None
    text: str | None = None


class Forget(BaseModel):
    """What is to be forgotten, under which policy; action and models are for a new one."""

    model_config = ConfigDict(extra="forbid")

    policy: str = Field(min_length=1, max_length=64)
    items: list[Row] = Field(min_length=1, max_length=MOST_ROWS)
    action: Literal["corrupt", "penalize", "both", "refuse"] | None = None
    models: list[str] | None = Field(default=None, min_length=1)


class Rollback(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: int = Field(ge=1)


def create_admin(
    settings: Settings,
    metrics: Metrics,
    replicas: Replicas,
    live: Live | None,
    public: dict[str, Any] | None = None,
    worker: Worker | None = None,
) -> FastAPI:
    """The admin port's app. live None (a guard that tests brought): no API. public: the other port's document.

    worker: where several serve, the one whose app this is.
    """
    app = _App(title="Lethe admin", docs_url=None, redoc_url=None, redirect_slashes=False)

    @app.get("/public/openapi.json")
    async def public_document() -> dict[str, Any]:
        return public or {}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def prometheus() -> Response:
        if worker is not None:
            await asyncio.to_thread(worker.refresh_gauges)
        return Response(metrics.render(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready", responses={503: {"description": "No replica of the model server is there."}})
    async def ready() -> JSONResponse:
        facts = replicas.facts(in_full=True)
        return JSONResponse(facts, status_code=200 if facts["ready"] else 503)

    if settings.admin_key is not None and live is not None:
        app.include_router(_api(settings.admin_key, live, worker))

    @app.exception_handler(HTTPException)
    async def not_served(request: Request, error: HTTPException) -> Response:
        if error.status_code == 405:
            # Starlette tells the methods of the first route of a path alone.
            there = [
                route for route in app.routes if isinstance(route, Route) and route.matches(request.scope)[0].value
            ]
            allowed = ", ".join(sorted({method for route in there for method in route.methods or ()}))
            made = NotFound(f"{request.method} is not served here", code="method_not_allowed")
            return _answered(made, 405, {"allow": allowed})
        off = "; LETHE_ADMIN_KEY is not set, so there is no admin API" if settings.admin_key is None else ""
        return _answered(NotFound(f"not served here{off}", code="unknown_route"), error.status_code)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        # Place and reason only: the value is what is to be forgotten.
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        return _answered(BadRequest(f"{place}: {first['msg']}", param=place, code="invalid_request"))

    @app.exception_handler(GuardError)
    async def failed(request: Request, error: GuardError) -> Response:
        return _answered(error)

    return app


class _App(FastAPI):
    """FastAPI's own document would promise its own error bodies."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            made = get_openapi(title=self.title, version=version("lethe-gateway"), routes=self.routes)
            schemas = made.setdefault("components", {}).setdefault("schemas", {})
            schemas["Error"] = openapi.ERROR
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            for operations in made["paths"].values():
                for operation in operations.values():
                    operation["responses"].pop("422", None)
            self.openapi_schema = made
        return self.openapi_schema


def _answered(error: GuardError, status: int | None = None, more: Mapping[str, str] | None = None) -> Response:
    headers = {**(more or {}), **{name.decode(): value.decode() for name, value in errors.headers(error)}}
    return Response(errors.body(error), status_code=status or error.status, headers=headers)


def _api(key: SecretStr, live: Live, worker: Worker | None) -> APIRouter:
    digest = hashlib.sha256(key.get_secret_value().encode()).digest()
    # Told apart in the audit trail, and no help in guessing the key.
    name = f"admin:{digest.hex()[:8]}"

    async def known(request: Request) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        tried = hashlib.sha256(given.strip().encode()).digest()
        if not hmac.compare_digest(tried, digest) or scheme.lower() != "bearer":
            raise Unauthorized("give the admin key: 'Authorization: Bearer …'", code="invalid_admin_key")

    failures: dict[int | str, dict[str, Any]] = {
        error.status: openapi.failure(error) for error in (BadRequest, Unauthorized, NotFound, Conflict, Overloaded)
    }
    scheme = HTTPBearer(auto_error=False, description="LETHE_ADMIN_KEY")
    api = APIRouter(prefix="/admin", dependencies=[Depends(scheme), Depends(known)], responses=failures)

    def everywhere(answer: dict[str, Any]) -> dict[str, Any]:
        """The answer to a change, once it holds in all workers."""
        ended = worker.follow(live) if worker is not None else []
        return {**answer, "workers_ended": ended} if ended else answer

    # Plain functions: what reads and writes files runs in threads, beside the requests.
    @api.get("/policies")
    def list_policies() -> dict[str, Any]:
        return {
            "version": live.version and live.version.number,
            "failed": live.failed,
            "policies": [_facts(live, policy) for policy in live.loaded.policies],
        }

    @api.get("/policies/{policy}")
    def show_policy(policy: str) -> dict[str, Any]:
        found = _found(live, policy)
        return {**_facts(live, found), "file": Path(found.source).read_text(encoding="utf-8")}

    @api.post("/policies/{policy}/{change}")
    def change_policy(policy: str, change: Literal["enable", "shadow", "disable"]) -> dict[str, Any]:
        with _told():
            live.change(name, lambda: _set_mode(_found(live, policy), MODES[change]))
        return everywhere({"version": live.version and live.version.number, **_facts(live, _found(live, policy))})

    @api.get("/versions")
    def list_versions() -> dict[str, Any]:
        return {"version": live.version and live.version.number, "versions": [told(v) for v in live.history.versions()]}

    @api.post("/rollback")
    def rollback(body: Rollback) -> dict[str, Any]:
        with _told():
            live.rollback(body.version, name)
        return everywhere({"version": live.version and live.version.number, "restores": body.version})

    @api.get("/forget")
    def list_requests() -> dict[str, Any]:
        shown = ("id", "time", "by", "policy")
        return {
            "requests": [
                {**{key: getattr(noted, key) for key in shown}, "items": len(noted.items)}
                for noted in forget_requests.ledger(live).all()
            ]
        }

    @api.post("/forget")
    def forget_items(body: Forget) -> dict[str, Any]:
        rows = [row.model_dump(exclude_none=True) for row in body.items]
        with _told():
            done = forget_requests.forget(
                live, forget_requests.Wanted(body.policy, rows, body.action, body.models), name
            )
        return everywhere(done)

    @api.delete("/forget/{id}")
    def take_back(id: Annotated[str, Field(max_length=64)]) -> dict[str, Any]:
        with _told():
            done = forget_requests.undo(live, id, name)
        return everywhere(done)

    return api


def told(version: Version) -> dict[str, Any]:
    """What is said about a version."""
    return {
        "number": version.number,
        "time": version.time,
        "by": version.by,
        "hash": version.hash,
        "restores": version.restores,
        "policies": sorted(version.policies),
    }


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """What goes wrong, as answers."""
    try:
        yield
    except (forget_requests.Unknown, HistoryError) as error:
        raise NotFound(str(error), code="not_found") from error
    except NoBase as error:
        raise Overloaded(str(error), code="not_ready", retry_after_s=15) from error
    except (forget_requests.Conflict, Unusable, PolicyError, SettingsError) as error:
        raise Conflict(str(error), code="conflict") from error
    except ValueError as error:
        raise BadRequest(str(error), code="invalid_request") from error
    except OSError as error:
        raise Conflict(f"{error.filename}: {error.strerror}", code="not_writable") from error


def _found(live: Live, name: str) -> Policy:
    for policy in live.loaded.policies:
        if policy.name == name:
            return policy
    raise NotFound("there is no policy of that name", code="unknown_policy")


def _facts(live: Live, policy: Policy) -> dict[str, Any]:
    facts: dict[str, Any] = policy.model_dump(include={"name", "artifact", "mode", "action", "models", "hash"})
    guard = live.loaded.guard
    if policy.name in guard.policies:
        facts["threshold"] = guard.policies[policy.name][1]
        facts["items"] = len(guard.artifacts[policy.artifact].live)
    return facts


def _set_mode(policy: Policy, mode: str) -> None:
    if policy.mode != mode:
        write(Path(policy.source), with_mode(policy, mode))


class _Server(uvicorn.Server):
    """A second server in the process: signals are the first one's to receive."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def serving(settings: Settings, app: FastAPI, worker: Worker | None = None) -> AsyncIterator[None]:
    """The app on the admin port, as long as the gateway runs. Raises SettingsError when the port is taken.

    worker: one of several, the first of which serves it. Nobody else has the socket: when that one dies, what was sent
    to it and not yet read must not be carried out by the next.
    """
    if settings.admin_address is None or not (worker is None or worker.is_first):
        yield
        return
    with sockets.bound(*settings.admin_address, "LETHE_ADMIN_PORT", listen=True) as listening:
        server = _Server(
            uvicorn.Config(app, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=1)
        )
        running = asyncio.ensure_future(server.serve(sockets=[listening]))
        try:
            yield
        finally:
            server.should_exit = True
            await running
