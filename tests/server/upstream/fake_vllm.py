"""A fake vLLM, and a replica pool in front of some of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from lethe.corruption.decoding.spec import XARGS_KEY, decode_penalty
from lethe.server.observability.metrics import Metrics
from lethe.server.upstream.client import Upstream
from lethe.server.upstream.pool import ReplicaPool, conversation_digest
from lethe.server.upstream.replica import Requirements
from tests.server.upstream.test_parity_probe import reply

INDEX = "1" * 32
NOTHING = Requirements()


@dataclass
class FakeVllm:
    """A model server that can be stopped, restarted on its port, blocked, and given another answer."""

    models: tuple[str, ...] = ("m",)
    embeds: bool = True
    health: int = 200
    process_start: float = 1000.0
    indexes: frozenset[str] = frozenset()
    ids: tuple[int, ...] = (1, 2, 3)
    answer: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None
    requests: list[dict[str, Any]] = field(default_factory=list)
    port: int = 0
    runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/health":
            return web.Response(status=self.health)
        if request.path == "/metrics":
            text = f"# HELP python_info x\n# TYPE a b\nprocess_start_time_seconds {self.process_start}\nrest 1\n"
            return web.Response(text=text)
        if request.path == "/v1/models":
            return web.json_response(
                {"object": "list", "data": [{"id": name, "by": self.port} for name in self.models]}
            )
        body = json.loads(await request.read())
        index_argument = body.get("vllm_xargs", {}).get(XARGS_KEY)
        if index_argument and not set(decode_penalty(index_argument).verbatim) <= self.indexes:
            return web.json_response({"error": {"message": "no such index"}}, status=400)
        if "prompt_embeds" in json.dumps(body) and not self.embeds:
            return web.json_response({"error": {"message": "no embeds here"}}, status=400)
        if body.get("logprobs") is not True and body.get("max_tokens") != 1:
            self.requests.append(body)
            if self.answer is not None:
                return await self.answer(request)
        ids = {"prompt_token_ids": self.ids} if body.get("return_token_ids") else {}
        return web.json_response(reply(("a", -0.1)) | ids, headers={"x-from": str(self.port)})

    async def start(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._serve)
        self.runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self.runner.addresses[0][1]

    async def stop(self) -> None:
        if self.runner is not None:
            await self.runner.cleanup()
            self.runner = None
            await asyncio.sleep(0.05)  # the other side sees its idle connections end


@contextlib.asynccontextmanager
async def running(*fakes: FakeVllm) -> AsyncIterator[None]:
    for fake in fakes:
        await fake.start()
    try:
        yield
    finally:
        for fake in fakes:
            await fake.stop()


class CleanCorruptor:
    """A corruptor whose clean embeddings a fake server recognises."""

    def chat(self, body: dict[str, Any], targets: Any, spec: Any, policy: str) -> dict[str, Any]:
        assert spec is None
        return {**body, "messages": [{"role": "user", "content": [{"type": "prompt_embeds", "data": "x"}]}]}

    @property
    def prompt_tokenizer(self) -> CleanCorruptor:
        return self

    def chat_ids(self, body: dict[str, Any]) -> list[int]:
        return [1, 2, 3]


@contextlib.asynccontextmanager
async def pool_of(
    *fakes: FakeVllm,
    requirements: Requirements = NOTHING,
    checked: bool = True,
    metrics: Metrics | None = None,
) -> AsyncIterator[ReplicaPool]:
    upstreams = [Upstream(fake.url, connect_timeout_s=1, read_timeout_s=1) for fake in fakes]
    pool = ReplicaPool(upstreams, requirements, metrics or Metrics(), interval_s=0.05)
    if checked:
        await pool.check()
    try:
        yield pool
    finally:
        await pool.close()


async def ask(pool: ReplicaPool, text: str = "Hello", model: str = "m", **routing: Any) -> str:
    """The port of the replica that answered."""
    body = {"model": model, "messages": [{"role": "user", "content": text}]}
    routing = {"model": model, "affinity": conversation_digest(body), **routing}
    async with pool.open("POST", b"/v1/chat/completions", [], json.dumps(body).encode(), **routing) as response:
        await response.read()
        return response.header(b"x-from")


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def corrupting(corruptor: Any = None) -> Requirements:
    return Requirements(corruptor=corruptor or CleanCorruptor())
