"""Watched answers through the running gateway, from an upstream that says what the real one won't."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import openai
import pytest
from aiohttp import web
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from lethe.server.http.worker_thread import INLINE_BYTES
from lethe.server.upstream.http1 import UpstreamConnection
from tests.server.fakes import FakeUpstream, gateway, policy, upstream
from tests.server.guard.test_guard import QUESTION
from tests.server.guard.test_output_filter import guard
from tests.server.output.test_filter import chunk, encoded, message_events, reasons, response_events, said

JSON = {"content-type": "application/json", "accept-encoding": "gzip, br"}
NAME = "Ozren Dalmatin"
TEXT = f"It was {NAME}, a notary."
ANSWER = {"id": "c", "choices": [{"index": 0, "message": {"content": TEXT}, "finish_reason": "stop"}]}


def asked(**more: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": QUESTION}], **more}).encode()


def whole(body: bytes, status: int = 200, **headers: str) -> Any:
    async def handler(fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
        if request.path == "/v1/models":
            return web.json_response({"data": []})
        return web.Response(body=body, status=status, headers={"content-type": "application/json", **headers})

    return handler


def stream(*pieces: bytes, endless: bool = False) -> Any:
    async def handler(fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
            await asyncio.sleep(0)
        while endless:
            await response.write(encoded(chunk(content=" more"), done=False))
            await asyncio.sleep(0.01)
        return response

    return handler


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        yield session


async def post(http: aiohttp.ClientSession, url: str, body: bytes) -> tuple[int, bytes, Any]:
    async with http.post(f"{url}/v1/chat/completions", data=body, headers=JSON) as got:
        return got.status, await got.read(), got.headers


async def test_a_whole_answer_is_filtered_and_counted(http: aiohttp.ClientSession, tmp_path: Path) -> None:
    audit = tmp_path / "audit.jsonl"
    async with (
        upstream(whole(json.dumps(ANSWER).encode())) as fake,
        gateway(fake.url, guard(policy(action="watch")), audit=audit) as gate,
    ):
        status, raw, headers = await post(http, gate.url, asked())
        assert status == 200 and headers["content-length"] == str(len(raw))
        assert json.loads(raw)["choices"][0] == {
            "index": 0,
            "message": {"content": "It was "},
            "finish_reason": "content_filter",
        }
        assert fake.bodies == [asked()] and fake.headers[0].getall("accept-encoding") == ["identity"]
        assert gate.count("lethe_watch_hits_total", policy="p", on_hit="stop") == 1
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    assert lines[0]["action"] == "watch" and lines[1]["watch"] == {"p": 1}
    assert lines[1]["request_id"] == lines[0]["request_id"] and NAME not in audit.read_text()


async def test_a_long_answer_is_filtered_in_a_thread(http: aiohttp.ClientSession) -> None:
    long = {**ANSWER, "choices": [{**ANSWER["choices"][0], "message": {"content": "so " * INLINE_BYTES + TEXT}}]}  # type: ignore[index]
    async with (
        upstream(whole(json.dumps(long).encode())) as fake,
        gateway(fake.url, guard(policy(action="watch"))) as gate,
    ):
        _, raw, _ = await post(http, gate.url, asked())
    assert json.loads(raw)["choices"][0]["message"]["content"] == "so " * INLINE_BYTES + "It was "


async def test_a_hit_ends_the_stream_and_aborts_upstream(http: aiohttp.ClientSession) -> None:
    pieces = [encoded(chunk(content=piece), done=False) for piece in ("It was Ozren ", "Dalma", "tin, a")]
    async with (
        upstream(stream(*pieces, endless=True)) as fake,
        gateway(fake.url, guard(policy(action="watch"))) as gate,
    ):
        _, raw, headers = await post(http, gate.url, asked(stream=True))
        await asyncio.wait_for(fake.closed.wait(), 5)
        assert headers["content-type"] == "text/event-stream"
        assert raw.endswith(b"data: [DONE]\n\n") and b"Ozren" not in raw and b"more" not in raw
        events = [json.loads(line[6:]) for line in raw.split(b"\n\n") if line.startswith(b"data: {")]
        assert said(events) == "It was " and reasons(events) == {0: "content_filter"}
        assert gate.count("lethe_requests_in_flight") == 0


async def test_official_clients_read_the_usage_of_a_cut_stream() -> None:
    pieces = ["It was ", "Ozren ", "Dalmatin, a"]
    streams = {
        "/v1/messages": encoded(*message_events(pieces)[:-3], done=False),
        "/v1/responses": encoded(*response_events(pieces)[:-4], done=False),
    }

    async def handler(fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
        answer = stream(streams[request.path]) if request.method == "POST" else whole(b"{}")
        return await answer(fake, request)  # type: ignore[no-any-return]

    async with upstream(handler) as fake, gateway(fake.url, guard(policy(action="watch"))) as gate:
        async with anthropic.AsyncAnthropic(base_url=gate.url, api_key="none") as of_messages:
            messages: Any = [{"role": "user", "content": QUESTION}]
            async with of_messages.messages.stream(model="m", messages=messages, max_tokens=9) as events:
                message = await events.get_final_message()
        async with openai.AsyncOpenAI(base_url=f"{gate.url}/v1", api_key="none") as of_responses:
            async with of_responses.responses.stream(model="m", input=QUESTION) as made:
                last = [event async for event in made][-1]
    assert (message.stop_reason, message.content[0].type) == ("refusal", "text")
    # The first name alone is a phrase: it ends the answer in the second delta.
    assert (message.usage.input_tokens, message.usage.output_tokens) == (3, 2)
    assert last.type == "response.incomplete" and last.response.usage is not None
    assert (last.response.usage.input_tokens, last.response.usage.output_tokens) == (0, 2)
    assert last.response.usage.input_tokens_details.cache_write_tokens == 0


async def test_upstream_is_aborted_before_the_last_piece_is_sent(
    http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    release, send = UpstreamConnection.release, RequestResponseCycle.send

    def releasing(self: UpstreamConnection) -> None:
        told.append("" if self._complete else "let go")
        release(self)

    async def sending(self: RequestResponseCycle, message: Any) -> None:
        told.append("end" if b"content_filter" in message.get("body", b"") else "")
        await send(self, message)

    monkeypatch.setattr(UpstreamConnection, "release", releasing)
    monkeypatch.setattr(RequestResponseCycle, "send", sending)
    pieces = [encoded(chunk(content=piece), done=False) for piece in ("It was Ozren ", "Dalmatin, a")]

    async def handler(fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
        answer = whole(b"{}") if request.method == "GET" else stream(*pieces, endless=True)
        return await answer(fake, request)  # type: ignore[no-any-return]

    async with upstream(handler) as fake, gateway(fake.url, guard(policy(action="watch"))) as gate:
        await post(http, gate.url, asked(stream=True))
    assert [event for event in told if event] == ["let go", "end"]


async def test_a_filtered_stream_is_relayed_as_it_is_generated(http: aiohttp.ClientSession) -> None:
    go_on = asyncio.Event()

    async def handler(fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(encoded(chunk(content="It was Oz"), done=False))
        await asyncio.wait_for(go_on.wait(), 5)
        await response.write(encoded(chunk(content=".", finish="stop")))
        return response

    async with upstream(handler) as fake, gateway(fake.url, guard(policy(action="watch"))) as gate:
        async with http.post(f"{gate.url}/v1/chat/completions", data=asked(stream=True), headers=JSON) as got:
            first = await asyncio.wait_for(got.content.readuntil(b"\n\n"), 5)
            assert json.loads(first[6:])["choices"][0]["delta"]["content"] == "It was "
            go_on.set()
            rest = (await got.content.read()).split(b"\n\n")
    assert json.loads(rest[0][6:])["choices"][0]["delta"]["content"] == "Oz."


@pytest.mark.parametrize(
    "handler",
    [whole(b"It was Ozren Dalmatin"), whole(gzip.compress(json.dumps(ANSWER).encode()), **{"content-encoding": "gzip"}),
     whole(json.dumps(ANSWER).encode(), **{"content-type": "text/plain"})],
)  # fmt: skip
@pytest.mark.parametrize("on_failure", ["refuse", "pass"])
async def test_on_failure_decides_about_an_unreadable_answer(
    http: aiohttp.ClientSession, handler: Any, on_failure: str
) -> None:
    made = guard(policy(action="watch", on_failure=on_failure, refuse={"message": "not here"}))
    async with upstream(handler) as fake, gateway(fake.url, made) as gate:
        got, raw, _ = await post(http, gate.url, asked())
        assert got == 200 and (NAME.encode() in raw or b"\x1f\x8b" in raw) is (on_failure == "pass")
        if on_failure == "refuse":
            choice = json.loads(raw)["choices"][0]
            assert (choice["message"]["refusal"], choice["finish_reason"]) == ("not here", "content_filter")
        assert gate.count("lethe_guard_failures_total", policy="p", stage="watch", outcome=on_failure) == 1
        assert (
            gate.metrics.registry.get_sample_value("lethe_upstream_errors_total", {"kind": "refused_by_policy"}) is None
        )


async def test_an_unreadable_stream_ends_with_an_error_event(http: aiohttp.ClientSession) -> None:
    pieces = [encoded(chunk(content="It was "), done=False), b"data: Ozren Dalmatin\n\n"]
    async with upstream(stream(*pieces)) as fake, gateway(fake.url, guard(policy(action="watch"))) as gate:
        status, raw, _ = await post(http, gate.url, asked(stream=True))
    assert status == 200 and NAME.encode() not in raw
    assert json.loads(raw.split(b"data: ")[-1])["error"]["code"] == "refused_by_policy"


async def test_a_broken_stream_keeps_held_back_text(http: aiohttp.ClientSession) -> None:
    async def handler(fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        await response.write(encoded(chunk(content="It was Dalm"), done=False))
        await asyncio.sleep(0.05)
        assert request.transport is not None
        request.transport.abort()
        await asyncio.sleep(0.05)
        return response

    async with upstream(handler) as fake, gateway(fake.url, guard(policy(action="watch"))) as gate:
        _, raw, _ = await post(http, gate.url, asked(stream=True))
    assert b"It was " in raw and b"Dalm" not in raw and b'"code":"broken"' in raw


async def test_upstream_errors_are_relayed_unfiltered(http: aiohttp.ClientSession) -> None:
    error = b'{"error": {"message":"Ozren Dalmatin?", "type":"NotFoundError", "param":null, "code":404}}'
    async with (
        upstream(whole(error, status=404)) as fake,
        gateway(fake.url, guard(policy(action="watch"))) as gate,
    ):
        status, raw, _ = await post(http, gate.url, asked())
    assert (status, raw) == (404, error)


async def test_an_unflagged_answer_is_relayed_byte_for_byte(http: aiohttp.ClientSession) -> None:
    odd = b'{ "choices" : [ ],\n "x": "Ozren Dalmatin" }'
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}]}).encode()
    async with upstream(whole(odd)) as fake, gateway(fake.url, guard(policy(action="watch"))) as gate:
        assert (await post(http, gate.url, body))[1] == odd
        assert fake.headers[0]["accept-encoding"] == "gzip, br"


async def test_always_filters_answers_to_unjudged_requests(
    http: aiohttp.ClientSession,
) -> None:
    from tests.server.fakes import KeywordJudge

    always = policy(action="watch", on_failure="pass", watch={"when": "always", "on_hit": "replace"})
    made = guard(always, judge=KeywordJudge(error=RuntimeError("broken")))
    async with upstream(whole(json.dumps(ANSWER).encode())) as fake, gateway(fake.url, made) as gate:
        _, raw, _ = await post(http, gate.url, asked())
        assert json.loads(raw)["choices"][0]["message"]["content"] == "It was [removed], a [removed]."
        assert gate.count("lethe_watch_hits_total", policy="p", on_hit="replace") == 3
