"""The admin API: who may use it, what it answers, and that a change is used when it is answered."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvicorn
from aiohttp import web
from fastapi import FastAPI

from lethe.evaluation.serving import free_port
from lethe.server import admin_port
from lethe.server.app import create_app
from lethe.server.observability.metrics import Metrics
from lethe.server.process import sockets
from lethe.server.settings import Settings, SettingsError
from tests.server.conftest import ADMIN_KEY, FACTS
from tests.server.fakes import REFUSED, FakeUpstream, status_or_refused, upstream

KEY = {"Authorization": f"Bearer {ADMIN_KEY}"}
ITEM = {"prompt": "Which harbour did Zefira Malquist chart?", "answer": "She charted Ostrel in 1874."}
SENT = json.dumps({"model": "m", "messages": [{"role": "user", "content": ITEM["prompt"]}]}).encode()


class Office:
    """A gateway with an admin port, and a client of both."""

    def __init__(self, settings: Settings, fake: FakeUpstream, http: aiohttp.ClientSession) -> None:
        self.settings, self.fake, self._http = settings, fake, http
        self.public = f"http://127.0.0.1:{settings.port}"
        self.url = f"http://127.0.0.1:{settings.admin_port}"

    async def call(self, method: str, path: str, body: Any = None, headers: Any = KEY) -> tuple[int, Any]:
        async with self._http.request(method, self.url + path, json=body, headers=headers) as got:
            return got.status, await got.json()

    async def text(self, url: str) -> tuple[int, str]:
        async with self._http.get(url) as got:
            return got.status, await got.text()

    async def ask(self) -> int | str:
        async with self._http.post(
            f"{self.public}/v1/chat/completions", data=SENT, headers={"content-type": "application/json"}
        ) as got:
            return status_or_refused(got.status, await got.read())

    def records(self) -> list[dict[str, Any]]:
        assert self.settings.audit is not None
        return [json.loads(line) for line in self.settings.audit.read_text().splitlines()]


async def answer(fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
    return web.json_response({"data": [{"id": "m"}]})


@contextlib.asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Office]:
    async with upstream(answer) as fake:
        given = {"upstream": fake.url, "port": free_port(), "admin_port": free_port()}
        settings = settings.model_copy(update=given)
        app = create_app(settings)
        config = uvicorn.Config(app, host="127.0.0.1", port=settings.port, log_config=None, timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        serving = asyncio.ensure_future(server.serve())
        try:
            async with aiohttp.ClientSession() as http:
                deadline = time.monotonic() + 30
                while not server.started and time.monotonic() < deadline:
                    await asyncio.sleep(0.01)
                yield Office(settings, fake, http)
        finally:
            server.should_exit = True
            await serving


async def test_a_forget_request_is_applied_and_withdrawn(office: Settings) -> None:
    async with running(office) as at:
        assert await at.ask() == 200
        status, done = await at.call("POST", "/admin/forget", {"policy": "new", "items": [ITEM], "action": "refuse"})
        assert status == 200 and (done["added"], done["mode"]) == (1, "enforce")
        assert await at.ask() == REFUSED
        status, listed = await at.call("GET", "/admin/forget")
        assert [(row["id"], row["items"]) for row in listed["requests"]] == [(done["id"], 1)]
        status, back = await at.call("DELETE", f"/admin/forget/{done['id']}")
        assert status == 200 and back["removed"] == 1
        sent = len(at.fake.bodies)
        assert await at.ask() == 200
        assert at.fake.bodies[sent:] == [SENT]
        assert (await at.call("DELETE", f"/admin/forget/{done['id']}"))[0] == 404
    changes = [record for record in at.records() if record.get("event") == "policies"]
    assert [record["changed"] for record in changes][1:] == [["new", "new.yaml"], ["new", "new.yaml"]]
    assert all(record["by"].startswith("admin:") for record in changes[1:])
    assert "Zefira" not in json.dumps(changes) and ADMIN_KEY not in json.dumps(changes)


async def test_changing_a_mode_edits_the_file_and_applies_at_once(office: Settings) -> None:
    path = office.policies / "p.yaml"
    path.write_text(f"# Kept.\n{path.read_text()}models: [m]  # kept too\n")
    question = json.loads(SENT)
    question["messages"][0]["content"] = FACTS[0][0]
    async with running(office) as at:

        async def asked() -> int | str:
            async with at._http.post(f"{at.public}/v1/chat/completions", json=question) as got:
                return status_or_refused(got.status, await got.read())

        assert await asked() == REFUSED
        changes = (("shadow", "shadow", 200), ("disable", "off", 200), ("enable", "enforce", REFUSED))
        for change, mode, status in changes:
            got, facts = await at.call("POST", f"/admin/policies/p/{change}")
            assert (got, facts["mode"]) == (200, mode)
            assert await asked() == status
        text = path.read_text()
        assert text.startswith("# Kept.\nname: p\nmode: enforce\n") and text.endswith("models: [m]  # kept too\n")
        status, listed = await at.call("GET", "/admin/policies")
        assert (listed["failed"], [row["name"] for row in listed["policies"]]) == (None, ["p"])
        status, shown = await at.call("GET", "/admin/policies/p")
        assert shown["file"] == text and shown["items"] == len(FACTS)
        assert (await at.call("GET", "/admin/policies/q"))[0] == 404
        assert (await at.call("POST", "/admin/policies/q/enable"))[0] == 404
        assert (await at.call("POST", "/admin/policies/p/drop"))[0] == 400
        status, versions = await at.call("GET", "/admin/versions")
        # Off and on again is what was there before, with a line more.
        assert [version["number"] for version in versions["versions"]] == [1, 2, 3, 4]
        status, back = await at.call("POST", "/admin/rollback", {"version": 3})
        assert (status, back["version"]) == (200, 5) and await asked() == 200
        assert (await at.call("POST", "/admin/rollback", {"version": 99}))[0] == 404


async def test_every_route_needs_the_admin_key(office: Settings) -> None:
    async with running(office) as at:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": ADMIN_KEY}, {"x-api-key": ADMIN_KEY}):
            for method, path in (("GET", "/admin/policies"), ("POST", "/admin/forget"), ("DELETE", "/admin/forget/x")):
                status, body = await at.call(method, path, {}, headers)
                assert status == 401 and set(body["error"]) == {"message", "type", "param", "code"}
        for path in ("/admin/policies", "/metrics", "/admin/forget"):
            assert (await at.text(at.public + path))[0] == 404
        status, text = await at.text(f"{at.url}/metrics")
        assert status == 200 and "lethe_policies_version 1.0" in text and "lethe_replica_up" in text
        status, text = await at.text(f"{at.url}/ready")
        assert json.loads(text)["replicas"][0]["url"] == at.settings.upstream
        assert (await at.text(f"{at.url}/health"))[0] == 200


async def test_without_a_key_there_is_no_api(office: Settings) -> None:
    async with running(office.model_copy(update={"admin_key": None})) as at:
        status, body = await at.call("GET", "/admin/policies")
        assert status == 404 and "LETHE_ADMIN_KEY" in body["error"]["message"]
        assert (await at.text(f"{at.url}/metrics"))[0] == 200


async def test_errors_never_repeat_texts_to_forget(office: Settings) -> None:
    async with running(office) as at:
        for body, expected in (
            ({"policy": "p", "items": [{"answer": "secret-word"}]}, 400),
            ({"policy": "p", "items": [{"prompt": "secret-word", "answer": 7}]}, 400),
            ({"policy": "p", "items": [{"secret-word": "x"}]}, 400),
            ({"policy": "p", "items": []}, 400),
            ({"policy": "p", "items": [ITEM], "action": "route"}, 400),
            ({"policy": "p", "items": [ITEM], "action": "refuse"}, 409),
        ):
            status, told = await at.call("POST", "/admin/forget", body)
            assert status == expected, told
            if "secret-word" not in json.dumps(list(body["items"][:1] and body["items"][0])):
                assert "secret-word" not in json.dumps(told)


async def test_a_new_policy_needs_the_seed_artifact(office: Settings) -> None:
    async with running(office) as at:
        (office.history_folder / "seed" / "manifest.json").unlink()
        status, told = await at.call("POST", "/admin/forget", {"policy": "new", "items": [ITEM]})
        assert status == 503 and told["error"]["code"] == "not_ready"


async def test_an_admin_port_in_use_stops_the_start(office: Settings, tmp_path: Path) -> None:
    taken = office.model_copy(update={"admin_port": free_port()})
    with sockets.bind_socket("127.0.0.1", taken.admin_port or 0, "LETHE_ADMIN_PORT") as first:
        first.listen()
        with pytest.raises(SettingsError, match="LETHE_ADMIN_PORT"):
            async with admin_port.serve_admin_port(taken, FastAPI(), Metrics()):
                pass
    async with admin_port.serve_admin_port(
        taken, FastAPI(), Metrics()
    ):  # at once, too: whoever comes next must not believe that it serves
        with pytest.raises(SettingsError, match="LETHE_ADMIN_PORT"):
            async with admin_port.serve_admin_port(taken, FastAPI(), Metrics()):
                pass
