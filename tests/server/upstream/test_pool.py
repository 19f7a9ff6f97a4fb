"""The replica pool: which replica answers, and what happens when replicas go down, block or come back changed."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, cast

import aiohttp
import pytest
from aiohttp import web

from lethe.corruption.decoding.spec import XARGS_KEY, decode_penalty
from lethe.corruption.spec import CorruptionError
from lethe.server.errors import UpstreamDown, UpstreamFailed, UpstreamTimeout
from lethe.server.observability.metrics import Metrics
from lethe.server.upstream.capabilities import Needs
from lethe.server.upstream.client import Upstream
from lethe.server.upstream.pool import MAX_LOAD_EXCESS, ReplicaPool, conversation_digest
from lethe.server.upstream.replica import Replica, Requirements
from tests.server.fakes import gateway
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


# Choosing a replica ------------------------------------------------------------------------------------------------


def test_all_turns_of_a_conversation_have_the_same_digest() -> None:
    first = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    later = [*first, {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "And now?"}]
    one = conversation_digest({"model": "m", "messages": first})
    assert one is not None and one == conversation_digest({"model": "m", "messages": later, "stream": True})
    assert one != conversation_digest({"model": "m", "messages": [first[0], {"role": "user", "content": "Bye"}]})
    assert conversation_digest({"input": "a" * 2000}) == conversation_digest({"input": "a" * 3000})
    assert conversation_digest({"model": "m"}) is None and conversation_digest({"messages": []}) is None
    assert conversation_digest({"messages": "odd"}) is not None


async def test_conversations_keep_their_replica_and_are_spread_evenly() -> None:
    one, other = FakeVllm(), FakeVllm()
    async with running(one, other), pool_of(one, other) as pool:
        seen = collections.Counter()
        for i in range(40):
            ports = {await ask(pool, f"conversation {i}") for _ in range(3)}
            assert len(ports) == 1
            seen.update(ports)
    assert min(seen[str(one.port)], seen[str(other.port)]) >= 8


async def test_a_conversation_leaves_a_clearly_busier_replica() -> None:
    one, other = FakeVllm(), FakeVllm()
    async with running(one, other), pool_of(one, other) as pool:
        home = await ask(pool)
        replica = next(r for r in pool.replicas if r.url.endswith(home))
        replica.in_flight = MAX_LOAD_EXCESS
        assert await ask(pool) == home
        replica.in_flight = MAX_LOAD_EXCESS + 1
        assert await ask(pool) != home
        replica.in_flight = 0


async def test_without_affinity_the_idlest_replica_answers() -> None:
    one, other = FakeVllm(), FakeVllm()
    async with running(one, other), pool_of(one, other) as pool:
        pool.replicas[0].in_flight = 1
        assert {await ask(pool, affinity=None) for _ in range(8)} == {str(other.port)}
        pool.replicas[0].in_flight = 0


async def test_requests_go_to_replicas_that_serve_their_model() -> None:
    one, other = FakeVllm(models=("m",)), FakeVllm(models=("n", "n-lora"))
    async with running(one, other), pool_of(one, other) as pool:
        for i in range(6):
            assert await ask(pool, f"{i}", "m") == str(one.port)
            assert await ask(pool, f"{i}", "n-lora") == str(other.port)
        assert {await ask(pool, f"{i}", "unknown") for i in range(20)} == {str(one.port), str(other.port)}
        listed = json.loads(pool.merged_model_list() or b"null")
        assert {card["id"] for card in listed["data"]} == {"m", "n", "n-lora"}
        await other.stop()
        await pool.check()
        with pytest.raises(UpstreamDown):
            await ask(pool, model="n")
        assert pool.merged_model_list() is None


async def test_replicas_with_equal_models_need_no_merged_list() -> None:
    one, other = FakeVllm(), FakeVllm()
    async with running(one, other), pool_of(one, other) as pool:
        assert pool.merged_model_list() is None


# Failures --------------------------------------------------------------------------------------------


async def test_a_replica_that_refuses_connections_is_skipped_and_ejected() -> None:
    one, other = FakeVllm(), FakeVllm()
    metrics = Metrics()
    async with running(one, other), pool_of(one, other, metrics=metrics) as pool:
        await one.stop()
        assert {await ask(pool, f"{i}") for i in range(12)} == {str(other.port)}
        gone = {"replica": one.url}
        assert metrics.registry.get_sample_value("lethe_replica_ejections_total", gone) == 1
        assert metrics.registry.get_sample_value("lethe_replica_up", gone) == 0
        assert metrics.registry.get_sample_value("lethe_replica_in_flight", gone) == 0
        assert metrics.registry.get_sample_value("lethe_replica_errors_total", {**gone, "kind": "connect"}) == 1


async def test_a_request_that_was_sent_is_not_retried() -> None:
    async def break_off(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    one, other = FakeVllm(answer=break_off), FakeVllm(answer=break_off)
    async with running(one, other), pool_of(one, other) as pool:
        with pytest.raises(UpstreamFailed):
            await ask(pool)
        assert len(one.requests) + len(other.requests) == 1


async def test_without_replicas_the_error_is_503_with_retry_after() -> None:
    one, other = FakeVllm(), FakeVllm()
    async with running(one, other), pool_of(one, other) as pool:
        await one.stop()
        await other.stop()
        with pytest.raises(UpstreamDown) as caught:
            await ask(pool)
        assert (caught.value.status, caught.value.retryable) == (503, True)
        assert caught.value.retry_after_s is not None and caught.value.retry_after_s >= 1


async def test_three_failures_in_a_row_eject_a_replica_for_growing_times() -> None:
    async def hang(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(30)
        return web.Response()

    one, other = FakeVllm(), FakeVllm()
    async with running(one, other), pool_of(one, other) as pool:
        connections = pool.replicas[0].upstream._connections
        connections._read_timeout_s, connections._check_interval_s = 0.05, 0.01
        homes = [f"{i}" for i in range(40) if await ask(pool, f"{i}") == str(one.port)]
        one.answer = hang
        for text in homes[:3]:
            with pytest.raises(UpstreamTimeout):
                await ask(pool, text)
        assert pool.replicas[0].ejected and pool.replicas[0].up
        assert {await ask(pool, text) for text in homes} == {str(other.port)}
        one.answer = None
        first = pool.replicas[0].ejection_left_s
        pool.replicas[0]._ejected_until = time.monotonic()
        assert not pool.replicas[0].ejected
        pool.replicas[0].eject("again")
        assert pool.replicas[0].ejection_left_s > first


async def test_an_ejected_replica_answers_if_there_is_no_other() -> None:
    one = FakeVllm()
    async with running(one), pool_of(one) as pool:
        pool.replicas[0].eject("test")
        assert await ask(pool) == str(one.port)


async def test_a_5xx_triggers_a_health_check_that_decides() -> None:
    async def fails(request: web.Request) -> web.StreamResponse:
        return web.json_response({}, status=500, headers={"x-from": "500"})

    one, other = FakeVllm(answer=fails), FakeVllm(answer=fails)
    async with running(one, other), pool_of(one, other) as pool:
        watching = asyncio.ensure_future(pool.run())
        for i in range(8):
            assert await ask(pool, f"{i}") == "500"
        assert all(replica.up and not replica.ejected for replica in pool.replicas)
        one.health = 503
        await until(lambda: pool.replicas[0].up is False)
        one.health = 200
        await until(lambda: pool.replicas[0].up is True)
        watching.cancel()
        await asyncio.wait({watching})


async def test_a_restarted_server_is_used_again() -> None:
    one = FakeVllm()
    async with running(one), pool_of(one) as pool:
        watching = asyncio.ensure_future(pool.run())
        await one.stop()
        await until(lambda: pool.replicas[0].up is False)
        await one.start()
        await until(lambda: pool.replicas[0].up is True)
        assert await ask(pool) == str(one.port)
        watching.cancel()
        await asyncio.wait({watching})


async def test_a_server_without_health_route_is_up_if_it_lists_models() -> None:
    one = FakeVllm(health=404)
    async with running(one), pool_of(one) as pool:
        assert pool.replicas[0].up and pool.ready


async def test_checks_continue_after_an_unexpected_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async def odd(*_: object, **__: object) -> None:
        checks.append(1)
        raise RuntimeError("odd")

    checks: list[int] = []
    monkeypatch.setattr(Replica, "check", odd)
    async with pool_of(FakeVllm(port=9), checked=False) as pool:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pool.run(), 0.4)
    assert len(checks) > 1


# Capabilities -----------------------------------------------------------------------------------------


def corrupting(corruptor: Any = None) -> Requirements:
    return Requirements(corruptor=corruptor or CleanCorruptor())


async def test_requests_with_embeddings_go_only_to_replicas_with_parity() -> None:
    able, unable = FakeVllm(), FakeVllm(embeds=False)
    async with running(able, unable), pool_of(able, unable, requirements=corrupting()) as pool:
        assert pool.ready and [replica.parity.holds for replica in pool.replicas] == [True, False]
        assert "--enable-prompt-embeds" in pool.replicas[1].parity.reason
        assert pool.capabilities().covers("m", Needs(parity=True))
        assert {await ask(pool, f"{i}", needs=Needs(parity=True)) for i in range(20)} == {str(able.port)}
        assert {await ask(pool, f"{i}") for i in range(20)} == {str(able.port), str(unable.port)}
        await able.stop()
        with pytest.raises(UpstreamDown):
            await ask(pool, needs=Needs(parity=True))
        assert not pool.capabilities().covers("m", Needs(parity=True))


async def test_parity_counts_only_for_the_models_of_the_replica() -> None:
    one, other = FakeVllm(models=("m",)), FakeVllm(models=("n",), embeds=False)
    async with running(one, other), pool_of(one, other, requirements=corrupting()) as pool:
        capabilities = pool.capabilities()
        assert capabilities.covers("m", Needs(parity=True)) and not capabilities.covers("n", Needs(parity=True))


async def test_requests_with_an_index_go_only_to_replicas_that_have_it() -> None:
    having, lacking = FakeVllm(indexes=frozenset([INDEX])), FakeVllm()
    requirements = Requirements(indexes=frozenset([INDEX]))
    async with running(having, lacking), pool_of(having, lacking, requirements=requirements) as pool:
        needs = Needs(indexes=frozenset([INDEX]))
        assert pool.ready and pool.capabilities().covers("m", needs)
        assert {await ask(pool, f"{i}", needs=needs) for i in range(20)} == {str(having.port)}
        lacking.indexes = frozenset([INDEX])
        await pool.check()
        assert len({await ask(pool, f"{i}", needs=needs) for i in range(20)}) == 2


async def test_a_restart_between_checks_is_noticed_by_process_start() -> None:
    one = FakeVllm()
    metrics = Metrics()
    async with running(one), pool_of(one, requirements=corrupting(), metrics=metrics) as pool:
        assert pool.replicas[0].parity.holds
        await pool.check()
        assert metrics.registry.get_sample_value("lethe_replica_restarts_total", {"replica": one.url}) is None
        one.process_start, one.embeds = 2000.0, False
        await pool.check()
        assert not pool.replicas[0].parity.holds
        assert metrics.registry.get_sample_value("lethe_replica_restarts_total", {"replica": one.url}) == 1


async def test_a_server_that_goes_down_loses_parity_until_probed_again() -> None:
    one = FakeVllm()
    async with running(one), pool_of(one, requirements=corrupting()) as pool:
        await one.stop()
        await pool.check()
        assert not pool.ready and not pool.replicas[0].parity.holds and pool.replicas[0].parity.reason
        await one.start()
        await pool.check()
        assert pool.ready and pool.replicas[0].parity.holds


async def test_different_token_ids_mean_no_parity() -> None:
    one = FakeVllm(ids=(1, 4, 3))
    async with running(one), pool_of(one, requirements=corrupting()) as pool:
        assert pool.ready and "token 2 of 3" in pool.replicas[0].parity.reason and not pool.replicas[0].parity.holds


async def test_a_template_that_cant_be_rewritten_means_no_parity() -> None:
    class CantRewrite:
        def chat(self, body: dict[str, Any], targets: Any, spec: Any, policy: str) -> dict[str, Any]:
            raise CorruptionError("the template shares a token with the content")

    one = FakeVllm()
    async with running(one), pool_of(one, requirements=corrupting(CantRewrite())) as pool:
        assert pool.ready and "shares a token" in pool.replicas[0].parity.reason


async def test_replicas_are_probed_for_new_requirements() -> None:
    one = FakeVllm(indexes=frozenset([INDEX]))
    async with running(one), pool_of(one) as pool:
        assert pool.ready
        pool.require(Requirements(corruptor=cast(Any, CleanCorruptor()), indexes=frozenset([INDEX])))
        assert not pool.ready and not pool.capabilities().covers("m", Needs(parity=True))
        await pool.check()
        assert pool.ready and pool.capabilities().covers("m", Needs(parity=True, indexes=frozenset([INDEX])))


# Through the gateway --------------------------------------------------------------------------------------


async def test_the_gateway_survives_the_death_of_one_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = FakeVllm(), FakeVllm()
    async with running(one, other), gateway(f"{one.url},{other.url}", probe_interval_s=0.1) as gate:

        async def post(http: aiohttp.ClientSession, text: str) -> int:
            body = {"model": "m", "messages": [{"role": "user", "content": text}]}
            async with http.post(f"{gate.url}/v1/chat/completions", json=body) as got:
                await got.read()
                return got.status

        async with aiohttp.ClientSession() as http:
            assert {await post(http, f"{i}") for i in range(10)} == {200}
            assert one.requests and other.requests
            await one.stop()
            assert {await post(http, f"{i}") for i in range(10)} == {200}
            await other.stop()
            assert {await post(http, f"{i}") for i in range(4)} == {503}
            await one.start()
            deadline = time.monotonic() + 10
            while await post(http, "again") != 200:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
            async with http.get(f"{gate.url}/ready") as got:
                facts = await got.json()
        assert facts["ready"] and [replica["up"] for replica in facts["replicas"]] == [True, False]
        assert one.url not in json.dumps(facts)


async def test_the_gateway_lists_the_models_of_all_replicas() -> None:
    one, other = FakeVllm(models=("m",)), FakeVllm(models=("n",))
    async with running(one, other), gateway(f"{one.url},{other.url}", probe_interval_s=0.1) as gate:
        async with aiohttp.ClientSession() as http:
            deadline = time.monotonic() + 10
            names: set[str] = set()
            while names != {"m", "n"}:
                assert time.monotonic() < deadline
                async with http.get(f"{gate.url}/v1/models") as got:
                    names = {card["id"] for card in (await got.json())["data"]}
