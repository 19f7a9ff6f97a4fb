"""Load is bounded: what is too much or too slow is refused with its setting's name, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from lethe.server.observability import loop_lag
from tests.server.fakes import FakeUpstream, KeywordJudge, Running, gateway, make_guard, policy, upstream

CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


async def answer(fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
    return web.json_response({"choices": []})


def long(characters: int) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "word " * (characters // 5)}]}


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        yield session


async def until(condition: Any, what: str) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(what)


async def posted(
    http: aiohttp.ClientSession, gate: Running, body: dict[str, Any] | None = None
) -> tuple[int, str | None, str]:
    """Status, code and message of the answer to one request."""
    data = io.BytesIO(json.dumps(body or BODY).encode())
    async with http.post(gate.url + CHAT, data=data, headers={"content-type": "application/json"}) as got:
        found = (await got.json()).get("error", {})
        if got.status in (429, 503):
            assert int(got.headers["retry-after"]) >= 1 and got.headers["x-should-retry"] == "true"
    return got.status, found.get("code"), found.get("message", "")


class Holding:
    """An upstream that answers posts when it is told to."""

    def __init__(self) -> None:
        self.release = asyncio.Event()

    async def __call__(self, fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
        if request.method == "POST":
            await self.release.wait()
        return web.json_response({"choices": []})


async def quiet(gate: Running) -> None:
    """Nothing is left of any request."""
    for name in ("requests_in_flight", "queue_length", "judge_queue_length", "held_bytes"):
        await until(lambda name=name: gate.count(f"lethe_{name}") == 0, name)


async def test_requests_over_the_limit_wait_then_get_an_error(http: aiohttp.ClientSession) -> None:
    hold = Holding()
    async with upstream(hold) as fake, gateway(fake.url, max_requests=2, max_queue=1) as gate:
        served = [asyncio.ensure_future(posted(http, gate)) for _ in range(3)]
        await until(lambda: gate.count("lethe_queue_length") == 1 and len(fake.bodies) == 2, "nobody waits")
        status, code, message = await posted(http, gate)
        assert (status, code) == (503, "queue_full") and "LETHE_MAX_REQUESTS" in message
        await until(lambda: gate.count("lethe_refusals_total", reason="queue_full") == 1, "not counted")
        hold.release.set()
        assert [status for status, *_ in await asyncio.gather(*served)] == [200] * 3
        await quiet(gate)


async def test_waiting_in_the_queue_times_out(http: aiohttp.ClientSession) -> None:
    hold = Holding()
    async with upstream(hold) as fake, gateway(fake.url, max_requests=1, queue_timeout_s=0.1) as gate:
        served = asyncio.ensure_future(posted(http, gate))
        await fake.arrived.wait()
        status, code, message = await posted(http, gate)
        assert (status, code) == (503, "queue_timeout") and "LETHE_QUEUE_TIMEOUT_S" in message
        hold.release.set()
        assert (await served)[0] == 200


async def test_a_disconnect_in_the_queue_is_never_served(http: aiohttp.ClientSession) -> None:
    hold = Holding()
    async with upstream(hold) as fake, gateway(fake.url, max_requests=1) as gate:
        served = asyncio.ensure_future(posted(http, gate))
        await fake.arrived.wait()
        leaving = asyncio.ensure_future(posted(http, gate))
        await until(lambda: gate.count("lethe_queue_length") == 1, "nobody waits")
        leaving.cancel()
        await until(lambda: gate.count("lethe_client_gone_total", window="waiting") == 1, "not noticed")
        hold.release.set()
        assert (await served)[0] == 200
        await quiet(gate)
        assert len(fake.bodies) == 1


@contextlib.asynccontextmanager
async def writing(gate: Running, length: int, sent: bytes) -> AsyncIterator[asyncio.StreamReader]:
    """A client that has said how long its body is and sent only some of it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gate.port)
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n")
    writer.write(b"content-length: %d\r\n\r\n" % length + sent)
    await writer.drain()
    try:
        yield reader
    finally:
        writer.transport.abort()


async def test_slow_uploads_take_no_slot_and_time_out(http: aiohttp.ClientSession) -> None:
    async with upstream(answer) as fake, gateway(fake.url, max_requests=1, body_timeout_s=1.0) as gate:
        async with contextlib.AsyncExitStack() as stack:
            writers = [await stack.enter_async_context(writing(gate, 1000, b'{"a":')) for _ in range(20)]
            await until(lambda: gate.count("lethe_held_bytes") == 100, "not there")
            assert (await posted(http, gate))[0] == 200
            for reader in writers:
                assert b" 408 " in await asyncio.wait_for(reader.readline(), 10)
        await quiet(gate)
        assert gate.count("lethe_refusals_total", reason="body_timeout") == 20


async def test_the_memory_for_all_bodies_is_limited(http: aiohttp.ClientSession) -> None:
    async with upstream(answer) as fake, gateway(fake.url, max_held_bytes=5000) as gate:
        async with writing(gate, 6000, b" " * 4500):
            await until(lambda: gate.count("lethe_held_bytes") == 4500, "not there")
            status, code, message = await posted(http, gate, long(1000))
            assert (status, code) == (503, "memory_full") and "LETHE_MAX_HELD_BYTES" in message
            assert (await posted(http, gate))[0] == 200
        await quiet(gate)
        assert (await posted(http, gate, long(1000)))[0] == 200


async def test_stalled_uploads_lock_nobody_out(http: aiohttp.ClientSession) -> None:
    size = 4 << 20
    limits, guard = {"max_held_bytes": 4 * size, "max_body_bytes": size}, make_guard(max_prompt_chars=size)
    async with (
        upstream(answer) as fake,
        gateway(fake.url, guard, **limits) as gate,
        contextlib.AsyncExitStack() as stack,
    ):
        writers = [await stack.enter_async_context(writing(gate, size, b" " * (size - 5))) for _ in range(8)]
        await until(lambda: gate.count("lethe_held_bytes") >= 2 * size, "not there")
        # Small bodies are served at once, large ones as soon as the uploads count as stalled.
        assert (await posted(http, gate))[0] == 200
        await asyncio.sleep(1.5)
        for _ in range(4):
            assert (await posted(http, gate, long(size - 4096)))[0] == 200
        firsts = [await asyncio.wait_for(reader.readline(), 5) for reader in writers if reader._buffer]  # type: ignore[attr-defined]
        assert firsts and {line.split()[1] for line in firsts} <= {b"408", b"503"}
        assert gate.count("lethe_refusals_total", reason="body_too_slow") >= 1
    await quiet(gate)
    assert gate.count("lethe_held_bytes") == 0


async def test_json_over_its_limits_is_a_bad_request(http: aiohttp.ClientSession) -> None:
    async with upstream(answer) as fake, gateway(fake.url, max_json_depth=8, max_json_values=64) as gate:
        deep = {"messages": [], "x": [[[[[[[[[]]]]]]]]]}
        status, code, message = await posted(http, gate, deep)
        assert (status, code) == (400, "too_deep") and "LETHE_MAX_JSON_DEPTH" in message
        status, code, message = await posted(http, gate, {"prompt": [1] * 100})
        assert (status, code) == (400, "too_many_values") and "LETHE_MAX_JSON_VALUES" in message
        assert fake.bodies == []


@pytest.mark.parametrize("on_failure", ["refuse", "pass"])
async def test_a_full_judge_queue_lets_no_request_pass(http: aiohttp.ClientSession, on_failure: str) -> None:
    hold = threading.Event()
    guard = make_guard(policy(on_failure=on_failure), judge=KeywordJudge(hold=hold))
    async with upstream(answer) as fake, gateway(fake.url, guard, judge_threads=1, judge_queue=1) as gate:
        served = [asyncio.ensure_future(posted(http, gate)) for _ in range(2)]
        await until(lambda: gate.count("lethe_judge_queue_length") == 1, "nobody waits")
        status, code, message = await posted(http, gate)
        assert (status, code) == (503, "judge_queue_full") and "LETHE_JUDGE_QUEUE" in message
        assert fake.bodies == []
        hold.set()
        assert [status for status, *_ in await asyncio.gather(*served)] == [200] * 2
        await quiet(gate)


@pytest.mark.parametrize("on_failure", ["refuse", "pass"])
async def test_a_judgement_that_never_starts_is_overload(http: aiohttp.ClientSession, on_failure: str) -> None:
    hold = threading.Event()
    judge = KeywordJudge(hold=hold)
    guard = make_guard(policy(on_failure=on_failure), judge=judge)
    async with upstream(answer) as fake, gateway(fake.url, guard, judge_threads=1, judge_wait_s=0.1) as gate:
        served = asyncio.ensure_future(posted(http, gate))
        assert await asyncio.to_thread(judge.begun.wait, 5)
        status, code, message = await posted(http, gate)
        assert (status, code) == (503, "judge_queue_timeout") and "LETHE_JUDGE_WAIT_S" in message
        hold.set()
        assert (await served)[0] == 200 and len(judge.judged) == 1
        assert gate.count("lethe_guard_failures_total", policy="p", stage="judge", outcome=on_failure) == 0


async def test_a_disconnect_before_judging_is_never_judged(http: aiohttp.ClientSession) -> None:
    hold = threading.Event()
    judge = KeywordJudge(hold=hold)
    async with upstream(answer) as fake, gateway(
        fake.url, make_guard(policy(), judge=judge), judge_threads=1
    ) as gate:  # fmt: skip
        served = asyncio.ensure_future(posted(http, gate))
        assert await asyncio.to_thread(judge.begun.wait, 5)
        leaving = [asyncio.ensure_future(posted(http, gate)) for _ in range(5)]
        await until(lambda: gate.count("lethe_judge_queue_length") == 5, "nobody waits")
        for one in leaving:
            one.cancel()
        await until(lambda: gate.count("lethe_client_gone_total", window="judging") == 5, "not noticed")
        hold.set()
        assert (await served)[0] == 200
        await quiet(gate)
        assert len(judge.judged) == 1 and len(fake.bodies) == 1


async def test_short_prompts_overtake_long_ones(http: aiohttp.ClientSession) -> None:
    """Two threads; many long prompts are being judged and wait; every short one is answered meanwhile."""
    hold = threading.Event()

    class Slow(KeywordJudge):
        def judge(self, texts: Any, *, thresholds: Any) -> Any:
            if sum(map(len, texts)) > 20_000:
                assert hold.wait(20)
            return super().judge(texts, thresholds=thresholds)

    guard = make_guard(policy(), judge=Slow())
    async with upstream(answer) as fake, gateway(fake.url, guard, judge_threads=2) as gate:
        waiting = [asyncio.ensure_future(posted(http, gate, long(25_000))) for _ in range(6)]
        await until(lambda: gate.count("lethe_judge_queue_length") == 5, "nobody waits")
        for _ in range(10):
            assert (await posted(http, gate))[0] == 200
        assert not any(one.done() for one in waiting)
        hold.set()
        assert [status for status, *_ in await asyncio.gather(*waiting)] == [200] * 6
        await quiet(gate)


async def headers_only(fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    await asyncio.sleep(60 if request.method == "POST" else 0)
    return response


async def never(fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(60 if request.method == "POST" else 0)
    return web.json_response({})


async def endless(fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    while request.method == "POST":
        await response.write(b"data: {}\n\n")
        await asyncio.sleep(0.02)
    return response


async def test_a_missing_first_byte_is_a_504(http: aiohttp.ClientSession) -> None:
    async with upstream(never) as fake, gateway(fake.url, first_byte_timeout_s=0.2) as gate:
        status, code, message = await posted(http, gate)
        assert (status, code) == (504, "first_byte_timeout") and "LETHE_FIRST_BYTE_TIMEOUT_S" in message
        await asyncio.wait_for(fake.closed.wait(), 5)
        await quiet(gate)


async def events(http: aiohttp.ClientSession, gate: Running) -> list[bytes]:
    async with http.post(gate.url + CHAT, json=BODY) as got:
        assert got.status == 200
        return [event for event in (await got.read()).split(b"\n\n") if event]


async def test_headers_do_not_count_as_the_first_byte(http: aiohttp.ClientSession) -> None:
    async with upstream(headers_only) as fake, gateway(fake.url, first_byte_timeout_s=0.2) as gate:
        (event,) = await events(http, gate)
        assert json.loads(event.removeprefix(b"data: "))["error"]["code"] == "first_byte_timeout"
        await asyncio.wait_for(fake.closed.wait(), 5)


async def test_a_stream_may_outlast_the_first_byte_limit_only(http: aiohttp.ClientSession) -> None:
    async with upstream(endless) as fake, gateway(fake.url, first_byte_timeout_s=0.3, request_timeout_s=1.0) as gate:
        *data, last = await events(http, gate)
        assert len(data) > 5 and set(data) == {b"data: {}"}
        error = json.loads(last.removeprefix(b"data: "))["error"]
        assert error["code"] == "request_timeout" and "LETHE_REQUEST_TIMEOUT_S" in error["message"]
        await asyncio.wait_for(fake.closed.wait(), 5)
        await quiet(gate)


async def test_a_whole_request_that_takes_too_long_is_a_504(http: aiohttp.ClientSession) -> None:
    async with upstream(never) as fake, gateway(fake.url, request_timeout_s=0.2) as gate:
        status, code, _ = await posted(http, gate)
        assert (status, code) == (504, "request_timeout")
        await asyncio.wait_for(fake.closed.wait(), 5)
        await quiet(gate)


async def test_requests_in_flight_at_shutdown_get_an_error(http: aiohttp.ClientSession) -> None:
    async with upstream(never) as fake:
        async with gateway(fake.url) as gate:
            waiting = asyncio.ensure_future(posted(http, gate))
            await fake.arrived.wait()
        # It has ended, and drained for a second.
        status, code, message = await waiting
        assert (status, code) == (503, "shutting_down") and "LETHE_DRAIN_TIMEOUT_S" in message
        await asyncio.wait_for(fake.closed.wait(), 5)


async def test_streams_in_flight_at_shutdown_get_an_error_event(http: aiohttp.ClientSession) -> None:
    async with upstream(endless) as fake:
        async with gateway(fake.url) as gate:
            streaming = asyncio.ensure_future(events(http, gate))
            await until(lambda: gate.count("lethe_upstream_first_byte_seconds_count") == 1, "not begun")
        *data, last = await streaming
        assert data and json.loads(last.removeprefix(b"data: "))["error"]["code"] == "shutting_down"


async def test_judging_and_reading_do_not_block_the_event_loop(http: aiohttp.ClientSession) -> None:
    """Long judgements and megabytes of JSON at once: the loop goes on, health is answered, and the gauge says so.

    The judge computes without letting go of the interpreter, as the worst classifier would. What is counted is how
    often the loop came round meanwhile: it would be about never, were any of this done on it.
    """

    class Busy(KeywordJudge):
        def judge(self, texts: Any, *, thresholds: Any) -> Any:
            end = time.thread_time() + 0.3
            while time.thread_time() < end:
                sum(range(1000))
            return super().judge(texts, thresholds=thresholds)

    rounds = 0

    async def count() -> None:
        nonlocal rounds
        while True:
            await asyncio.sleep(0.01)
            rounds += 1

    guard = make_guard(policy(), judge=Busy(), max_prompt_chars=10_000_000)
    many = {**BODY, "tools": [{"type": "function", "function": {"name": f"f{i}"}} for i in range(30_000)]}
    bodies = [BODY, long(30_000), long(2_000_000), many] * 3
    async with upstream(answer) as fake, gateway(fake.url, guard, judge_wait_s=60, judge_timeout_s=60) as gate:
        counting = asyncio.ensure_future(count())
        sent = [asyncio.ensure_future(posted(http, gate, body)) for body in bodies]
        answered = 0
        while not all(one.done() for one in sent):
            async with http.get(gate.url + "/health") as got:
                assert got.status == 200
                answered += 1
            await asyncio.sleep(0.02)
        counting.cancel()
        assert {status for status, *_ in await asyncio.gather(*sent)} == {200}
        # At least 3.6 s of computing went on in threads meanwhile.
        assert rounds > 40 and answered > 20
        await asyncio.sleep(2 * loop_lag.INTERVAL_S)
        assert 0 <= gate.count("lethe_loop_lag_seconds") < 5
