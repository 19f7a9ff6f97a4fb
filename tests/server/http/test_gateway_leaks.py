"""What could tell a flagged request from another one through the running gateway: cached tokens, and time."""

from __future__ import annotations

import asyncio
import gzip
import json
import statistics
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.server.fakes import KEYWORD, FakeUpstream, Handler, KeywordJudge, gateway, make_guard, policy, upstream
from tests.server.guard.test_output_filter import guard

JSON = {"content-type": "application/json", "accept-encoding": "gzip, br"}
PATHS = {"chat": "/v1/chat/completions", "responses": "/v1/responses", "messages": "/v1/messages"}
MESSAGES = [{"role": "user", "content": "hello"}]
BODIES: dict[str, Any] = {
    "chat": {"model": "m", "messages": MESSAGES},
    "responses": {"model": "m", "input": "hello"},
    "messages": {"model": "m", "messages": MESSAGES, "max_tokens": 5},
}
USAGES: dict[str, Any] = {
    "chat": {"prompt_tokens": 1700, "prompt_tokens_details": {"cached_tokens": 1664, "created_cache_tokens": None}},
    "responses": {"input_tokens": 1700, "input_tokens_details": {"cached_tokens": 1664}, "output_tokens": 5},
    "messages": {"input_tokens": 36, "output_tokens": 5, "cache_read_input_tokens": 1664},
}
WITHHELD: dict[str, Any] = {
    "chat": {"prompt_tokens": 1700, "prompt_tokens_details": {"cached_tokens": 0, "created_cache_tokens": None}},
    "responses": {"input_tokens": 1700, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 5},
    "messages": {"input_tokens": 1700, "output_tokens": 5},
}
# In seconds. Above what the fakes need for a decision, even on a busy machine.
DECISION_TIME_S = 0.4


def answers(payload: bytes, **headers: str) -> Handler:
    async def handler(fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
        if request.method == "GET":
            return web.json_response({"data": []})
        return web.Response(body=payload, headers={"content-type": "application/json", **headers})

    return handler


def streams(*pieces: bytes) -> Handler:
    async def handler(fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
            await asyncio.sleep(0.02)  # so that each piece is a chunk of its own
        return response

    return handler


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        yield session


async def post(http: aiohttp.ClientSession, url: str, endpoint: str = "chat", **more: Any) -> tuple[bytes, Any]:
    body = {**BODIES[endpoint], **more}
    async with http.post(url + PATHS[endpoint], data=json.dumps(body).encode(), headers=JSON) as got:
        assert got.status == 200
        return await got.read(), got.headers


@pytest.mark.parametrize("endpoint", PATHS)
async def test_cached_tokens_are_withheld_from_whole_answers(endpoint: str, http: aiohttp.ClientSession) -> None:
    raw = json.dumps({"id": "x", "usage": USAGES[endpoint]}).encode()
    async with upstream(answers(raw)) as fake, gateway(fake.url, make_guard(policy(action="corrupt"))) as gate:
        got, headers = await post(http, gate.url, endpoint)
        assert json.loads(got) == {"id": "x", "usage": WITHHELD[endpoint]}
        assert len(got) == len(raw) and headers["content-length"] == str(len(raw))
        assert fake.headers[0].getall("accept-encoding") == ["identity"]


async def test_cached_tokens_are_withheld_from_streams(http: aiohttp.ClientSession) -> None:
    event = b'data: {"usage":{"prompt_tokens_details":{"cached_tokens":1664}}}\n\n'
    pieces = event[:45], event[45:54], event[54:] + b"data: [DONE]\n\n"
    async with upstream(streams(*pieces)) as fake, gateway(fake.url, make_guard(policy(action="both"))) as gate:
        got, _ = await post(http, gate.url, stream=True)
    assert got == event.replace(b"1664", b"0   ") + b"data: [DONE]\n\n"


@pytest.mark.parametrize("stream", [False, True])
async def test_cached_tokens_are_withheld_from_filtered_answers(stream: bool, http: aiohttp.ClientSession) -> None:
    choice = {"index": 0, "finish_reason": "stop", "delta" if stream else "message": {"content": "hi"}}
    whole = json.dumps({"choices": [choice], "usage": USAGES["chat"]}).encode()
    events = [{"choices": [choice]}, {"choices": [], "usage": USAGES["chat"]}]
    handler = streams(*(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events), b"data: [DONE]\n\n")
    made = guard(policy(action="corrupt", watch={"when": "always"}))
    async with upstream(handler if stream else answers(whole)) as fake, gateway(fake.url, made) as gate:
        got, _ = await post(http, gate.url, stream=stream, stream_options={"include_usage": True} if stream else None)
    assert b'"content":"hi"' in got and b'"cached_tokens":0' in got and b"1664" not in got


@pytest.mark.parametrize(
    "given", [{"action": "penalize"}, {"action": "corrupt", "mode": "shadow"}, {"action": "corrupt", "models": ["n"]}]
)
async def test_other_answers_keep_their_bytes(given: dict[str, Any], http: aiohttp.ClientSession) -> None:
    raw = gzip.compress(json.dumps({"usage": USAGES["chat"]}).encode())
    async with (
        upstream(answers(raw, **{"content-encoding": "gzip"})) as fake,
        gateway(fake.url, make_guard(policy(**given))) as gate,
    ):
        got, _ = await post(http, gate.url)
        assert got == raw and fake.headers[0].getall("accept-encoding") == ["gzip, br"]


async def test_a_compressed_answer_is_relayed_although_none_was_wanted(http: aiohttp.ClientSession) -> None:
    # Without compression inside, so that the key stands in the compressed bytes, which have a checksum.
    raw = gzip.compress(json.dumps({"usage": USAGES["chat"]}).encode(), compresslevel=0)
    assert b'"cached_tokens"' in raw
    async with (
        upstream(answers(raw, **{"content-encoding": "gzip"})) as fake,
        gateway(fake.url, make_guard(policy(action="corrupt"))) as gate,
    ):
        got, _ = await post(http, gate.url)
        assert got == raw


async def seconds(http: aiohttp.ClientSession, url: str, text: str) -> float:
    started = time.perf_counter()
    await post(http, url, messages=[{"role": "user", "content": text}])
    return time.perf_counter() - started


@pytest.mark.parametrize("action", ["refuse", "penalize"])
@pytest.mark.parametrize("remembered", [False, True])
async def test_every_decision_takes_the_set_time(action: str, remembered: bool, http: aiohttp.ClientSession) -> None:
    made = make_guard(policy(action=action), judge=KeywordJudge(remembered=remembered))
    async with (
        upstream(answers(b'{"choices":[]}')) as fake,
        gateway(fake.url, made, decision_time_s=DECISION_TIME_S) as gate,
    ):
        for text in ("hello", f"about {KEYWORD}"):
            assert await seconds(http, gate.url, text) >= DECISION_TIME_S


async def test_a_judgement_counts_towards_the_set_time(http: aiohttp.ClientSession) -> None:
    class SlowJudge(KeywordJudge):
        def judge(self, *args: Any, **given: Any) -> Any:
            time.sleep(DECISION_TIME_S / 2)
            return super().judge(*args, **given)

    made = make_guard(policy(), judge=SlowJudge())
    async with (
        upstream(answers(b'{"choices":[]}')) as fake,
        gateway(fake.url, made, decision_time_s=DECISION_TIME_S) as gate,
    ):
        taken = [await seconds(http, gate.url, "hello") for _ in range(5)]
    assert min(taken) >= DECISION_TIME_S and statistics.median(taken) < 1.4 * DECISION_TIME_S


@pytest.mark.parametrize("given", [{"mode": "shadow"}, {"models": ["n"]}])
async def test_without_an_enforced_policy_nobody_waits(given: dict[str, Any], http: aiohttp.ClientSession) -> None:
    async with (
        upstream(answers(b'{"choices":[]}')) as fake,
        gateway(fake.url, make_guard(policy(**given)), decision_time_s=10) as gate,
    ):
        assert await seconds(http, gate.url, "hello") < 5


async def test_a_disconnect_ends_the_wait_for_the_set_time(http: aiohttp.ClientSession) -> None:
    async with (
        upstream(answers(b'{"choices":[]}')) as fake,
        gateway(fake.url, make_guard(policy()), decision_time_s=10) as gate,
    ):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(post(http, gate.url), 0.3)
        for _ in range(300):
            if gate.count("lethe_client_gone_total", window="judging"):
                break
            await asyncio.sleep(0.01)
        assert gate.count("lethe_client_gone_total", window="judging") == 1
        assert gate.count("lethe_requests_in_flight") == 0 and fake.bodies == []


async def test_the_request_deadline_ends_the_wait_for_the_set_time(http: aiohttp.ClientSession) -> None:
    async with (
        upstream(answers(b'{"choices":[]}')) as fake,
        gateway(fake.url, make_guard(policy()), decision_time_s=10, request_timeout_s=0.3) as gate,
        http.post(gate.url + PATHS["chat"], json=BODIES["chat"]) as got,
    ):
        assert got.status == 504 and (await got.json())["error"]["code"] == "request_timeout"
        assert fake.bodies == []
