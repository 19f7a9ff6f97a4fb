"""The routes of the public port: what is guarded on each, health, readiness and metrics."""

from __future__ import annotations

import asyncio
import json
import warnings
from itertools import product
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from lethe.server.requests.fields import RELAYED
from lethe.server.requests.routes import ROUTES
from tests.server.fakes import KEYWORD, FakeUpstream, Running, gateway, make_guard, policy, upstream


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
                assert got.status == 404  # they have a port of their own: tests/server/test_admin_api.py
            text = gate.metrics.render().decode()
    assert 'lethe_requests_total{endpoint="models",status="200"} 1.0' in text
    assert 'lethe_requests_total{endpoint="unknown",status="404"} 2.0' in text
    assert "odd-path" not in text


# Every endpoint

GUARDED = [(path, endpoint) for path, _, endpoint in ROUTES if endpoint is not None and endpoint not in RELAYED]
RELAYS = [(path, endpoint) for path, _, endpoint in ROUTES if endpoint in RELAYED]


def asking(endpoint: str, text: str) -> dict[str, Any]:
    """The least request of an endpoint."""
    messages = [{"role": "user", "content": text}]
    match endpoint:
        case "batch":
            return {"model": "m", "messages": [messages]}
        case "completions":
            return {"model": "m", "prompt": text}
        case "responses":
            return {"model": "m", "input": text}
    return {"model": "m", "max_tokens": 9, "messages": messages}


async def echo(fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
    return web.Response(body=b'{ "from" :"vllm" }', headers={"content-type": "application/json", "x-from": "vllm"})


async def answered(gate: Running, path: str, body: bytes, **headers: str) -> tuple[int, dict[str, Any]]:
    headers = {"content-type": "application/json", **headers}
    url = URL(gate.url + path, encoded=True)
    async with aiohttp.ClientSession() as http, http.post(url, data=body, headers=headers) as got:
        return got.status, await got.json()


@pytest.mark.parametrize(("path", "endpoint"), GUARDED)
async def test_every_endpoint_is_guarded_and_refuses_in_its_dialect(path: str, endpoint: str) -> None:
    guard = make_guard(policy(refuse={"as": "error"}))
    async with upstream(echo) as fake, gateway(fake.url, guard) as gate:
        for stream, n in product((False, True), (1, 3)):
            body = json.dumps({**asking(endpoint, f"about {KEYWORD}"), "stream": stream, "n": n}).encode()
            status, told = await answered(gate, path, body)
            assert status == 400 and fake.bodies == []
            if path.startswith("/v1/messages"):
                assert told["type"] == "error" and told["error"]["type"] == "invalid_request_error"
                assert set(told["error"]) == {"type", "message"}
            else:
                assert set(told["error"]) == {"message", "type", "param", "code"}
                assert told["error"]["code"] == "refused_by_policy"


@pytest.mark.parametrize(("path", "endpoint"), GUARDED + RELAYS)
async def test_unflagged_requests_pass_byte_for_byte(path: str, endpoint: str) -> None:
    body = b" " + json.dumps(asking(endpoint, "h\u00e9llo"), indent=3).encode() + b"\n"
    async with upstream(echo) as fake, gateway(fake.url, make_guard(policy())) as gate:
        assert await answered(gate, path + "?beta=true", body) == (200, {"from": "vllm"})
        assert fake.bodies == [body] and fake.paths == [path + "?beta=true"]


@pytest.mark.parametrize(("path", "endpoint"), RELAYS)
async def test_relayed_endpoints_are_parsed_strictly_but_not_judged(path: str, endpoint: str) -> None:
    part = {"type": "prompt_embeds", "data": "AAAA"}
    refused = [
        {"model": "m", "chat_template": "{{ x }}"}, {"model": "m", "kv_transfer_params": {}},
        {"model": "m", "messages": [{"role": "user", "content": ["a", part]}]}, {"input": {"x": [[part]]}},
        {"data_1": {"prompt_embeds": "AAAA"}}, {"chat_template_kwargs": {"chat_template": "x"}},
        {"vllm_xargs": {"lethe": "{}"}},
    ]  # fmt: skip
    async with upstream(echo) as fake, gateway(fake.url, make_guard(policy())) as gate:
        assert (await answered(gate, path, json.dumps(asking(endpoint, KEYWORD)).encode()))[0] == 200
        for body in refused:
            status, told = await answered(gate, path, json.dumps(body).encode())
            assert status == 400 and told["error"]["code"] == "refused_field", body
        assert (await answered(gate, path, b'{"a": 1, "a": 2}'))[1]["error"]["code"] == "duplicate_key"
        assert len(fake.bodies) == 1


UNKNOWN = [
    "/v1/responses/resp_1/cancel", "/v1/chat/completions/render", "/v1/chat/completions/derender",
    "/v1/completions/render", "/v1/responses/render", "/v1/messages/render", "/inference/v1/generate",
    "/invocations", "/v1/systemone", "/generative_scoring", "/classify", "/v2/embed", "/pause", "/abort_requests",
    "/v1/load_lora_adapter", "/server_info", "/collective_rpc", "/sleep", "/reset_prefix_cache", "/v1/audio/speech",
    "/v1/audio/transcriptions", "/v1/realtime", "/v2/chat", "/start_profile", "/update_weights", "/version",
    "/v1/messages/batches", "/v1/chat/completions/", "//v1/chat/completions", "/V1/chat/completions",
    "/v1/chat/completions%0A", "/v1/chat/completions%00", "/v1/chat/completions;x", "/v1/chat/./completions",
    "/v1/x/../chat/completions", "/v1/chat/completions/../completions", "/v1/chat%252fcompletions", "/",
]  # fmt: skip


async def test_every_other_route_is_404() -> None:
    async with upstream(echo) as fake, gateway(fake.url, make_guard(policy())) as gate:
        body = json.dumps(asking("chat", "hello")).encode()
        for path in UNKNOWN:
            # Raw, for a client library would tidy the path up.
            reader, writer = await asyncio.open_connection("127.0.0.1", gate.port)
            head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n"
            writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            got = await reader.read()
            if path == "/v1/chat/completions/":  # as vLLM: a trailing slash leads to the route
                assert got.startswith(b"HTTP/1.1 307 "), path
            else:
                assert got.startswith(b"HTTP/1.1 404 ") and b"is not served" in got, path
            writer.close()
        assert fake.bodies == []


async def test_an_encoded_path_is_forwarded_as_the_route() -> None:
    async with upstream(echo) as fake, gateway(fake.url, make_guard(policy())) as gate:
        status, _ = await answered(gate, "/v1/chat%2Fcompletions", json.dumps(asking("chat", "hello")).encode())
        assert status == 200 and fake.paths == ["/v1/chat/completions"]


async def test_unknown_anthropic_routes_get_anthropic_errors() -> None:
    async with upstream(echo) as fake, gateway(fake.url) as gate:
        status, told = await answered(gate, "/v1/messages/batches", b"{}")
        assert (status, told["type"], told["error"]["type"]) == (404, "error", "not_found_error")


def test_vllm_reads_no_query_parameters() -> None:
    """It goes up as it came, so no route of vLLM may read anything in it."""
    pytest.importorskip("vllm", reason="reads vLLM's own routes")
    from fastapi.routing import APIRoute

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from vllm.entrypoints.anthropic.api_router import router as anthropic
        from vllm.entrypoints.openai.chat_completion.api_router import router as chat
        from vllm.entrypoints.openai.completion.api_router import router as completion
        from vllm.entrypoints.openai.responses.api_router import router as responses
        from vllm.entrypoints.pooling.embed.api_router import router as embed
        from vllm.entrypoints.pooling.pooling.api_router import router as pooling
        from vllm.entrypoints.pooling.scoring.api_router import router as scoring
        from vllm.entrypoints.serve.tokenize.api_router import router as tokenize

    routers = (anthropic, chat, completion, responses, embed, pooling, scoring, tokenize)
    there = {one.path: one for router in routers for one in router.routes if isinstance(one, APIRoute)}
    ours = {path for path, _, endpoint in ROUTES if endpoint is not None}
    assert ours <= there.keys()
    for path in ours:
        assert there[path].dependant.query_params == [], path
        assert there[path].dependant.header_params == there[path].dependant.cookie_params == [], path
