"""Keys at the gateway: who is let in, what a key is held to, and that it goes no further."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from lethe.server.admission import api_keys
from tests.server.fakes import (
    KEYWORD,
    FakeUpstream,
    KeywordJudge,
    gateway,
    is_refusal,
    make_guard,
    policy,
    upstream,
)

CHAT = "/v1/chat/completions"
MODELS = {"object": "list", "data": [{"id": "m", "object": "model"}, {"id": "n", "object": "model"}]}


def body(content: str = "hello", **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": content}], **more}


FLAGGED = body(f"about {KEYWORD}")


async def answer(fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
    return web.json_response(MODELS if request.path == "/v1/models" else {"choices": []})


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


async def test_an_unknown_key_is_refused_everywhere(http: aiohttp.ClientSession, path: Path) -> None:
    api_keys.create_key(path, name="one")
    judge = KeywordJudge()
    async with upstream(answer) as fake, gateway(fake.url, make_guard(policy(), judge=judge), keys=path) as gate:
        for headers, code in [({}, "missing_api_key"), (bearer("lethe-x"), "invalid_api_key")]:
            for method, route in [
                ("POST", CHAT),
                ("POST", "/v1/completions"),
                ("GET", "/v1/models"),
                ("POST", "/score"),
            ]:
                async with http.request(method, gate.url + route, json=FLAGGED, headers=headers) as got:
                    assert got.status == 401
                    error = (await got.json())["error"]
                    assert set(error) == {"message", "type", "param", "code"}
                    assert (error["type"], error["code"]) == ("authentication_error", code)
                    assert got.headers["www-authenticate"] == "Bearer" and got.headers["x-should-retry"] == "false"
        async with http.post(gate.url + "/v1/messages", json=FLAGGED) as got:
            assert got.status == 401
            shape = await got.json()
            assert shape["type"] == "error" and shape["error"]["type"] == "authentication_error"
        async with http.get(gate.url + "/health") as got:
            assert got.status == 200
        assert fake.bodies == [] and judge.judged == []
    # Counted when the answer is out, so looked at when the gateway has ended.
    assert gate.count("lethe_refusals_total", reason="missing_api_key") == 5


async def test_an_unknown_key_is_refused_before_the_body_is_read(path: Path) -> None:
    api_keys.create_key(path, name="one")
    async with upstream(answer) as fake, gateway(fake.url, keys=path) as gate:
        reader, writer = await asyncio.open_connection("127.0.0.1", gate.port)
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 5000000\r\n\r\n")
        assert b" 401 " in await asyncio.wait_for(reader.readline(), 5)
        writer.close()


async def test_the_clients_key_is_not_sent_upstream(http: aiohttp.ClientSession, path: Path) -> None:
    token = api_keys.create_key(path, name="one")
    given = {**bearer(token), "x-api-key": token, "x-own": "1"}
    async with upstream(answer) as fake:
        async with gateway(fake.url, keys=path) as gate, http.post(gate.url + CHAT, json=body(), headers=given) as got:
            assert got.status == 200
        async with (
            gateway(fake.url, keys=path, upstream_key="for-vllm") as gate,
            http.post(gate.url + CHAT, json=body(), headers=given) as got,
        ):
            assert got.status == 200
        without, instead = fake.headers
        assert "authorization" not in without and without["x-own"] == "1"
        assert instead.getall("authorization") == ["Bearer for-vllm"]
        assert all("x-api-key" not in headers and token not in str(headers) for headers in fake.headers)


async def test_azures_header_carries_a_key_and_never_reaches_vllm(http: aiohttp.ClientSession, path: Path) -> None:
    token = api_keys.create_key(path, name="azure")
    async with upstream(answer) as fake, gateway(fake.url, keys=path) as gate:
        for headers, status in [({"api-key": token}, 200), ({"api-key": "wrong"}, 401),
                                ({"api-key": token, **bearer("other")}, 401)]:  # fmt: skip
            async with http.post(gate.url + CHAT, json=body(), headers=headers) as got:
                assert got.status == status
        assert len(fake.headers) == 1 and token not in str(fake.headers)


async def test_a_keys_exemptions_apply(http: aiohttp.ClientSession, path: Path) -> None:
    tokens = {
        "all": api_keys.create_key(path, name="all"),
        "p": api_keys.create_key(path, name="p", policies=["p"]),
        "q": api_keys.create_key(path, name="q", policies=["q"]),
        "not-p": api_keys.create_key(path, name="not-p", exempt=["p"]),
        "neither": api_keys.create_key(path, name="neither", exempt=["p", "q"]),
        "renamed": api_keys.create_key(path, name="renamed", policies=["gone"]),
    }
    guard = make_guard(policy(refuse={"message": "p"}), policy(name="q", models=["n"], refuse={"message": "q"}))
    async with upstream(answer) as fake, gateway(fake.url, guard, keys=path) as gate:
        for model, expected in [
            ("m", {"all": True, "p": True, "q": False, "not-p": False, "neither": False, "renamed": True}),
            ("n", {"all": True, "p": True, "q": True, "not-p": True, "neither": False, "renamed": True}),
        ]:
            for name, is_refused in expected.items():
                async with http.post(
                    gate.url + CHAT, json={**FLAGGED, "model": model}, headers=bearer(tokens[name])
                ) as got:
                    assert is_refusal(got.status, await got.read()) is is_refused, (model, name)
        # Whatever a client says of policies itself is nothing but text to be judged.
        wish = {**FLAGGED, "policies": ["q"], "exempt": ["p"]}
        async with http.post(
            gate.url + CHAT, json=wish, headers={**bearer(tokens["all"]), "x-lethe-policies": "q"}
        ) as got:
            assert is_refusal(got.status, await got.read())


async def test_an_endless_model_list_is_not_read_to_the_end(http: aiohttp.ClientSession, path: Path) -> None:
    some = api_keys.create_key(path, name="some", models=["n"])

    async def endless(fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
        if "User-Agent" not in request.headers:
            return web.json_response(MODELS)  # the gateway's own question
        response = web.StreamResponse(headers={"content-type": "application/json"})
        await response.prepare(request)
        while True:
            await response.write(b" " * 2**18)

    async with upstream(endless) as fake, gateway(fake.url, make_guard(policy()), keys=path) as gate:
        async with http.get(gate.url + "/v1/models", headers=bearer(some)) as got:
            assert got.status == 502 and (await got.json())["error"]["code"] == "too_long"
        await asyncio.wait_for(fake.closed.wait(), 10)


async def test_a_key_may_use_only_its_models(http: aiohttp.ClientSession, path: Path) -> None:
    some, free = api_keys.create_key(path, name="some", models=["n"]), api_keys.create_key(path, name="free")
    async with upstream(answer) as fake, gateway(fake.url, make_guard(policy()), keys=path) as gate:
        async with http.get(gate.url + "/v1/models", headers=bearer(some)) as got:
            assert await got.json() == {"object": "list", "data": [{"id": "n", "object": "model"}]}
        async with http.get(gate.url + "/v1/models", headers=bearer(free)) as got:
            assert await got.json() == MODELS
        before = len(fake.bodies)
        for route, sent in [(CHAT, body()), (CHAT, {"messages": body()["messages"]}), ("/score", {"model": "m"})]:
            async with http.post(gate.url + route, json=sent, headers=bearer(some)) as got:
                assert got.status == 404 and (await got.json())["error"]["code"] == "model_not_found"
        assert len(fake.bodies) == before
        async with http.post(gate.url + CHAT, json=body(model="n"), headers=bearer(some)) as got:
            assert got.status == 200


async def test_an_unreadable_model_list_is_a_bad_gateway(http: aiohttp.ClientSession, path: Path) -> None:
    async def odd(fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
        return web.json_response(["m"] if "User-Agent" in request.headers else MODELS)

    some = api_keys.create_key(path, name="some", models=["n"])
    async with upstream(odd) as fake, gateway(fake.url, keys=path) as gate:
        async with http.get(gate.url + "/v1/models", headers=bearer(some)) as got:
            assert got.status == 502


async def test_a_key_over_its_rate_gets_429_and_retry_after(http: aiohttp.ClientSession, path: Path) -> None:
    slow, other = api_keys.create_key(path, name="slow", requests_per_minute=2), api_keys.create_key(path, name="other")
    async with upstream(answer) as fake, gateway(fake.url, keys=path) as gate:
        statuses = []
        for _ in range(4):
            async with http.post(gate.url + CHAT, json=body(), headers=bearer(slow)) as got:
                statuses.append(got.status)
                error, headers = await got.json(), got.headers
        assert statuses == [200, 200, 429, 429]
        assert 25 <= int(headers["retry-after"]) <= 30 and headers["x-should-retry"] == "true"
        assert error["error"]["code"] == "rate_limit_exceeded" and error["error"]["type"] == "rate_limit_error"
        async with http.post(gate.url + CHAT, json=body(), headers=bearer(other)) as got:
            assert got.status == 200
    assert gate.count("lethe_refusals_total", reason="rate_limit_exceeded") == 2


async def test_a_keys_concurrency_is_limited(http: aiohttp.ClientSession, path: Path) -> None:
    release = asyncio.Event()

    async def held(fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
        if request.method == "POST":
            await release.wait()
        return web.json_response(MODELS)

    token = api_keys.create_key(path, name="one", concurrency=1)
    async with upstream(held) as fake, gateway(fake.url, keys=path) as gate:
        first = asyncio.ensure_future(http.post(gate.url + CHAT, json=body(), headers=bearer(token)))
        await asyncio.wait_for(fake.arrived.wait(), 5)
        async with http.post(gate.url + CHAT, json=body(), headers=bearer(token)) as got:
            assert got.status == 429 and (await got.json())["error"]["code"] == "concurrency_limit"
            assert int(got.headers["retry-after"]) >= 1
        release.set()
        async with await first as got:
            assert got.status == 200
        async with http.post(gate.url + CHAT, json=body(), headers=bearer(token)) as got:
            assert got.status == 200


async def test_only_a_debug_key_sees_the_verdict(http: aiohttp.ClientSession, path: Path) -> None:
    plain, trusted = api_keys.create_key(path, name="plain"), api_keys.create_key(path, name="trusted", debug=True)
    guard = make_guard(policy(), policy(name="s", mode="shadow"))
    async with upstream(answer) as fake, gateway(fake.url, guard, keys=path) as gate:
        for sent, action, flagged in [(FLAGGED, "refuse", "?1"), (body(), "pass", "?0")]:
            async with http.post(gate.url + CHAT, json=sent, headers=bearer(plain)) as got:
                assert is_refusal(got.status, await got.read()) is (action == "refuse")
                assert not [name for name in got.headers if "lethe" in name.lower()]
            async with http.post(gate.url + CHAT, json=sent, headers=bearer(trusted)) as got:
                assert got.status == 200 and got.headers["x-lethe-action"] == action
                said = got.headers["x-lethe-policies"].split(", ")
            assert [part.split(";")[:3] for part in said] == [
                ["p", "mode=enforce", f"flagged={flagged}"],
                ["s", "mode=shadow", f"flagged={flagged}"],
            ]
            assert "threshold=0.5000;seen=1;present=1" in said[0]


async def test_a_key_can_be_revoked_while_the_gateway_runs(http: aiohttp.ClientSession, path: Path) -> None:
    token = api_keys.create_key(path, name="one")
    async with upstream(answer) as fake, gateway(fake.url, keys=path) as gate:
        later = api_keys.create_key(path, name="later")

        async def status(given: str, wanted: int) -> bool:
            for _ in range(300):
                async with http.post(gate.url + CHAT, json=body(), headers=bearer(given)) as got:
                    if got.status == wanted:
                        return True
                await asyncio.sleep(0.02)
            return False

        assert await status(later, 200)
        api_keys.revoke_key(path, "one")
        assert await status(token, 401) and await status(later, 200)
        path.write_text("broken")
        for _ in range(300):
            if gate.count("lethe_keys_stale"):
                break
            await asyncio.sleep(0.02)
        assert gate.count("lethe_keys_stale") == 1 and await status(later, 200) and await status(token, 401)


async def test_the_audit_trail_names_the_key_without_its_token(http: aiohttp.ClientSession, path: Path) -> None:
    token, audit = api_keys.create_key(path, name="team-a"), path.with_name("audit.jsonl")
    async with upstream(answer) as fake, gateway(fake.url, make_guard(policy()), keys=path, audit=audit) as gate:
        async with http.post(gate.url + CHAT, json=FLAGGED, headers=bearer(token)):
            pass
    text = audit.read_text()
    assert json.loads(text)["key"] == "team-a"
    assert token not in text and api_keys.key_digest(token) not in text


async def test_without_a_key_file_the_clients_key_is_sent_upstream(http: aiohttp.ClientSession) -> None:
    async with upstream(answer) as fake, gateway(fake.url, upstream_key="for-vllm") as gate:
        async with http.post(gate.url + CHAT, json=body(), headers=bearer("mine")) as got:
            assert got.status == 200
        assert fake.headers[0]["authorization"] == "Bearer mine"
