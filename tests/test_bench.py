"""`make bench` runs, and a relayed request does not cost more tasks, parses or connections. No times are checked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from benchmarks import bench, endpoints, fast_upstream, load, measuring, proxy, timing_leak
from benchmarks.measuring import BenchmarkResult, Claim, Series
from tests.server.fakes import gateway

REQUESTS = 100


async def send_requests(port: int, request: bytes) -> None:
    """Send REQUESTS requests over one connection and read the answers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(REQUESTS):
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        if b"chunked" in head:
            body = await reader.readuntil(b"0\r\n\r\n")
            assert body.count(b"data: ") == fast_upstream.EVENTS + 1
        else:
            assert await reader.readexactly(len(fast_upstream.WHOLE)) == fast_upstream.WHOLE
    writer.close()


@pytest.mark.parametrize("kind", ["whole", "streamed"])
async def test_a_relayed_request_costs_one_task_and_one_parse(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    counts = {"tasks": 0, "timers": 0, "parses": 0}
    parse, call_at = orjson.loads, loop.call_at

    def counted_task(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **kwargs: Any) -> Any:
        counts["tasks"] += 1
        return asyncio.Task(coroutine, loop=loop, **kwargs)

    def counted_timer(*args: Any, **kwargs: Any) -> asyncio.TimerHandle:
        counts["timers"] += 1
        return call_at(*args, **kwargs)

    def counted_parse(raw: bytes) -> Any:
        counts["parses"] += 1
        return parse(raw)

    listening = await loop.create_server(fast_upstream.FastUpstreamConnection, "127.0.0.1", 0)
    before = fast_upstream.connections
    async with gateway(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}") as gate:
        await asyncio.sleep(0.2)
        monkeypatch.setattr(orjson, "loads", counted_parse)
        monkeypatch.setattr(loop, "call_at", counted_timer)
        # No request may be parsed by the slower json module.
        monkeypatch.setattr(json, "loads", None)
        loop.set_task_factory(counted_task)
        await send_requests(gate.port, proxy.proxy_request(kind, {}))
        loop.set_task_factory(None)
        monkeypatch.undo()
    listening.close()
    # uvicorn's own task for each request; the rest are periodic tasks of the gateway.
    assert counts["tasks"] < 1.1 * REQUESTS
    # The request body once; the answer never.
    assert counts["parses"] == REQUESTS
    # uvicorn's keep-alive timer; the rest are periodic timers of the gateway.
    assert counts["timers"] < 1.5 * REQUESTS
    # Connections for health checks, for the start time of vLLM, and one for all requests.
    assert fast_upstream.connections - before <= 4


def test_proxies_are_measured_and_results_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = proxy.measure
    monkeypatch.setattr(proxy, "measure", lambda quick: measure(quick, others={}, scale=0.01))
    assert bench.run_benchmarks(["proxy"], quick=True, out=tmp_path) == 0
    written = json.loads((tmp_path / "bench.json").read_text())
    result = written["questions"]["proxy"]
    assert {series["name"] for series in result["series"]} >= {
        f"{kind}: {name}, {what}"
        for kind in proxy.KINDS for name in ("lethe", "bare relay", "no proxy")
        for what in ("CPU", "throughput", "p50", "p99")
    }  # fmt: skip
    assert all(value > 0 for series in result["series"] for value in series["values"])
    assert written["machine"]["cores"] >= 1 and len(result["claims"]) >= 3
    assert (tmp_path / "bench-proxy.svg").read_text().startswith("<svg")


def test_a_failed_benchmark_is_reported_and_the_run_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(quick: bool) -> BenchmarkResult:
        raise RuntimeError("no answer")

    monkeypatch.setattr(proxy, "measure", fails)
    assert bench.run_benchmarks(["proxy"], quick=True, out=tmp_path) == 1
    assert "no answer" in json.loads((tmp_path / "bench.json").read_text())["questions"]["proxy"]["failed"]


def test_ratios_are_computed_round_by_round() -> None:
    # The machine was three times slower in the second round, for both.
    a, b = Series("a", "µs", [1.0, 3.0, 1.2]), Series("b", "µs", [2.0, 6.0, 2.0])
    claim = Claim.ratio("a compared with b", a, b, at_most=0.55)
    assert list(claim.measured.values) == [0.5, 0.5, 0.6] and claim.holds
    assert not Claim.level("a", a, at_least=1.3).holds
    with pytest.raises(ValueError, match="give either"):
        Claim.level("a", a)


def test_cpu_time_is_that_of_the_process() -> None:
    import os
    import time

    started, own = measuring.cpu_s(os.getpid()), time.process_time()
    while time.process_time() - own < 0.05:
        pass
    assert 0.04 < measuring.cpu_s(os.getpid()) - started < 1


def test_the_load_request_has_the_right_length() -> None:
    request = load.openai_request("/v1/chat/completions", proxy.BODY)
    head, _, body = request.partition(b"\r\n\r\n")
    assert b"content-length: %d" % len(body) in head and json.loads(body) == proxy.BODY


def test_metrics_are_summed_over_their_labels() -> None:
    text = 'vllm:a{x="1"} 2.0\nvllm:a{x="2"} 3\nvllm:b 4\nother 5\n# HELP vllm:a text\n'
    assert measuring.sum_metrics(text, "vllm:") == {"a": 5.0, "b": 4.0}


@pytest.mark.parametrize("endpoint", endpoints.PATHS)
def test_endpoint_bodies_carry_the_prompt_and_the_token_limit(endpoint: str) -> None:
    body = endpoints.endpoint_body(endpoint, "m", "Hi there", 7, stream=True)
    assert body["model"] == "m" and body["stream"] is True and body[endpoints.token_limit_field(endpoint)] == 7
    assert "Hi there" in json.dumps(body)


@pytest.mark.parametrize(
    ("flagged", "other", "share"),
    [([3, 4], [1, 2], 1), ([1, 2], [3, 4], 0), ([1, 3], [1, 3], 0.5), ([2], [1, 3, 1], 2 / 3)],
)
def test_auc_is_the_share_of_pairs_where_the_flagged_is_slower(
    flagged: list[float], other: list[float], share: float
) -> None:
    assert timing_leak.auc(np.array(flagged, float), np.array(other, float)) == pytest.approx(share)
