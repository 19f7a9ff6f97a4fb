"""Health, readiness and metrics of the app."""

from __future__ import annotations

import aiohttp
from aiohttp import web

from tests.server.fakes import FakeUpstream, gateway, make_guard, policy, upstream


async def healthy(fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
    return web.json_response({"data": [{"id": "m"}]})


async def test_ready_says_why_it_is_not() -> None:
    async with upstream(healthy) as fake, gateway(fake.url, probe_interval_s=0.05) as gate:
        async with aiohttp.ClientSession() as http:
            for _ in range(100):
                async with http.get(f"{gate.url}/ready") as got:
                    facts = await got.json()
                if got.status == 200:
                    break
            assert facts == {"ready": True, "replicas": [{"up": True, "left_out": False, "in_flight": 0}]}
            async with http.get(f"{gate.url}/health") as got:
                assert await got.json() == {"status": "ok"}


async def test_metrics_count_requests_and_never_carry_client_text() -> None:
    async with upstream(healthy) as fake, gateway(fake.url, make_guard(policy())) as gate:
        async with aiohttp.ClientSession() as http:
            async with http.get(f"{gate.url}/v1/models"):
                pass
            async with http.get(f"{gate.url}/odd-path-of-a-scanner"):
                pass
            async with http.get(f"{gate.url}/metrics") as got:
                text = await got.text()
    assert 'lethe_requests_total{endpoint="models",status="200"} 1.0' in text
    assert 'lethe_requests_total{endpoint="unknown",status="404"} 1.0' in text
    assert "odd-path" not in text
