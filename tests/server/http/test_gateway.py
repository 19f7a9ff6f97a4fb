"""The relay: same bytes both ways, errors as OpenAI clients read them, and clients that leave."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from lethe.classifier.work_limit import check_work
from lethe.server.guard.parsed_request import ParsedRequest
from lethe.server.requests.routes import ROUTES
from tests.server import fakes
from tests.server.fakes import (
    KEYWORD,
    FakeUpstream,
    KeywordJudge,
    Running,
    gateway,
    is_refusal,
    make_guard,
    policy,
    upstream,
)

ODD = b'{ "messages" : [ {"role":"user", "content":"h\\u00e9llo \xe2\x82\xac"} ],\n "seed": 1e0, "model":"m" }  '
FLAGGED = json.dumps({"model": "m", "messages": [{"role": "user", "content": f"about {KEYWORD}"}]}).encode()
ANSWER = b'{ "id": "x",\n  "choices": [ ] }'
JSON = {"content-type": "application/json"}


async def answer(fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
    return web.Response(body=ANSWER, headers={"content-type": "application/json", "x-from": "vllm", "date": "D"})


async def stream(fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    for i in range(3):
        await response.write(b"data: %d\r\n\r\n" % i)
    await response.write(b"data: [DONE]\n\n")
    return response


async def never(fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(60)
    raise AssertionError("nobody cancelled the request")


async def headers_only(fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    await asyncio.sleep(60)
    raise AssertionError("nobody cancelled the request")


async def endless(fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    while True:
        await response.write(b"data: {}\n\n")
        await asyncio.sleep(0.01)


async def breaks_off(fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
    kind = "text/event-stream" if request.query_string else "application/json"
    response = web.StreamResponse(headers={"content-type": kind})
    response.enable_chunked_encoding()
    await response.prepare(request)
    await response.write(b"data: 1\n\n")
    await asyncio.sleep(0.05)
    assert request.transport is not None
    request.transport.abort()
    await asyncio.sleep(0.05)
    return response


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        yield session


async def test_an_unflagged_request_reaches_upstream_byte_for_byte(
    http: aiohttp.ClientSession,
) -> None:
    async with upstream(answer) as fake, gateway(fake.url, make_guard(policy())) as gate:
        url = f"{gate.url}/v1/chat/completions"
        async with http.post(url, data=ODD, headers={**JSON, "authorization": "Bearer k", "x-own": "1"}) as got:
            assert await got.read() == ANSWER
        assert fake.bodies == [ODD]
        assert fake.headers[0]["authorization"] == "Bearer k"
        assert fake.headers[0]["x-own"] == "1"
        assert got.headers["x-from"] == "vllm"
        assert got.headers.getall("date") == ["D"]
        assert got.headers["content-length"] == str(len(ANSWER))


async def test_a_stream_is_relayed_byte_for_byte(http: aiohttp.ClientSession) -> None:
    async with upstream(stream) as fake, gateway(fake.url, make_guard(policy())) as gate:
        async with http.post(f"{gate.url}/v1/completions", data=b'{"prompt":"a","stream":true}', headers=JSON) as got:
            assert await got.read() == b"data: 0\r\n\r\ndata: 1\r\n\r\ndata: 2\r\n\r\ndata: [DONE]\n\n"
        assert got.headers["content-type"] == "text/event-stream; charset=utf-8"


async def test_models_are_relayed_without_judging(http: aiohttp.ClientSession) -> None:
    judge = KeywordJudge()
    async with upstream(answer) as fake, gateway(fake.url, make_guard(policy(), judge=judge)) as gate:
        async with http.get(f"{gate.url}/v1/models?x={KEYWORD}") as got:
            assert await got.read() == ANSWER
        assert judge.judged == []


async def test_a_refusal_has_openais_shape_and_sends_nothing_upstream(
    http: aiohttp.ClientSession,
) -> None:
    guard = make_guard(policy(refuse={"message": "not here", "as": "error"}))
    async with upstream(answer) as fake, gateway(fake.url, guard) as gate:
        async with http.post(f"{gate.url}/v1/chat/completions", data=FLAGGED, headers=JSON) as got:
            assert got.status == 400
            assert await got.json() == {
                "error": {
                    "message": "not here",
                    "type": "policy_error",
                    "param": None,
                    "code": "refused_by_policy",
                }
            }
        assert got.headers["x-should-retry"] == "false"
        assert fake.bodies == []
        assert gate.count("lethe_verdicts_total", policy="p", mode="enforce", flagged="true") == 1


async def test_a_shadow_policy_changes_no_byte(http: aiohttp.ClientSession) -> None:
    async with upstream(answer) as fake, gateway(fake.url, make_guard(policy(mode="shadow"))) as gate:
        async with http.post(f"{gate.url}/v1/chat/completions", data=FLAGGED, headers=JSON) as got:
            assert await got.read() == ANSWER
        assert fake.bodies == [FLAGGED]
        assert gate.count("lethe_verdicts_total", policy="p", mode="shadow", flagged="true") == 1


async def test_a_policy_for_other_models_does_not_judge(http: aiohttp.ClientSession) -> None:
    judge = KeywordJudge()
    async with (
        upstream(answer) as fake,
        gateway(fake.url, make_guard(policy(models=["n"]), judge=judge)) as gate,
    ):
        async with http.post(f"{gate.url}/v1/chat/completions", data=FLAGGED, headers=JSON) as got:
            assert await got.read() == ANSWER
        assert fake.bodies == [FLAGGED] and judge.judged == []
        nameless = FLAGGED.replace(b'"model": "m", ', b"")
        async with http.post(f"{gate.url}/v1/chat/completions", data=nameless, headers=JSON) as got:
            assert is_refusal(got.status, await got.read())


async def test_routing_changes_only_the_model(http: aiohttp.ClientSession) -> None:
    guard = make_guard(policy(action="route", route={"model": "twin"}))
    async with upstream(answer) as fake, gateway(fake.url, guard) as gate:
        async with http.post(f"{gate.url}/v1/chat/completions", data=FLAGGED, headers=JSON) as got:
            assert got.status == 200
        assert json.loads(fake.bodies[0]) == {**json.loads(FLAGGED), "model": "twin"}


@pytest.mark.parametrize("on_failure", ["refuse", "pass"])
async def test_on_failure_decides_when_judging_fails(http: aiohttp.ClientSession, on_failure: str) -> None:
    guard = make_guard(policy(on_failure=on_failure), judge=KeywordJudge(error=RuntimeError("broken")))
    async with upstream(answer) as fake, gateway(fake.url, guard) as gate:
        async with http.post(f"{gate.url}/v1/chat/completions", data=ODD, headers=JSON) as got:
            assert is_refusal(got.status, await got.read()) is (on_failure == "refuse")
        assert fake.bodies == ([ODD] if on_failure == "pass" else [])
        assert gate.count("lethe_guard_failures_total", policy="p", stage="judge", outcome=on_failure) == 1


@pytest.mark.parametrize("on_failure", ["refuse", "pass"])
async def test_judging_that_takes_too_long_is_overload(http: aiohttp.ClientSession, on_failure: str) -> None:
    hold = threading.Event()
    guard = make_guard(policy(on_failure=on_failure), judge=KeywordJudge(hold=hold))
    async with upstream(answer) as fake, gateway(fake.url, guard, judge_timeout_s=0.05) as gate:
        async with http.post(f"{gate.url}/v1/chat/completions", data=ODD, headers=JSON) as got:
            assert got.status == 503 and int(got.headers["retry-after"]) >= 1
            assert (await got.json())["error"]["code"] == "judge_timeout"
        assert fake.bodies == []
        assert gate.count("lethe_guard_failures_total", policy="p", stage="judge", outcome=on_failure) == 0
        hold.set()


@pytest.mark.parametrize("on_failure", ["refuse", "pass"])
async def test_a_request_of_too_much_work_is_overload(http: aiohttp.ClientSession, on_failure: str) -> None:
    def endless(texts: object, **more: object) -> None:
        while True:
            check_work()

    judge = KeywordJudge()
    judge.judge = endless  # type: ignore[method-assign,assignment]
    guard = make_guard(policy(on_failure=on_failure), judge=judge)
    async with upstream(answer) as fake, gateway(fake.url, guard, judge_cpu_s=0.1) as gate:
        async with http.post(f"{gate.url}/v1/chat/completions", data=ODD, headers=JSON) as got:
            assert got.status == 503 and int(got.headers["retry-after"]) >= 1
            assert (await got.json())["error"]["code"] == "judge_work_exceeded"
        assert fake.bodies == []
        assert gate.count("lethe_guard_failures_total", policy="p", stage="judge", outcome=on_failure) == 0


async def test_a_failure_while_reading_never_forwards(
    http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = make_guard(policy())

    def parse(endpoint: str, body: object) -> ParsedRequest:
        raise RuntimeError("a bug")

    monkeypatch.setattr(guard, "parse", parse)
    async with upstream(answer) as fake, gateway(fake.url, guard) as gate:
        async with http.post(f"{gate.url}/v1/chat/completions", data=ODD, headers=JSON) as got:
            assert got.status == 500
            assert (await got.json())["error"]["message"] == "internal error"
        assert fake.bodies == []


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b"{", {}, 400, "invalid_json"),
        (b'{"a":1,"a":2}', {}, 400, "duplicate_key"),
        (b'{"messages":[],"prompt_embeds":"x"}', {}, 400, "refused_field"),
        (ODD, {"content-encoding": "gzip"}, 400, "content_encoding"),
        (b" " * 3000 + ODD, {}, 413, "body_too_large"),
        (
            json.dumps({"messages": [{"role": "user", "content": "a " * 600}]}).encode(),
            {},
            400,
            "context_length_exceeded",
        ),
    ],
)
async def test_a_request_that_cant_be_read_gets_a_clear_error(
    http: aiohttp.ClientSession, body: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    guard = make_guard(policy(), max_prompt_chars=1000)
    async with upstream(answer) as fake, gateway(fake.url, guard, max_body_bytes=2500) as gate:
        async with http.post(f"{gate.url}/v1/chat/completions", data=body, headers={**JSON, **headers}) as got:
            assert got.status == status
            error = (await got.json())["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["code"] == code
        assert fake.bodies == []


async def test_unknown_routes_and_methods_answer_in_openais_shape(http: aiohttp.ClientSession) -> None:
    async with upstream(answer) as fake, gateway(fake.url) as gate:
        for method, path, status in [("GET", "/v1/responses/resp_1", 404), ("POST", "/invocations", 404),
                                     ("GET", "/v1/chat/completions", 405), ("GET", "/docs", 404),
                                     ("POST", "/v1/unknown/", 404)]:  # fmt: skip
            async with http.request(method, gate.url + path, allow_redirects=False) as got:
                assert got.status == status, path
                assert set((await got.json())["error"]) == {"message", "type", "param", "code"}
        assert fake.bodies == []


async def test_a_slash_at_the_end_of_a_path_is_redirected_as_by_vllm(http: aiohttp.ClientSession) -> None:
    async with upstream(answer) as fake, gateway(fake.url) as gate:
        for path, method, _ in ROUTES:
            url = URL(f"{gate.url}{path}/?a=%2F", encoded=True)
            async with http.request(method, url, allow_redirects=False) as got:
                assert (got.status, got.headers["location"]) == (307, f"{path}?a=%2F"), path
        assert fake.bodies == []
        async with http.post(f"{gate.url}/v1/chat/completions/", data=ODD, headers=JSON) as got:
            assert await got.read() == ANSWER
        assert fake.bodies == [ODD]


async def test_a_dead_upstream_is_a_503(http: aiohttp.ClientSession) -> None:
    async with upstream(answer) as fake:
        url = fake.url
    async with gateway(url) as gate:
        async with http.post(f"{gate.url}/v1/chat/completions", data=ODD, headers=JSON) as got:
            assert got.status == 503
            assert (await got.json())["error"]["code"] == "no_replica"
        assert got.headers["x-should-retry"] == "true" and int(got.headers["retry-after"]) >= 1
        async with http.get(f"{gate.url}/ready") as got:
            assert got.status == 503
        async with http.get(f"{gate.url}/health") as got:
            assert got.status == 200


@pytest.mark.parametrize("action", ["refuse", "corrupt", "penalize", "both", "watch"])
async def test_without_a_replica_flagged_or_not_is_the_same_503(http: aiohttp.ClientSession, action: str) -> None:
    async with upstream(answer) as fake:
        url = fake.url
    guard = make_guard(policy(action=action, on_unsupported="refuse"))
    async with gateway(url, guard, probe_interval_s=0.05) as gate:
        await until(lambda: gate.count("lethe_replica_up", replica=url) == 0, "still up")
        for path, flagged in (("chat/completions", FLAGGED), ("messages", FLAGGED)):
            answers = []
            for body in (flagged, flagged.replace(KEYWORD.encode(), b"hello")):
                headers = {**JSON, "x-request-id": "one"}
                async with http.post(f"{gate.url}/v1/{path}", data=body, headers=headers) as got:
                    answers.append((got.status, await got.read(), dict(got.headers)))
            assert answers[0] == answers[1] and answers[0][0] == 503
        # A missing replica is no failure of the guard, so that no alert on one is raised.
        text = gate.metrics.render().decode().splitlines()
        assert not [line for line in text if line.startswith("lethe_guard_failures_total{") and line[-4:] != " 0.0"]


async def test_a_silent_upstream_is_a_504(http: aiohttp.ClientSession) -> None:
    async with upstream(never) as fake, gateway(fake.url, read_timeout_s=0.2) as gate:
        async with http.post(f"{gate.url}/v1/chat/completions", data=ODD, headers=JSON) as got:
            assert got.status == 504


async def test_a_broken_stream_ends_with_an_error_event(http: aiohttp.ClientSession) -> None:
    async with upstream(breaks_off) as fake, gateway(fake.url) as gate:
        async with http.post(f"{gate.url}/v1/chat/completions?sse", data=ODD, headers=JSON) as got:
            events = [event for event in (await got.read()).split(b"\n\n") if event]
        assert events[0] == b"data: 1"
        assert json.loads(events[1].removeprefix(b"data: "))["error"]["code"] == "broken"
        assert gate.count("lethe_upstream_errors_total", kind="broken") == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_broken_whole_answer_closes_the_connection(http: aiohttp.ClientSession) -> None:
    async with upstream(breaks_off) as fake, gateway(fake.url) as gate:
        with pytest.raises(aiohttp.ClientError):
            async with http.post(f"{gate.url}/v1/chat/completions", data=ODD, headers=JSON) as got:
                await got.read()


async def leave(
    gate: Running, body: bytes, when: asyncio.Event | threading.Event | None, *, headers: bool = False
) -> None:
    """Send a request, and close the connection once `when` is set (None: once an answer byte is there).

    headers: wait until the gateway has the upstream's headers, too.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", gate.port)
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n")
    writer.write(b"content-length: %d\r\n\r\n" % len(body) + body)
    await writer.drain()
    if when is None:
        await asyncio.wait_for(reader.readuntil(b"data:"), 5)
    elif isinstance(when, asyncio.Event):
        await asyncio.wait_for(when.wait(), 5)
    else:
        assert await asyncio.to_thread(when.wait, 5)
    if headers:
        await until(lambda: gate.count("lethe_upstream_first_byte_seconds_count") == 1, "no headers came")
    writer.close()
    await writer.wait_closed()


async def until(condition: object, what: str) -> None:
    assert callable(condition)
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(what)


async def test_a_disconnect_while_judging_sends_nothing_upstream() -> None:
    hold = threading.Event()
    judge = KeywordJudge(hold=hold)
    async with upstream(answer) as fake, gateway(fake.url, make_guard(policy(), judge=judge)) as gate:
        await leave(gate, ODD, judge.begun)
        await until(lambda: gate.count("lethe_client_gone_total", window="judging") == 1, "not noticed")
        hold.set()
        await until(lambda: gate.count("lethe_requests_in_flight") == 0, "still in flight")
        assert fake.bodies == []


@pytest.mark.parametrize(
    ("handler", "window"), [(never, "headers"), (headers_only, "first_byte"), (endless, "streaming")]
)
async def test_a_disconnect_aborts_the_upstream_request(handler: fakes.Handler, window: str) -> None:
    async with upstream(handler) as fake, gateway(fake.url, make_guard(policy())) as gate:
        await leave(gate, ODD, None if handler is endless else fake.arrived, headers=handler is headers_only)
        await asyncio.wait_for(fake.closed.wait(), 5)
        await until(lambda: gate.count("lethe_requests_in_flight") == 0, "still in flight")
        assert gate.count("lethe_client_gone_total", window=window) == 1


async def test_a_valid_request_id_of_the_client_is_kept(http: aiohttp.ClientSession) -> None:
    async with upstream(answer) as fake, gateway(fake.url) as gate:
        for sent, same in [("abc-1", True), ("x" * 300, False)]:
            async with http.get(f"{gate.url}/v1/models", headers={"x-request-id": sent}) as got:
                assert (got.headers["x-request-id"] == sent) is same
