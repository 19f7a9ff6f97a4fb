"""Failures of the model server look the same, flagged or not: errors inside streams, and a replica that just died."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import anthropic
import openai
import pytest
from aiohttp import web

from tests.server.fakes import KEYWORD, FakeUpstream, Handler, gateway, is_refusal, make_guard, policy, upstream
from tests.server.guard.test_guard import QUESTION
from tests.server.guard.test_output_filter import guard as filtering_guard
from tests.server.http.test_gateway_watch import stream
from tests.server.output.test_error_events import ERROR, NEUTRAL, OF_MESSAGES, OF_RESPONSES, TOLD
from tests.server.output.test_filter import chunk, encoded, message_events, response_events
from tests.server.upstream.fake_vllm import FakeVllm

FLAGGED = f"about {KEYWORD}"
DONE = b"data: [DONE]\n\n"
# Path → a stream that an error ends.
STREAMS = {
    "/v1/chat/completions": encoded(chunk(content="a"), ERROR),
    "/v1/messages": encoded(*message_events(["a"])[:-3], OF_MESSAGES, done=False),
    "/v1/responses": encoded(*response_events(["a"])[:-4], OF_RESPONSES, done=False),
}


def failing(cuts: bool) -> Handler:
    """Ends every stream with an error. cuts: the pieces end within events."""

    async def handler(fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
        if request.method == "GET":
            return web.json_response({"data": []})
        raw = STREAMS[request.path]
        size = 50 if cuts else len(raw)
        answer = stream(*(raw[at : at + size] for at in range(0, len(raw), size)))
        return await answer(fake, request)  # type: ignore[no-any-return]

    return handler


def asked(path: str, text: str) -> dict[str, Any]:
    prompt = {"input": text} if "responses" in path else {"messages": [{"role": "user", "content": text}]}
    return {"model": "m", "stream": True, "max_tokens": 9, **prompt}


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.mark.parametrize("path", STREAMS)
@pytest.mark.parametrize("cuts", [False, True])
async def test_an_error_in_a_rewritten_stream_is_neutral(path: str, cuts: bool, http: aiohttp.ClientSession) -> None:
    guard = make_guard(policy(action="route", route={"model": "twin"}))
    async with upstream(failing(cuts)) as fake, gateway(fake.url, guard) as gate:
        async with http.post(gate.url + path, json=asked(path, "hello")) as got:
            assert await got.read() == STREAMS[path]
        async with http.post(gate.url + path, json=asked(path, FLAGGED)) as got:
            raw = await got.read()
        assert [json.loads(body)["model"] for body in fake.bodies] == ["m", "twin"]
        before = STREAMS[path].index(b"data: " + json.dumps(ERROR).encode()[:9]) if "chat" in path else None
        before = STREAMS[path].index(b"event: error") if before is None else before
        assert raw.startswith(STREAMS[path][:before]) and len(raw) > before
        assert TOLD.encode() not in raw and NEUTRAL.encode() in raw
        assert gate.count("lethe_upstream_errors_total", kind="rewritten_refused") == 1


async def test_official_clients_raise_the_neutral_error() -> None:
    guard = make_guard(policy(action="route", route={"model": "twin"}))
    async with upstream(failing(cuts=False)) as fake, gateway(fake.url, guard) as gate:
        async with openai.AsyncOpenAI(base_url=f"{gate.url}/v1", api_key="none") as client:
            messages: Any = [{"role": "user", "content": FLAGGED}]
            with pytest.raises(openai.APIError, match=NEUTRAL):
                async for _ in await client.chat.completions.create(model="m", messages=messages, stream=True):
                    pass
            with pytest.raises(openai.APIError, match=NEUTRAL):
                async for _ in await client.responses.create(model="m", input=FLAGGED, stream=True):
                    pass
        async with anthropic.AsyncAnthropic(base_url=gate.url, api_key="none") as other:
            with pytest.raises(anthropic.APIStatusError, match=NEUTRAL):
                async for _ in await other.messages.create(model="m", messages=messages, max_tokens=9, stream=True):
                    pass


@pytest.mark.parametrize("include_usage", [True, False])
async def test_an_error_in_a_filtered_stream_is_neutral_if_rewritten(
    include_usage: bool, http: aiohttp.ClientSession
) -> None:
    body = {**asked("chat", QUESTION), "stream_options": {"include_usage": include_usage}}
    async with (
        upstream(failing(cuts=False)) as fake,
        gateway(fake.url, filtering_guard(policy(action="watch"), upstream_is_vllm=True)) as gate,
        http.post(f"{gate.url}/v1/chat/completions", json=body) as got,
    ):
        raw = await got.read()
        # Only the request for usage is rewritten: vLLM is to send it in every chunk.
        assert ("continuous_usage_stats" in fake.bodies[0].decode()) is include_usage
    assert (TOLD.encode() not in raw) is include_usage and (NEUTRAL.encode() in raw) is include_usage


@pytest.mark.parametrize("text", [FLAGGED, "hello"])
@pytest.mark.parametrize("given", [{}, {"refuse": {"as": "error"}}])
async def test_a_replica_that_just_died_is_down_for_every_request(
    text: str, given: dict[str, Any], http: aiohttp.ClientSession
) -> None:
    fake = FakeVllm()
    await fake.start()
    async with gateway(fake.url, make_guard(policy(**given))) as gate:
        url, body = f"{gate.url}/v1/chat/completions", {**asked("chat", text), "stream": False}
        async with http.post(url, json=body) as got:
            refused = is_refusal(got.status, await got.read()) or got.status == 400
            assert refused is (text == FLAGGED)
        await fake.stop()
        # The next health check is a minute away.
        async with http.post(url, json=body) as got:
            assert (got.status, (await got.json())["error"]["code"]) == (503, "no_replica")
            assert got.headers["x-should-retry"] == "true" and "retry-after" in got.headers
        assert gate.count("lethe_upstream_errors_total", kind="no_replica") == 1
        assert gate.count("lethe_replica_errors_total", replica=fake.url, kind="connect") == 1
        assert len(fake.requests) == (text != FLAGGED)
