"""The admin API: list and change policies, restore versions, forget on request.

Only served with a key (LETHE_ADMIN_KEY), on the admin port (`server/admin_port.py`). No response and no audit record
repeats a text that is to be forgotten.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from lethe.server.admin_limits import has_admin_key, invalid_admin_key
from lethe.server.atomic_file import write_atomically
from lethe.server.errors import BadRequest, GatewayError, NotFound, Overloaded, Unauthorized
from lethe.server.http import openapi
from lethe.server.policy.files import with_mode
from lethe.server.policy.schema import Policy, PolicyError
from lethe.server.policy_store.forget_requests import (
    ForgetConflict,
    ForgetRequest,
    UnknownForgetRequest,
    add_forget_request,
    forget_ledger,
    withdraw_forget_request,
)
from lethe.server.policy_store.seed_artifact import SeedArtifactNotReady
from lethe.server.policy_store.store import InvalidPolicyFiles, PolicyStore
from lethe.server.policy_store.versions import HistoryError, Version
from lethe.server.process.workers import Worker
from lethe.server.settings import SettingsError

MODES: dict[str, Literal["enforce", "shadow", "off"]] = {"enable": "enforce", "shadow": "shadow", "disable": "off"}
# Items of one forget request. Chosen: adding them takes about a minute. `lethe fit` is for more.
MAX_ITEMS = 10_000
# Seconds after which a client should retry while the seed artifact is being built; half of what that takes.
SEED_RETRY_S = 15
# Hex digits of the key's hash that name the author of a change in audit records: enough to tell keys apart, and no help
# in guessing one.
AUTHOR_DIGITS = 8


class AdminConflict(GatewayError):
    """The change contradicts the current policies or artifacts, or a file can't be written."""

    status = 409
    kind = "conflict_error"


class ForgetItemBody(BaseModel):
    """One item to forget: a fact (prompt, answer) or a document (text)."""

    model_config = ConfigDict(extra="forbid")

    prompt: str | None = None
    answer: str | None = None
    text: str | None = None


class ForgetBody(BaseModel):
    """What is to be forgotten, under which policy. action and models are for a new policy."""

    model_config = ConfigDict(extra="forbid")

    policy: str = Field(min_length=1, max_length=64)
    items: list[ForgetItemBody] = Field(min_length=1, max_length=MAX_ITEMS)
    action: Literal["corrupt", "penalize", "both", "refuse"] | None = None
    models: list[str] | None = Field(default=None, min_length=1)


class RollbackBody(BaseModel):
    """The version to restore."""

    model_config = ConfigDict(extra="forbid")

    version: int = Field(ge=1)


def admin_routes(key: SecretStr, store: PolicyStore, worker: Worker | None) -> APIRouter:
    """The routes of the admin API. worker: this process, if it is one of several workers."""
    key_digest = hashlib.sha256(key.get_secret_value().encode()).digest()
    author = f"admin:{key_digest.hex()[:AUTHOR_DIGITS]}"

    async def check_key(request: Request) -> None:
        # Checked before, too, ahead of the body (`server/admin_limits.py`).
        if not has_admin_key(request.headers.raw, key):
            raise invalid_admin_key()

    error_schemas: dict[int | str, dict[str, Any]] = {
        error.status: openapi.error_schema(error)
        for error in (BadRequest, Unauthorized, NotFound, AdminConflict, Overloaded)
    }
    scheme = HTTPBearer(auto_error=False, description="LETHE_ADMIN_KEY")
    api = APIRouter(prefix="/admin", dependencies=[Depends(scheme), Depends(check_key)], responses=error_schemas)

    def version_number() -> int | None:
        return store.version.number if store.version is not None else None

    def after_reload(answer: dict[str, Any]) -> dict[str, Any]:
        """The answer to a change, once all workers use it."""
        killed = worker.wait_for_reload(store) if worker is not None else []
        return {**answer, "workers_ended": killed} if killed else answer

    # Plain functions instead of coroutines: FastAPI runs them in threads, because they read and write files.
    @api.get("/policies")
    def list_policies() -> dict[str, Any]:
        policies = [_describe_policy(store, policy) for policy in store.loaded.policies]
        return {"version": version_number(), "failed": store.failure, "policies": policies}

    @api.get("/policies/{policy}")
    def show_policy(policy: str) -> dict[str, Any]:
        shown = _get_policy(store, policy)
        return {**_describe_policy(store, shown), "file": Path(shown.source).read_text(encoding="utf-8")}

    @api.post("/policies/{policy}/{change}")
    def change_policy(policy: str, change: Literal["enable", "shadow", "disable"]) -> dict[str, Any]:
        with _as_http_errors():
            store.change(author, lambda: _set_mode(_get_policy(store, policy), MODES[change]))
        return after_reload({"version": version_number(), **_describe_policy(store, _get_policy(store, policy))})

    @api.get("/versions")
    def list_versions() -> dict[str, Any]:
        return {"version": version_number(), "versions": [_describe_version(v) for v in store.history.versions()]}

    @api.post("/rollback")
    def rollback(body: RollbackBody) -> dict[str, Any]:
        with _as_http_errors():
            store.rollback(body.version, author)
        return after_reload({"version": version_number(), "restores": body.version})

    @api.get("/forget")
    def list_requests() -> dict[str, Any]:
        records = forget_ledger(store).records()
        return {
            "requests": [
                {"id": record.id, "time": record.time, "by": record.by, "policy": record.policy}
                | {"items": len(record.items)}
                for record in records
            ]
        }

    @api.post("/forget")
    def forget_items(body: ForgetBody) -> dict[str, Any]:
        rows = [row.model_dump(exclude_none=True) for row in body.items]
        with _as_http_errors():
            answer = add_forget_request(store, ForgetRequest(body.policy, rows, body.action, body.models), author)
        return after_reload(answer)

    @api.delete("/forget/{id}")
    def withdraw_request(id: Annotated[str, Field(max_length=64)]) -> dict[str, Any]:
        with _as_http_errors():
            answer = withdraw_forget_request(store, id, author)
        return after_reload(answer)

    return api


@contextlib.contextmanager
def _as_http_errors() -> Iterator[None]:
    """Translate errors of a change into those that are answered."""
    try:
        yield
    except (UnknownForgetRequest, HistoryError) as error:
        raise NotFound(str(error), code="not_found") from error
    except SeedArtifactNotReady as error:
        raise Overloaded(str(error), code="not_ready", retry_after_s=SEED_RETRY_S) from error
    except (ForgetConflict, InvalidPolicyFiles, PolicyError, SettingsError) as error:
        raise AdminConflict(str(error), code="conflict") from error
    except ValueError as error:
        raise BadRequest(str(error), code="invalid_request") from error
    except OSError as error:
        raise AdminConflict(f"{error.filename}: {error.strerror}", code="not_writable") from error


def _get_policy(store: PolicyStore, name: str) -> Policy:
    for policy in store.loaded.policies:
        if policy.name == name:
            return policy
    raise NotFound("there is no policy of that name", code="unknown_policy")


def _describe_policy(store: PolicyStore, policy: Policy) -> dict[str, Any]:
    description: dict[str, Any] = policy.model_dump(include={"name", "artifact", "mode", "action", "models", "hash"})
    guard = store.loaded.guard
    if policy.name in guard.policies:
        description["threshold"] = guard.policies[policy.name][1]
        description["items"] = len(guard.artifacts[policy.artifact].live_items)
    return description


def _describe_version(version: Version) -> dict[str, Any]:
    return {
        "number": version.number,
        "time": version.time,
        "by": version.by,
        "hash": version.hash,
        "restores": version.restores,
        "policies": sorted(version.policies),
    }


def _set_mode(policy: Policy, mode: str) -> None:
    if policy.mode != mode:
        write_atomically(Path(policy.source), with_mode(policy, mode))
