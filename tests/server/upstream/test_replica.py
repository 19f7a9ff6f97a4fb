"""One replica: ejection, health checks, restarts, and what the probes find out."""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

import pytest
from aiohttp import web

from lethe.corruption.spec import CorruptionError
from lethe.server.errors import UpstreamTimeout
from lethe.server.observability.metrics import Metrics
from lethe.server.upstream.capabilities import Needs
from lethe.server.upstream.replica import Requirements
from lethe.server.upstream.verbatim_index import UNKNOWN_INDEX
from tests.server.upstream.fake_vllm import INDEX, CleanCorruptor, FakeVllm, ask, corrupting, pool_of, running, until


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


async def test_the_plugin_is_found_by_what_it_accepts_and_rejects() -> None:
    class Plugin(FakeVllm):
        accepts: Any = None

        async def _serve(self, request: web.Request) -> web.StreamResponse:
            body = await request.text()
            if "vllm_xargs" in body:
                return web.json_response({}, status=200 if self.accepts(UNKNOWN_INDEX not in body) else 400)
            return await super()._serve(request)

    for accepts, expected in [
        (lambda is_valid: is_valid, True), (lambda is_valid: True, False), (lambda is_valid: False, False)
    ]:  # fmt: skip
        one = Plugin()
        one.accepts = accepts
        async with running(one), pool_of(one, requirements=Requirements(plugin=True)) as pool:
            assert pool.capabilities().covers("m", Needs(plugin=True)) is expected
            assert pool.capabilities().covers("m", Needs())
        async with running(one), pool_of(one) as pool:
            assert not pool.capabilities().covers("m", Needs(plugin=True))


async def test_replicas_are_probed_for_new_requirements() -> None:
    one = FakeVllm(indexes=frozenset([INDEX]))
    async with running(one), pool_of(one) as pool:
        assert pool.ready
        pool.require(Requirements(corruptor=cast(Any, CleanCorruptor()), indexes=frozenset([INDEX])))
        assert not pool.ready and not pool.capabilities().covers("m", Needs(parity=True))
        await pool.check()
        assert pool.ready and pool.capabilities().covers("m", Needs(parity=True, indexes=frozenset([INDEX])))


async def test_a_replica_is_ready_when_it_has_had_all_indexes() -> None:
    one = FakeVllm()
    requirements = Requirements(indexes=frozenset([INDEX]))
    async with running(one), pool_of(one, requirements=requirements) as pool:
        assert not pool.ready and pool.status(details=False)["replicas"][0]["indexes"] == "0 of 1"
        one.indexes = frozenset([INDEX])
        await pool.check()
        assert pool.ready
        # A document that is forgotten while requests are served takes no gateway out of service.
        pool.require(Requirements(indexes=frozenset([INDEX, "2" * 32])))
        await pool.check()
        assert pool.ready and pool.status(details=False)["replicas"][0]["indexes"] == "1 of 2"
