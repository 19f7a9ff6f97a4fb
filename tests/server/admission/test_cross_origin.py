"""CORS: what a browser on an allowed page gets, on answers, errors and preflights, and that nobody else gets it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from lethe.server.admission import api_keys
from lethe.server.admission.cross_origin import CrossOrigin
from lethe.server.settings import SettingsError, read_settings
from tests.server.fakes import KEYWORD, FakeUpstream, gateway, make_guard, policy, upstream

PAGE = "https://app.example.com"
CHAT = "/v1/chat/completions"


async def answer(fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
    # As vLLM does by default.
    return web.json_response({"choices": []}, headers={"access-control-allow-origin": "*"})


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def preflight(origin: str) -> dict[str, str]:
    return {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }


def asked(text: str) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}]}


async def test_an_allowed_page_reads_answers_errors_and_preflights(http: aiohttp.ClientSession, tmp_path: Any) -> None:
    token = api_keys.create_key(tmp_path / "keys.json", name="page")
    settings: dict[str, Any] = {"cors_origins": f"{PAGE},http://localhost:3000", "keys": tmp_path / "keys.json"}
    guard = make_guard(policy(refuse={"as": "error"}))
    async with upstream(answer) as fake, gateway(fake.url, guard, **settings) as gate:
        async with http.options(gate.url + CHAT, headers=preflight(PAGE)) as got:
            assert got.status == 204 and got.headers["access-control-allow-headers"] == "authorization,content-type"
            assert got.headers["access-control-allow-methods"] == "GET, POST"
        key = {"authorization": f"Bearer {token}"}
        requests: list[tuple[int, dict[str, Any]]] = [
            (200, {"json": asked("hello"), "headers": key}),
            (400, {"json": asked(KEYWORD), "headers": key}),
            (401, {"json": asked("hello")}),
            (400, {"data": b"{", "headers": {"content-type": "application/json", **key}}),
            (431, {"json": asked("hello"), "headers": {**key, **{f"x-{n}": "y" for n in range(120)}}}),
        ]
        for origin in (PAGE, "HTTP://LOCALHOST:3000"):
            for status, request in requests:
                headers = {**request.get("headers", {}), "origin": origin}
                async with http.post(gate.url + CHAT, **{**request, "headers": headers}) as got:
                    assert got.status == status
                    assert got.headers.getall("access-control-allow-origin") == [origin]
                    assert "origin" in got.headers["vary"]
        async with http.get(f"{gate.url}/nowhere", headers={"origin": PAGE}) as got:
            assert (got.status, got.headers["access-control-allow-origin"]) == (404, PAGE)
        # What is rejected before the application sees it.
        reader, writer = await asyncio.open_connection("127.0.0.1", gate.port)
        head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\norigin: %s\r\nauthorization: Bearer %s\r\n"
        writer.write(head % (PAGE.encode(), token.encode()) + b"transfer-encoding: chunked\r\n\r\nno chunk\r\n")
        raw = await reader.read(4096)
        writer.close()
        assert b" 400 " in raw and b"access-control-allow-origin: " + PAGE.encode() in raw


@pytest.mark.parametrize("allowed", ["", PAGE])
async def test_no_other_page_may_read(http: aiohttp.ClientSession, allowed: str) -> None:
    async with upstream(answer) as fake, gateway(fake.url, cors_origins=allowed) as gate:
        for origin in ("https://evil.example", "null", PAGE + ".evil", "http://app.example.com", PAGE + ":444"):
            async with http.post(gate.url + CHAT, json=asked("hello"), headers={"origin": origin}) as got:
                assert got.status == 200 and "access-control-allow-origin" not in got.headers
            async with http.options(gate.url + CHAT, headers=preflight(origin)) as got:
                assert got.status == 405 and "access-control-allow-origin" not in got.headers
        async with http.options(gate.url + CHAT) as got:
            assert got.status == 405


@given(st.lists(st.tuples(st.sampled_from([b"origin", b"x", b"access-control-request-method"]), st.binary())))
def test_only_one_listed_origin_is_ever_allowed(headers: list[tuple[bytes, bytes]]) -> None:
    origins = [value for name, value in headers if name == b"origin"]
    any_one = len(origins) == 1 and origins != [b""]
    for cross_origin, allows in [
        (CrossOrigin(PAGE), origins == [PAGE.encode()]),
        (CrossOrigin("*"), any_one),
    ]:
        answered = dict(cross_origin.response_headers(headers))
        assert (b"access-control-allow-origin" in answered) is allows
        assert (cross_origin.preflight_headers("OPTIONS", headers) is not None) <= allows


def test_the_setting_takes_origins_only() -> None:
    for value in (f"{PAGE} , http://localhost:3000/", "*", ""):
        assert read_settings({"LETHE_CORS_ORIGINS": value})
    for value in ("app.example.com", f"{PAGE}/path", "https://", "null"):
        with pytest.raises(SettingsError, match="must be origins"):
            read_settings({"LETHE_CORS_ORIGINS": value})
