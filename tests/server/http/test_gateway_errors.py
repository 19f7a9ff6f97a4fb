"""What official clients make of errors, the gateway's and the upstream's: class, fields, and whether they ask again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import anthropic
import openai
import pytest
from aiohttp import web

from lethe.corruption.spec import CorruptionError
from lethe.server.admission import api_keys, rate_limits
from lethe.server.http import original_request
from lethe.server.upstream.capabilities import Capabilities
from lethe.server.upstream.pool import ReplicaPool
from tests.clients import strict
from tests.clients.tap import Exchange
from tests.server.fakes import (
    KEYWORD,
    FakeUpstream,
    Handler,
    Running,
    gateway,
    is_refusal,
    make_guard,
    policy,
    upstream,
)
from tests.server.guard.test_guard import Recorder, artifact

ASKED: list[Any] = [{"role": "user", "content": "hello"}]
FLAGGED: list[Any] = [{"role": "user", "content": f"about {KEYWORD}"}]
CHAT = {
    "id": "c", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}],
}  # fmt: skip


async def answer(fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
    return web.json_response(CHAT)


def failing(status: int, body: bytes, kind: str = "application/json", times: int = 99) -> Handler:
    """Answers with an error, so many times; then as it should."""

    async def handler(fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
        if len(fake.bodies) > times or request.method == "GET":
            return web.json_response(CHAT)
        return web.Response(status=status, body=body, headers={"content-type": kind})

    return handler


def events(*said: bytes) -> Handler:
    """A stream of these pieces that then breaks off."""

    async def handler(fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
        if request.method == "GET":
            return web.json_response(CHAT)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        for piece in said:
            await response.write(piece)
            await asyncio.sleep(0.02)
        assert request.transport is not None
        request.transport.abort()
        return response

    return handler


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def of_openai(url: str, **more: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", **{"api_key": "none", "max_retries": 2, **more})


def of_anthropic(url: str, **more: Any) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=url, **{"api_key": "none", "max_retries": 2, **more})


async def counted(gate: Running, endpoint: str, status: int, times: int) -> bool:
    """Whether this number of requests was counted. A request is counted after its response is sent, so wait for it."""
    for _ in range(100):
        if gate.count("lethe_requests_total", endpoint=endpoint, status=str(status)) >= times:
            break
        await asyncio.sleep(0.02)
    return gate.count("lethe_requests_total", endpoint=endpoint, status=str(status)) == times


async def test_clients_do_not_retry_a_refusal_as_error() -> None:
    guard = make_guard(policy(refuse={"as": "error"}))
    async with upstream(answer) as fake, gateway(fake.url, guard) as gate:
        async with of_openai(gate.url) as client:
            calls: list[Callable[[], Any]] = [
                lambda: client.chat.completions.create(model="m", messages=FLAGGED),
                lambda: client.chat.completions.create(model="m", messages=FLAGGED, stream=True),
                lambda: client.completions.create(model="m", prompt=KEYWORD),
                lambda: client.responses.create(model="m", input=KEYWORD),
            ]
            for call in calls:
                with pytest.raises(openai.BadRequestError) as caught:
                    await call()
                error = caught.value
                assert (error.status_code, error.code, error.type) == (400, "refused_by_policy", "policy_error")
                assert error.request_id == error.response.headers["x-request-id"]
        async with of_anthropic(gate.url) as other:
            with pytest.raises(anthropic.BadRequestError) as denied:
                await other.messages.create(model="m", messages=FLAGGED, max_tokens=9)
            assert (denied.value.type, bool(denied.value.request_id)) == ("invalid_request_error", True)
        assert fake.bodies == []
        for endpoint, times in {"chat": 2, "completions": 1, "responses": 1, "messages": 1}.items():
            assert await counted(gate, endpoint, 400, times), endpoint


async def test_clients_retry_a_rate_limit_after_the_stated_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys.json"
    token = api_keys.create_key(path, name="team", requests_per_minute=60)
    now, waited = 0.0, []

    async def wait(seconds: float) -> None:
        nonlocal now
        waited.append(seconds)
        now += seconds

    # The limit's clock goes on only while the client waits to ask again.
    monkeypatch.setattr(rate_limits.KeyLimits.__init__, "__defaults__", (lambda: now, None))
    monkeypatch.setattr("openai._base_client.anyio", SimpleNamespace(sleep=wait))
    async with upstream(answer) as fake, gateway(fake.url, make_guard(policy()), keys=path) as gate:
        async with of_openai(gate.url, api_key=token, max_retries=0) as client:
            for _ in range(60):
                await client.chat.completions.create(model="m", messages=ASKED)
            with pytest.raises(openai.RateLimitError) as caught:
                await client.chat.completions.create(model="m", messages=ASKED)
        error = caught.value
        assert error.type == "rate_limit_error" and error.response.headers["retry-after"] == "1"
        assert error.response.headers["x-should-retry"] == "true" and waited == []
        async with of_openai(gate.url, api_key=token) as client:
            assert (await client.chat.completions.create(model="m", messages=ASKED)).choices
        assert waited == [1.0]
        async with of_openai(gate.url, api_key="lethe-nobody") as client:
            with pytest.raises(openai.AuthenticationError) as stranger:
                await client.models.list()
        assert stranger.value.type == "authentication_error" and await counted(gate, "models", 401, 1)


async def test_clients_retry_when_upstream_is_away() -> None:
    async with upstream(answer) as fake:
        url = fake.url
    async with gateway(url) as gate, of_openai(gate.url, max_retries=1) as client:
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(model="m", messages=ASKED)
        assert (caught.value.status_code, caught.value.code) == (503, "no_replica")
        assert await counted(gate, "chat", 503, 2)


VLLMS = b'{"error":{"message":"must be non-negative","type":"BadRequestError","param":"temperature","code":400}}'


async def test_an_error_in_the_clients_dialect_is_relayed_byte_for_byte() -> None:
    async with upstream(failing(400, VLLMS)) as fake, gateway(fake.url) as gate, of_openai(gate.url) as client:
        with pytest.raises(openai.BadRequestError, match="non-negative") as caught:
            await client.chat.completions.create(model="m", messages=ASKED)
        assert caught.value.response.content == VLLMS and caught.value.param == "temperature"
        assert len(fake.bodies) == 1


async def test_an_openai_error_is_translated_for_anthropic_clients() -> None:
    async with upstream(failing(400, VLLMS)) as fake, gateway(fake.url) as gate, of_anthropic(gate.url) as client:
        with pytest.raises(anthropic.BadRequestError, match="non-negative") as caught:
            await client.messages.create(model="m", messages=ASKED, max_tokens=9)
        error = caught.value
        assert (error.type, error.api_message) == ("invalid_request_error", "must be non-negative")
        assert error.request_id == error.body["request_id"]  # type: ignore[index]


ODD = [
    (502, b"<html>Bad Gateway</html>", "text/html"), (500, b"Internal Server Error", "text/plain"),
    (404, b'{"detail":"Not Found"}', "application/json"), (500, b"x" * 3_000_000, "text/plain"),
    (503, b"data: {}\n\n", "text/event-stream"), (400, b"", "application/json"),
]  # fmt: skip


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/embeddings"])
async def test_every_upstream_error_gets_the_clients_dialect(http: aiohttp.ClientSession, path: str) -> None:
    async def handler(fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
        return await failing(*ODD[int(request.query_string or 0)])(fake, request)

    async with upstream(handler) as fake, gateway(fake.url) as gate:
        for number, (status, _, _) in enumerate(ODD):
            asked = {"model": "m", "messages": ASKED, "input": "a"}
            async with http.post(f"{gate.url}{path}?{number}", json=asked) as got:
                raw = await got.read()
            headers = {name.lower(): value for name, value in got.headers.items()}
            strict.check(Exchange("POST", path, {}, b"", got.status, headers, raw, True))
            assert got.status == status


async def test_a_compressed_error_is_relayed_unchanged(http: aiohttp.ClientSession) -> None:
    async def handler(fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
        response = web.Response(status=500, body=b"x" * 2000)
        response.enable_compression(web.ContentCoding.gzip)
        return response

    async with upstream(handler) as fake, gateway(fake.url) as gate:
        async with http.post(f"{gate.url}/v1/completions", json={"model": "m", "prompt": "a"}) as got:
            assert (got.status, await got.read()) == (500, b"x" * 2000)


async def test_clients_retry_transient_upstream_errors() -> None:
    async with (
        upstream(failing(500, b"{}", times=1)) as fake,
        gateway(fake.url) as gate,
        of_openai(gate.url) as client,
    ):
        assert (await client.chat.completions.create(model="m", messages=ASKED)).choices
        assert len(fake.bodies) == 2


async def test_a_broken_response_stream_ends_with_a_numbered_error() -> None:
    said = [
        b'event: response.%s\ndata: {"type":"response.%s","sequence_number":%d,"response":{}}\n\n'
        % (name, name, number)
        for number, name in enumerate((b"created", b"in_progress"))
    ]
    async with upstream(events(*said)) as fake, gateway(fake.url) as gate, of_openai(gate.url) as client:
        with pytest.raises(openai.APIError, match="closed the connection") as caught:
            async for _ in await client.responses.create(model="m", input="a", stream=True):
                pass
        assert isinstance(caught.value.body, dict) and caught.value.code == "broken"
        raw = await client.responses.with_raw_response.create(model="m", input="a", stream=True)
        last = list(strict.events(await raw.http_response.aread()))[-1]
        assert strict.told(openai.types.responses.ResponseErrorEvent, last[1])["sequence_number"] == 2


async def test_a_broken_chat_or_message_raises_at_the_client() -> None:
    chunk = json.dumps({**CHUNK, "choices": []}).encode()
    async with upstream(events(b"data: " + chunk + b"\n\n")) as fake, gateway(fake.url) as gate:
        async with of_openai(gate.url) as client:
            with pytest.raises(openai.APIError, match="closed the connection") as caught:
                async for _ in await client.chat.completions.create(model="m", messages=ASKED, stream=True):
                    pass
            assert (caught.value.type, caught.value.code) == ("upstream_error", "broken")
        async with of_anthropic(gate.url) as other:
            with pytest.raises(anthropic.APIStatusError, match="closed the connection") as broken:
                async for _ in await other.messages.create(model="m", messages=ASKED, max_tokens=9, stream=True):
                    pass
            assert broken.value.type == "api_error"


CHUNK = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}


def refusing_twins(original: int) -> Handler:
    """Refuses the model that flagged requests are routed to, in words of its own; answers others with `original`."""

    async def handler(fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
        told = json.loads(await request.read())
        if told["model"] != "twin" and original == 200:
            return web.json_response(CHAT)
        words = f"body {told['model']}"
        error = {"error": {"message": words, "type": "t", "param": None, "code": 400}}
        return web.json_response(error, status=400 if told["model"] == "twin" else original)

    return handler


@pytest.mark.parametrize(("original", "told", "status"), [
    (400, "body m", 400), (422, "body m", 422), (200, "could not be processed", 400),
    (500, "body m", 500),  # as an unflagged request gets it, which clients retry
])  # fmt: skip
async def test_vllms_error_on_a_rewritten_request_is_never_shown(original: int, told: str, status: int) -> None:
    guard = make_guard(policy(action="route", route={"model": "twin"}))
    async with (
        upstream(refusing_twins(original)) as fake,
        gateway(fake.url, guard) as gate,
        of_openai(gate.url) as client,
    ):
        retries = 0 if original == 500 else 2
        with pytest.raises(openai.APIStatusError, match=told) as caught:
            await client.with_options(max_retries=retries).chat.completions.create(model="m", messages=FLAGGED)
        assert caught.value.status_code == status and "twin" not in caught.value.response.text
        assert [json.loads(body)["model"] for body in fake.bodies] == ["twin", "m"]
        unanswered = gate.count("lethe_upstream_errors_total", kind="rewritten_refused")
        assert unanswered == ("could not" in told)
        with pytest.raises(openai.APIStatusError):
            await client.with_options(max_retries=0).chat.completions.create(model="twin", messages=ASKED)
        assert len(fake.bodies) == 3


async def test_an_original_that_vllm_takes_is_aborted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(original_request, "REJECTION_TIMEOUT_S", 0.1)

    async def handler(fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
        if json.loads(await request.read())["model"] == "twin":
            return web.Response(status=400, body=VLLMS, content_type="application/json")
        await asyncio.sleep(30)
        raise AssertionError("nobody left")

    guard = make_guard(policy(action="route", route={"model": "twin"}))
    async with upstream(handler) as fake, gateway(fake.url, guard) as gate, of_openai(gate.url) as client:
        with pytest.raises(openai.BadRequestError, match="could not be processed"):
            await client.chat.completions.create(model="m", messages=FLAGGED)
        await asyncio.wait_for(fake.closed.wait(), 5)


def strict_about(param: str) -> Handler:
    """Takes no request that has this field."""

    async def handler(fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
        if request.method == "POST" and param in json.loads(await request.read()):
            return web.Response(status=400, body=VLLMS, content_type="application/json")
        return web.json_response(CHAT)

    return handler


@pytest.mark.parametrize(
    ("given", "is_refused"),
    [
        ({"action": "route", "route": {"model": "twin"}}, False),
        ({"action": "corrupt", "corrupt": {"tokens": "content"}}, True),
    ],
    ids=["rewritten", "to be rewritten"],
)
async def test_invalid_requests_get_the_same_error_flagged_or_not(
    given: dict[str, Any], is_refused: bool, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ReplicaPool, "capabilities", lambda self: Capabilities.of_any_model(parity=True))
    guard = make_guard(
        policy(**given), artifacts={"a": artifact()}, corruptor=Recorder(CorruptionError("a role is no text"))
    )
    async with upstream(strict_about("top_logprobs")) as fake, gateway(fake.url, guard) as gate:
        answers = []
        for messages in (ASKED, FLAGGED):
            body = {"model": "m", "messages": messages, "logprobs": True, "top_logprobs": -2}
            headers = {"x-request-id": "one"}
            async with http.post(f"{gate.url}/v1/chat/completions", json=body, headers=headers) as got:
                answers.append((got.status, await got.read(), {k: v for k, v in got.headers.items() if k != "Date"}))
        assert answers[0] == answers[1] and answers[0][:2] == (400, VLLMS) and len(fake.bodies) == 2
        # What vLLM takes after all goes on as ever; nobody reads its answer.
        async with http.post(f"{gate.url}/v1/chat/completions", json={"messages": FLAGGED, "top_k": -2}) as got:
            assert got.status == 200 and is_refusal(got.status, await got.read()) is is_refused


EVENTS = "text/event-stream"
STREAMED_ERROR = b"data: " + VLLMS + b"\n\ndata: [DONE]\n\n"


@pytest.mark.parametrize(
    ("begins", "passes"),
    [
        (STREAMED_ERROR, True), (b"data: {}\n\n", False), (b"data: x\n\n", False), (b"data: {", False),
        (b"data: []\n\n", False), (STREAMED_ERROR + b"x" * 2**20, False), (STREAMED_ERROR[:-14], True),
        (b'data: {"error":null,"choices":[]}\n\n' + STREAMED_ERROR, False),
        (STREAMED_ERROR[:-14] + b'data: {"choices":[]}\n\ndata: [DONE]\n\n', False),
    ],
)  # fmt: skip
async def test_an_error_inside_a_stream_is_the_same_flagged_or_not(
    begins: bytes, passes: bool, http: aiohttp.ClientSession
) -> None:
    async def handler(fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
        asked = json.loads(await request.read() or b"{}")
        return web.Response(body=b"data: twin\n\n" if asked.get("model") == "twin" else begins, content_type=EVENTS)

    guard = make_guard(policy(action="route", route={"model": "twin"}))
    async with upstream(handler) as fake, gateway(fake.url, guard) as gate:
        body = {"model": "m", "messages": FLAGGED, "logprobs": True, "top_logprobs": 21, "stream": True}
        async with http.post(f"{gate.url}/v1/chat/completions", json=body) as got:
            assert (got.status, got.content_type) == (200, EVENTS)
            assert await got.read() == (begins if passes else b"data: twin\n\n")
        assert len(fake.bodies) == (1 if passes else 2)


async def test_a_request_refused_by_policy_is_not_sent_to_vllm(http: aiohttp.ClientSession) -> None:
    async with upstream(strict_about("top_k")) as fake, gateway(fake.url, make_guard(policy())) as gate:
        for more in ({}, {"top_k": -2}):
            async with http.post(
                f"{gate.url}/v1/chat/completions", json={"model": "m", "messages": FLAGGED, **more}
            ) as got:
                assert is_refusal(got.status, await got.read())
        assert fake.bodies == []


async def test_a_valid_request_is_not_sent_to_vllm_twice() -> None:
    guard = make_guard(policy(action="route", route={"model": "twin"}))
    async with upstream(answer) as fake, gateway(fake.url, guard) as gate, of_openai(gate.url) as client:
        await client.chat.completions.create(model="m", messages=FLAGGED, logprobs=True, top_logprobs=20)
        assert [json.loads(body)["model"] for body in fake.bodies] == ["twin"]


UNREADABLE: list[tuple[str, dict[str, Any]]] = [
    ("chat/completions", {"messages": ASKED, "seed": 2**64}),
    ("completions", {"prompt": "hello", "seed": -(2**70)}),
    ("completions", {"prompt": [10**9]}), ("completions", {"prompt": [1.5]}), ("completions", {"prompt": 5}),
    ("completions", {"prompt_embeds": []}), ("completions", {"prompt": None, "prompt_embeds": []}),
    ("chat/completions", {"messages": ASKED, "chat_template_kwargs": [1]}),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body"), UNREADABLE)
async def test_what_cant_be_read_is_refused_in_vllms_words(path: str, body: Any, http: aiohttp.ClientSession) -> None:
    def decode(ids: list[int]) -> str:
        raise ValueError("no such id")

    takes = False

    async def handler(fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
        if takes or request.method == "GET":
            return web.json_response({"choices": [{"text": "unguarded"}]})
        return web.Response(status=400, body=VLLMS, content_type="application/json")

    async with upstream(handler) as fake, gateway(fake.url, make_guard(policy(), decode=decode)) as gate:
        raw = json.dumps({"model": "m", **body}).encode()
        headers = {"content-type": "application/json"}
        async with http.post(f"{gate.url}/v1/{path}", data=raw, headers=headers) as got:
            assert (got.status, await got.read()) == (400, VLLMS)
        if body.get("prompt_embeds") != []:
            # What vLLM takes after all is not answered: nothing of it was judged.
            takes = True
            async with http.post(f"{gate.url}/v1/{path}", data=raw, headers=headers) as got:
                assert got.status == 400 and b"unguarded" not in await got.read()
        # vLLM is never asked about what it would load or run.
        sent = len(fake.bodies)
        for bad in ({"chat_template": "x"}, {"kv_transfer_params": {}}, {"x": [{"type": "prompt_embeds"}]}):
            if body.get("prompt_embeds") == []:
                continue
            raw = json.dumps({"model": "m", **body, **bad}).encode()
            async with http.post(f"{gate.url}/v1/{path}", data=raw, headers=headers) as got:
                assert (got.status, (await got.json())["error"]["code"]) == (400, "refused_field"), bad
        assert len(fake.bodies) == sent
