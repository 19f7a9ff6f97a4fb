"""`make bench` runs, and the work of a relayed request has not grown. Nothing here is about time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import orjson
import pytest

from benchmarks import bench, fast_upstream, load, measuring, proxy
from benchmarks.measuring import Answer, Claim, Series
from tests.server.fakes import gateway

REQUESTS = 100


async def answered(port: int, request: bytes) -> None:
    """So many requests over one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(REQUESTS):
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        if b"chunked" in head:
            got = await reader.readuntil(b"0\r\n\r\n")
            assert got.count(b"data: ") == fast_upstream.EVENTS + 1
        else:
            assert await reader.readexactly(len(fast_upstream.WHOLE)) == fast_upstream.WHOLE
    writer.close()


@pytest.mark.parametrize("kind", ["whole", "streamed"])
async def test_a_relayed_request_costs_one_task_one_parse_and_no_connection(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    done = {"tasks": 0, "timers": 0, "parses": 0}
    parse, call_at = orjson.loads, loop.call_at

    def counted_task(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], **more: Any) -> Any:
        done["tasks"] += 1
        return asyncio.Task(work, loop=loop, **more)

    def counted_timer(*given: Any, **more: Any) -> asyncio.TimerHandle:
        done["timers"] += 1
        return call_at(*given, **more)

    def counted_parse(raw: bytes) -> Any:
        done["parses"] += 1
        return parse(raw)

    listening = await loop.create_server(fast_upstream.Connection, "127.0.0.1", 0)
    before = fast_upstream.connections
    async with gateway(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}") as gate:
        await asyncio.sleep(0.2)
        monkeypatch.setattr(orjson, "loads", counted_parse)
        monkeypatch.setattr(loop, "call_at", counted_timer)
        # A body in another spelling than orjson's would be read by this one.
        monkeypatch.setattr(json, "loads", None)
        loop.set_task_factory(counted_task)
        await answered(gate.port, proxy._ask(kind, {}))
        loop.set_task_factory(None)
        monkeypatch.undo()
    listening.close()
    # uvicorn's own; and what goes on beside the requests now and then.
    assert done["tasks"] < 1.1 * REQUESTS
    # The body, once; of the answer nothing.
    assert done["parses"] == REQUESTS
    # uvicorn's keep-alive; the rest is what goes on beside the requests.
    assert done["timers"] < 1.5 * REQUESTS
    # The gateway's health checks, its probe of the start time, and one for all requests.
    assert fast_upstream.connections - before <= 4


def test_the_proxies_are_measured_and_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = proxy.measure
    monkeypatch.setattr(proxy, "measure", lambda quick: measure(quick, others={}, scale=0.01))
    assert bench.run(["proxy"], quick=True, out=tmp_path) == 0
    written = json.loads((tmp_path / "bench.json").read_text())
    found = written["questions"]["proxy"]
    assert {series["name"] for series in found["series"]} >= {
        f"{kind}: {name}, {what}"
        for kind in proxy.KINDS for name in ("lethe", "bare relay", "no proxy")
        for what in ("CPU", "throughput", "p50", "p99")
    }  # fmt: skip
    assert all(value > 0 for series in found["series"] for value in series["values"])
    assert written["machine"]["cores"] >= 1 and len(found["claims"]) >= 3
    assert (tmp_path / "bench-proxy.svg").read_text().startswith("<svg")


def test_a_question_that_fails_leaves_the_others_their_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(quick: bool) -> Answer:
        raise RuntimeError("no answer")

    monkeypatch.setattr(proxy, "measure", fails)
    assert bench.run(["proxy"], quick=True, out=tmp_path) == 1
    assert "no answer" in json.loads((tmp_path / "bench.json").read_text())["questions"]["proxy"]["failed"]


def test_ratios_are_taken_round_by_round() -> None:
    # The machine was three times slower in the second round, for both.
    a, b = Series("a", "µs", [1.0, 3.0, 1.2]), Series("b", "µs", [2.0, 6.0, 2.0])
    claim = Claim.ratio("a against b", a, b, at_most=0.55)
    assert list(claim.measured.values) == [0.5, 0.5, 0.6] and claim.holds
    assert not Claim.level("a", a, at_least=1.3).holds
    with pytest.raises(ValueError, match="one of them"):
        Claim.level("a", a)


def test_cpu_time_is_that_of_the_process_and_its_children() -> None:
    import os
    import time

    begun, own = measuring.cpu_s(os.getpid()), time.process_time()
    while time.process_time() - own < 0.05:
        pass
    assert 0.04 < measuring.cpu_s(os.getpid()) - begun < 1


def test_the_request_that_is_sent_is_read_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    request = load.post("/v1/chat/completions", proxy.BODY)
    head, _, body = request.partition(b"\r\n\r\n")
    assert b"content-length: %d" % len(body) in head and json.loads(body) == proxy.BODY
