"""Composition of the gateway: builds its parts from the settings, connects them, and starts and stops them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import Any

from fastapi import FastAPI

from lethe.server.admin_port import create_admin_app, serve_admin_port
from lethe.server.admission.api_keys import Keyring
from lethe.server.admission.cross_origin import CrossOrigin
from lethe.server.guard.guard import Guard
from lethe.server.http import openapi
from lethe.server.http.application import GatewayApplication
from lethe.server.http.gateway import Gateway
from lethe.server.observability.audit import AuditLog
from lethe.server.observability.metrics import Metrics
from lethe.server.policy_store import seed_artifact
from lethe.server.policy_store.store import PolicyStore
from lethe.server.process.workers import Worker
from lethe.server.requests.routes import ROUTES
from lethe.server.settings import Settings, SettingsError, check_exposure
from lethe.server.upstream.pool import ReplicaPool, upstreams_from
from lethe.server.upstream.replica import Requirements


def create_app(
    settings: Settings, *, guard: Guard | None = None, metrics: Metrics | None = None, worker: Worker | None = None
) -> FastAPI:
    """Return the gateway as an ASGI application. Policies and artifacts are loaded now, so that errors stop the start.

    guard, metrics: for tests that bring their own. worker: this process, if it is one of several.
    Raises PolicyError, KeysError or SettingsError.
    """
    check_exposure(settings)
    metrics = metrics or Metrics()
    keys = Keyring(settings.keys, metrics) if settings.keys else None
    store = PolicyStore(settings, metrics) if guard is None else None
    first_guard = guard or store.loaded.guard  # type: ignore[union-attr]  # one of them is not None
    try:
        audit = AuditLog(settings.audit, metrics, None if worker is None else worker.audit_lock)
    except OSError as error:
        raise SettingsError(f"LETHE_AUDIT = {str(settings.audit)!r}: {error.strerror}") from error
    document = openapi.openapi_document(ROUTES, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        replicas = ReplicaPool(
            upstreams_from(settings), _requirements(first_guard), metrics, interval_s=settings.probe_interval_s
        )
        limits = None if worker is None else worker.limits()
        gateway = Gateway(settings, replicas, first_guard, audit, metrics, keys, limits)
        app.state.replicas, app.state.gateway = replicas, gateway
        loop = asyncio.get_running_loop()

        def use_guard(guard: Guard) -> None:
            # Update the pool first: the new guard's decisions depend on what the replicas can do.
            replicas.require(_requirements(guard))
            gateway.guard = guard

        def record_change(record: dict[str, Any]) -> None:
            if worker is None or worker.should_record(record):
                loop.call_soon_threadsafe(audit.put, record)

        if store is not None:
            store.start(lambda guard: loop.call_soon_threadsafe(use_guard, guard), record_change)
            if settings.admin_key is not None and (worker is None or worker.is_first):
                seed_artifact.prepare_seed_artifact(settings, store.loaded.encoder)
        background = {asyncio.ensure_future(replicas.run()), asyncio.ensure_future(gateway.run())}
        try:
            async with (
                nullcontext() if worker is None else worker.serve_other_workers(store, metrics),
                serve_admin_port(
                    settings, create_admin_app(settings, metrics, replicas, store, document, worker), metrics, worker
                ),
            ):
                if worker is not None:
                    worker.publish_gauges()
                metrics.workers.set(1)
                metrics.worker_starts.inc()
                yield
        finally:
            if store is not None:
                await asyncio.to_thread(store.stop)
            for task in background:
                task.cancel()
            await asyncio.wait(background)
            gateway.close()
            await replicas.close()
            audit.close()

    return GatewayApplication(lifespan, metrics, CrossOrigin(settings.cors_origins))


def _requirements(guard: Guard) -> Requirements:
    """What the guard's policies need of replicas."""
    history = any(policy.penalizes_history for policy, _ in guard.policies.values())
    return Requirements(guard.corruptor, frozenset(guard.indexes.values()), plugin=history and guard.upstream_is_vllm)
