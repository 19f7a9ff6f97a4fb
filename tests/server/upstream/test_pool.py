"""The replica pool: which replica answers a request, and failover when one goes down."""

from __future__ import annotations

import asyncio
import collections
import json
import time

import aiohttp
import pytest
from aiohttp import web

from lethe.server.errors import UpstreamDown, UpstreamFailed
from lethe.server.observability.metrics import Metrics
from lethe.server.upstream.capabilities import Needs
from lethe.server.upstream.pool import MAX_LOAD_EXCESS, conversation_digest
from lethe.server.upstream.replica import Replica, Requirements
from tests.server.fakes import gateway
from tests.server.upstream.fake_vllm import INDEX, FakeVllm, ask, corrupting, pool_of, running

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


async def test_reachability_is_checked_as_a_request_would_find_it() -> None:
    one, other, foreign = FakeVllm(), FakeVllm(), FakeVllm(models=("n",))
    metrics = Metrics()
    async with running(one, other, foreign), pool_of(one, other, foreign, metrics=metrics) as pool:
        await one.stop()
        await pool.check_reachable("m", None)
        await pool.check_reachable("m", None)
        await other.stop()
        with pytest.raises(UpstreamDown) as caught:
            await pool.check_reachable("m", None)
        assert caught.value.code == "no_replica" and len(other.requests) == 0
        # Nobody has asked them but the check: it has the replicas marked down as a request would.
        assert [replica.up for replica in pool.replicas] == [False, False, True]
        gone = {"replica": other.url, "kind": "connect"}
        assert metrics.registry.get_sample_value("lethe_replica_errors_total", gone) == 1
        assert [replica.in_flight for replica in pool.replicas] == [0, 0, 0]


async def test_an_ejected_replica_answers_if_there_is_no_other() -> None:
    one = FakeVllm()
    async with running(one), pool_of(one) as pool:
        pool.replicas[0].eject("test")
        assert await ask(pool) == str(one.port)


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
