"""Requests generated from the admin port's OpenAPI document: its answers conform to the document."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import httpx
import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, settings
from schemathesis import Case

from lethe.evaluation.serving import free_port
from lethe.server import admin_port
from lethe.server.http import openapi
from lethe.server.observability.metrics import Metrics
from lethe.server.policy_store.store import PolicyStore
from lethe.server.process import sockets
from lethe.server.requests.routes import ROUTES
from lethe.server.settings import Settings
from lethe.server.upstream.pool import ReplicaPool
from tests.fuzz.conftest import FACTOR
from tests.fuzz.test_schema import promised
from tests.server.conftest import ADMIN_KEY

REPLICAS = cast(ReplicaPool, SimpleNamespace(status=lambda details: {"ready": True, "replicas": []}))
PUBLIC = openapi.openapi_document(ROUTES, Settings())
# What the document says doesn't depend on what is loaded.
NOTHING = cast(PolicyStore, SimpleNamespace())
DOCUMENT = admin_port.create_admin_app(Settings(admin_key=ADMIN_KEY), Metrics(), REPLICAS, NOTHING, PUBLIC).openapi()
port = schemathesis.openapi.from_dict(DOCUMENT)
KEY = {"authorization": f"Bearer {ADMIN_KEY}"}


@pytest.fixture(scope="module")
def url(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The admin port of a gateway with one policy, on a real socket."""
    folder = tmp_path_factory.mktemp("office")
    for name in ("policies", "artifacts"):
        shutil.copytree(home / name, folder / name)
    given = {"policies": folder / "policies", "artifacts": folder / "artifacts", "audit": None}
    used = Settings.model_validate({**given, "admin_key": ADMIN_KEY, "admin_port": free_port()})
    store = PolicyStore(used, Metrics())
    app = admin_port.create_admin_app(used, Metrics(), REPLICAS, store, PUBLIC)
    with sockets.bind_socket("127.0.0.1", used.admin_port or 0, "LETHE_ADMIN_PORT") as listening:
        server = admin_port.AdminServer(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{used.admin_port}"
        server.should_exit = True
        thread.join(20)
    assert not thread.is_alive()


@port.parametrize()
@settings(max_examples=6 * FACTOR, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_admin_port_conforms_to_its_schema(case: Case, url: str) -> None:
    response = promised(case, url, headers=KEY)
    assert ADMIN_KEY not in response.text


def test_the_documents_are_served_and_name_every_route(url: str) -> None:
    with httpx.Client(base_url=url) as http:
        assert http.get("/openapi.json").json() == DOCUMENT
        served = http.get("/public/openapi.json").json()
    assert served == PUBLIC
    assert {(path, method.lower()) for path, method, _ in ROUTES} < {
        (path, method) for path, operations in served["paths"].items() for method in operations
    }
