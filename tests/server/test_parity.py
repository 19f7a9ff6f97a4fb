"""The parity probe's comparison, and the watch over an upstream that goes and comes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web

from corruption.spec import CorruptionError
from server.metrics import Metrics
from server.parity import Watch, compare
from server.upstream import Upstream
from tests.server.fakes import FakeUpstream, make_guard, upstream


def reply(*tokens: tuple[str, float], prompt_tokens: int = 7) -> dict[str, Any]:
    content = [{"token": token, "logprob": logprob} for token, logprob in tokens]
    return {"usage": {"prompt_tokens": prompt_tokens}, "choices": [{"logprobs": {"content": content}}]}


def test_the_same_tokens_at_nearly_the_same_probability_are_parity() -> None:
    assert compare(reply(("a", -0.1), ("b", -2.0)), reply(("a", -0.11), ("b", -2.01))).holds


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (reply(("a", -0.1), ("c", -3.0)), "part at token 2"),
        (reply(("a", -0.4), ("b", -2.0)), "differ by 0.300 at token 1"),
        (
            reply(("a", -0.1), ("b", -2.0), prompt_tokens=8),
            "prompt_tokens differ: 7 as text, 8 as embeddings",
        ),
    ],
)
def test_another_answer_is_no_parity(other: dict[str, Any], reason: str) -> None:
    found = compare(reply(("a", -0.1), ("b", -2.0)), other)
    assert not found.holds and reason in found.reason


def test_two_candidates_that_are_equally_likely_may_swap() -> None:
    assert compare(reply(("a", -0.1), ("b", -0.7)), reply(("a", -0.1), ("c", -0.7), ("d", -9.0))).holds


class Clean:
    """A corruptor whose clean embeddings are marked, so that the fake upstream can tell them."""

    def chat(self, body: dict[str, Any], targets: Any, spec: Any, policy: str) -> dict[str, Any]:
        assert spec is None
        return {**body, "messages": [{"role": "user", "content": [{"type": "prompt_embeds", "data": "x"}]}]}


async def served(fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
    if request.path == "/v1/models":
        return web.json_response({"data": [{"id": "m"}]})
    if b"prompt_embeds" in fake.bodies[-1] and fake.bodies[0] == b"broken":
        return web.json_response({"error": {"message": "no embeds here"}}, status=400)
    return web.json_response(reply(("a", -0.1)))


async def watch(url: str, corruptor: Any) -> tuple[Watch, Upstream]:
    connection = Upstream(url, connect_timeout_s=1, read_timeout_s=1)
    guard = make_guard(corruptor=corruptor)
    return Watch(connection, guard, Metrics(), interval_s=1), connection


async def test_the_watch_settles_parity_when_the_server_is_up() -> None:
    async with upstream(served) as fake:
        made, connection = await watch(fake.url, Clean())
        assert not made.settled
        await made.check()
        assert made.settled and made.parity.holds and made._guard.parity
        await connection.close()


async def test_a_server_without_embeddings_is_up_without_parity() -> None:
    async with upstream(served) as fake:
        fake.bodies.append(b"broken")
        made, connection = await watch(fake.url, Clean())
        await made.check()
        assert made.settled and not made.parity.holds and not made._guard.parity
        assert "--enable-prompt-embeds" in made.parity.reason
        await connection.close()


class CantRewrite:
    def chat(self, body: dict[str, Any], targets: Any, spec: Any, policy: str) -> dict[str, Any]:
        raise CorruptionError("the template shares a token with the content")


async def test_a_template_that_cant_be_rewritten_is_no_parity() -> None:
    async with upstream(served) as fake:
        made, connection = await watch(fake.url, CantRewrite())
        await made.check()
        assert made.settled and not made.parity.holds and "shares a token" in made.parity.reason
        await connection.close()


async def test_the_watch_outlives_what_a_check_meets(monkeypatch: pytest.MonkeyPatch) -> None:
    connection = Upstream("http://127.0.0.1:9", connect_timeout_s=1, read_timeout_s=1)
    made = Watch(connection, make_guard(corruptor=Clean()), Metrics(), interval_s=0.01)
    checks: list[int] = []

    async def check() -> None:
        checks.append(1)
        raise RuntimeError("odd")

    monkeypatch.setattr(made, "check", check)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(made.run(), 0.2)
    assert len(checks) > 1
    await connection.close()


async def test_a_server_that_goes_away_loses_parity_until_it_is_shown_again() -> None:
    async with upstream(served) as fake:
        made, connection = await watch(fake.url, Clean())
        await made.check()
    await made.check()
    assert not made.up and not made.settled and not made._guard.parity
    await connection.close()


async def test_without_a_corrupting_policy_nothing_is_probed() -> None:
    async with upstream(served) as fake:
        made, connection = await watch(fake.url, None)
        await made.check()
        assert made.settled and fake.bodies == []
        await connection.close()
