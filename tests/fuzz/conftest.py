"""One gateway for all of these tests, on a real socket, with an upstream that echoes."""

from __future__ import annotations

import asyncio
import http.client
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pytest
from aiohttp import web

from lethe.server.guard.guard import Guard
from tests.server.fakes import FakeUpstream, Running, gateway, make_guard, policy, upstream
from tests.server.guard.test_guard import Recorder, artifact

# How many times as many examples as in an ordinary run of the tests.
FACTOR = int(os.environ.get("FUZZ_FACTOR", "1"))
# The models, each under a policy that does something else with what is flagged.
ACTIONS = ("refuse", "penalize", "corrupt", "both", "watch")


async def echo(fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
    if request.method == "GET":
        return web.json_response({"object": "list", "data": [{"id": name} for name in ACTIONS]})
    return web.Response(body=await request.read(), content_type="application/json")


def guard() -> Guard:
    # Refusals as errors: their code tells them from an answer of upstream.
    refuse = {"as": "error"}
    policies = [policy(name=action, action=action, models=[action], refuse=refuse) for action in ACTIONS]
    made = make_guard(*policies, artifacts={"a": artifact()}, corruptor=Recorder())
    made.can = lambda model, needs: True
    return made


@dataclass(repr=False)  # Hypothesis prints it, and its parts keep whole bodies.
class Served:
    """The gateway, and a client that keeps its connection."""

    gate: Running
    fake: FakeUpstream
    _kept: list[http.client.HTTPConnection] = field(default_factory=list)

    def ask(self, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, http.client.HTTPMessage, bytes]:
        """One request as it is given; status, headers and body of the answer."""
        if not self._kept:
            self._kept.append(http.client.HTTPConnection("127.0.0.1", self.gate.port, timeout=30))
        connection = self._kept[0]
        connection.request("POST", path, body, dict(headers))
        got = connection.getresponse()
        return got.status, got.headers, got.read()

    def sent(self) -> list[bytes]:
        """The bodies that have gone up since this was last asked."""
        found, self.fake.bodies = self.fake.bodies, []
        return found

    def close(self) -> None:
        for connection in self._kept:
            connection.close()


@pytest.fixture(scope="session")
def served() -> Iterator[Served]:
    ready = threading.Event()
    made: list[Served] = []
    ends: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def run() -> None:
        over = asyncio.Event()
        async with upstream(echo) as fake, gateway(fake.url, guard()) as gate:
            made.append(Served(gate, fake))
            ends.append((asyncio.get_running_loop(), over))
            ready.set()
            await over.wait()

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    assert ready.wait(30)
    yield made[0]
    made[0].close()
    loop, over = ends[0]
    loop.call_soon_threadsafe(over.set)
    thread.join(30)
    assert not thread.is_alive()
