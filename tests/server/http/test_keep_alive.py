"""The gateway's own comments in streams, while there is nothing else to send."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import openai
import pytest
from aiohttp import web

from tests.server.fakes import KEYWORD, FakeUpstream, Handler, KeywordJudge, gateway, make_guard, policy, upstream

SILENCE_S = 0.1
COMMENT = b": keep-alive\n\n"


def body(content: str = "hello", **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": content}], "stream": True, **more}


def chunk(text: str) -> bytes:
    data = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m",
            "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}  # fmt: skip
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def slow(*pieces: bytes, pause_s: float = 0.0) -> Handler:
    async def handler(fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
        if request.method == "GET":
            return web.json_response({"data": [{"id": "m"}]})
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for piece in pieces:
            await asyncio.sleep(pause_s)
            await response.write(piece)
        return response

    return handler


def failing(status: int, raw: bytes, pause_s: float) -> Handler:
    async def handler(fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
        if request.method == "GET":
            return web.json_response({"data": [{"id": "m"}]})
        await asyncio.sleep(pause_s)
        return web.Response(status=status, body=raw, content_type="application/json")

    return handler


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def ask(http: aiohttp.ClientSession, url: str, asked: dict[str, Any], path: str = "/v1/chat/completions") -> Any:
    async with http.post(url + path, json=asked) as got:
        return got.status, await got.read(), got.content_type


async def test_comments_come_while_judging_and_while_upstream_is_silent(http: aiohttp.ClientSession) -> None:
    hold = threading.Event()
    made = make_guard(policy(), judge=KeywordJudge(hold=hold))
    handler = slow(chunk("Oz"), chunk("."), b"data: [DONE]\n\n", pause_s=4 * SILENCE_S)
    async with upstream(handler) as fake, gateway(fake.url, made, sse_comment_s=SILENCE_S) as gate:
        asking = asyncio.ensure_future(ask(http, gate.url, body()))
        await asyncio.sleep(4 * SILENCE_S)
        hold.set()
        status, raw, kind = await asking
    assert (status, kind) == (200, "text/event-stream")
    assert raw.startswith(COMMENT * 2) and raw.replace(COMMENT, b"") == chunk("Oz") + chunk(".") + b"data: [DONE]\n\n"
    assert raw.split(chunk("Oz"))[1].startswith(COMMENT)


async def test_no_comment_comes_within_an_event(http: aiohttp.ClientSession) -> None:
    whole = chunk("Oz")
    handler = slow(whole[:9], whole[9:], pause_s=4 * SILENCE_S)
    async with upstream(handler) as fake, gateway(fake.url, sse_comment_s=SILENCE_S) as gate:
        _, raw, _ = await ask(http, gate.url, body())
    assert raw.replace(COMMENT, b"") == whole and whole in raw and COMMENT in raw


async def test_comments_are_off_by_default_and_for_whole_answers(http: aiohttp.ClientSession) -> None:
    handler = slow(chunk("Oz"), pause_s=0.3)
    async with upstream(handler) as fake, gateway(fake.url) as gate:
        assert (await ask(http, gate.url, body()))[1] == chunk("Oz")
    handler = failing(200, b'{"choices": []}', 0.3)
    async with upstream(handler) as fake, gateway(fake.url, sse_comment_s=SILENCE_S) as gate:
        for stream in (False, "false", 0, None):
            assert (await ask(http, gate.url, body(stream=stream)))[1] == b'{"choices": []}'


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
async def test_an_error_after_a_comment_is_an_event(http: aiohttp.ClientSession, path: str) -> None:
    error = b'{"error": {"message": "no such\\nmodel", "type": "NotFound", "param": null, "code": 404}}'
    asked = body(max_tokens=9) if path != "/v1/responses" else {"model": "m", "input": "hello", "stream": True}
    async with upstream(failing(404, error, 0.5)) as fake, gateway(fake.url, sse_comment_s=SILENCE_S) as gate:
        status, raw, kind = await ask(http, gate.url, asked, path)
        assert (status, kind) == (200, "text/event-stream") and raw.startswith(COMMENT)
        data = json.loads(raw.replace(COMMENT, b"").strip().split(b"data: ")[-1])
        assert data["error"]["message"] == "no such\nmodel"
        if path == "/v1/chat/completions":
            async with openai.AsyncOpenAI(base_url=f"{gate.url}/v1", api_key="none", max_retries=0) as client:
                with pytest.raises(openai.APIError, match="no such"):
                    async for _ in await client.chat.completions.create(**body()):
                        pass


async def test_a_refusal_after_a_comment_is_a_stream(http: aiohttp.ClientSession) -> None:
    hold = threading.Event()
    made = make_guard(policy(refuse={"message": "not here"}), judge=KeywordJudge(hold=hold))
    async with upstream(slow()) as fake, gateway(fake.url, made, sse_comment_s=SILENCE_S) as gate:
        asking = asyncio.ensure_future(ask(http, gate.url, body(f"about {KEYWORD}")))
        await asyncio.sleep(3 * SILENCE_S)
        hold.set()
        status, raw, _ = await asking
        assert status == 200 and raw.startswith(COMMENT) and b'"content_filter"' in raw and raw.endswith(b"[DONE]\n\n")
        assert fake.bodies == []


async def test_a_client_that_leaves_during_comments_ends_the_request(http: aiohttp.ClientSession) -> None:
    async with upstream(slow(chunk("Oz"), pause_s=30)) as fake, gateway(fake.url, sse_comment_s=SILENCE_S) as gate:
        async with http.post(f"{gate.url}/v1/chat/completions", json=body()) as got:
            assert await got.content.readexactly(len(COMMENT)) == COMMENT
        await asyncio.wait_for(fake.closed.wait(), 5)
