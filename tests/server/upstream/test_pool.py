"""Which replica answers, what is known of each, and what happens when one goes, hangs, or comes back changed."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from lethe.corruption.decoding.spec import XARGS_KEY, decode_penalty
from lethe.corruption.spec import CorruptionError
from lethe.server.errors import UpstreamDown, UpstreamFailed, UpstreamTimeout
from lethe.server.guard.guard import Guard, Needs
from lethe.server.observability.metrics import Metrics
from lethe.server.upstream import pool as module
from lethe.server.upstream.client import Upstream
from lethe.server.upstream.pool import Replicas, beginning
from tests.server.fakes import gateway, make_guard
from tests.server.upstream.test_parity_probe import reply

INDEX = "1" * 32


@dataclass
class FakeVllm:
    """A model server that can be stopped, started anew on its port, hung, and made to answer otherwise."""

    models: tuple[str, ...] = ("m",)
    embeds: bool = True
    health: int = 200
    started: float = 1000.0
    indexes: frozenset[str] = frozenset()
    ids: tuple[int, ...] = (1, 2, 3)
    answer: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)
    port: int = 0
    runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/health":
            return web.Response(status=self.health)
        if request.path == "/metrics":
            text = f"# HELP python_info x\n# TYPE a b\nprocess_start_time_seconds {self.started}\nrest 1\n"
            return web.Response(text=text)
        if request.path == "/v1/models":
            return web.json_response(
                {"object": "list", "data": [{"id": name, "by": self.port} for name in self.models]}
            )
        body = json.loads(await request.read())
        wanted = body.get("vllm_xargs", {}).get(XARGS_KEY)
        if wanted and not set(decode_penalty(wanted).verbatim) <= self.indexes:
            return web.json_response({"error": {"message": "no such index"}}, status=400)
        if "prompt_embeds" in json.dumps(body) and not self.embeds:
            return web.json_response({"error": {"message": "no embeds here"}}, status=400)
        if body.get("logprobs") is not True and body.get("max_tokens") != 1:
            self.asked.append(body)
            if self.answer is not None:
                return await self.answer(request)
        ids = {"prompt_token_ids": self.ids} if body.get("return_token_ids") else {}
        return web.json_response(reply(("a", -0.1)) | ids, headers={"x-from": str(self.port)})

    async def start(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._serve)
        self.runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self.runner.addresses[0][1]

    async def stop(self) -> None:
        if self.runner is not None:
            await self.runner.cleanup()
            self.runner = None
            await asyncio.sleep(0.05)  # the other side sees its idle connections end


@contextlib.asynccontextmanager
async def running(*fakes: FakeVllm) -> AsyncIterator[None]:
    for fake in fakes:
        await fake.start()
    try:
        yield
    finally:
        for fake in fakes:
            await fake.stop()


class Clean:
    """A corruptor whose clean embeddings are marked, so that a fake server can tell them."""

    def chat(self, body: dict[str, Any], targets: Any, spec: Any, policy: str) -> dict[str, Any]:
        assert spec is None
        return {**body, "messages": [{"role": "user", "content": [{"type": "prompt_embeds", "data": "x"}]}]}

    @property
    def prompt_tokenizer(self) -> Clean:
        return self

    def chat_ids(self, body: dict[str, Any]) -> list[int]:
        return [1, 2, 3]


@contextlib.asynccontextmanager
async def pool(
    *fakes: FakeVllm, guard: Guard | None = None, checked: bool = True, metrics: Metrics | None = None
) -> AsyncIterator[Replicas]:
    ways = [Upstream(fake.url, connect_timeout_s=1, read_timeout_s=1) for fake in fakes]
    made = Replicas(ways, guard or make_guard(), metrics or Metrics(), interval_s=0.05)
    if checked:
        await made.check()
    try:
        yield made
    finally:
        await made.close()


async def ask(made: Replicas, text: str = "Hello", model: str = "m", **more: Any) -> str:
    """The port of the replica that answered."""
    body = {"model": model, "messages": [{"role": "user", "content": text}]}
    given = {"model": model, "affinity": beginning(body), **more}
    async with made.open("POST", b"/v1/chat/completions", [], json.dumps(body).encode(), **given) as response:
        await response.read()
        return response.header(b"x-from")


async def until(said: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not said():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


# Which one ------------------------------------------------------------------------------------------------


def test_all_turns_of_a_conversation_begin_alike_and_others_do_not() -> None:
    first = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    later = [*first, {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "And now?"}]
    one = beginning({"model": "m", "messages": first})
    assert one is not None and one == beginning({"model": "m", "messages": later, "stream": True})
    assert one != beginning({"model": "m", "messages": [first[0], {"role": "user", "content": "Bye"}]})
    assert beginning({"input": "a" * 2000}) == beginning({"input": "a" * 3000})
    assert beginning({"model": "m"}) is None and beginning({"messages": []}) is None
    assert beginning({"prompt": [1, 2, 3]}) is not None and beginning({"messages": "odd"}) is not None


async def test_a_conversation_stays_with_its_replica_and_conversations_spread() -> None:
    one, other = FakeVllm(), FakeVllm()
    async with running(one, other), pool(one, other) as made:
        seen = collections.Counter()
        for i in range(40):
            ports = {await ask(made, f"conversation {i}") for _ in range(3)}
            assert len(ports) == 1
            seen.update(ports)
    assert min(seen[str(one.port)], seen[str(other.port)]) >= 8


async def test_a_replica_that_is_clearly_busier_gives_its_conversation_away() -> None:
    one, other = FakeVllm(), FakeVllm()
    async with running(one, other), pool(one, other) as made:
        home = await ask(made)
        replica = next(r for r in made.all if r.url.endswith(home))
        replica.in_flight = module.BUSIER_BY
        assert await ask(made) == home
        replica.in_flight = module.BUSIER_BY + 1
        assert await ask(made) != home
        replica.in_flight = 0


async def test_without_a_conversation_the_idlest_replica_answers() -> None:
    one, other = FakeVllm(), FakeVllm()
    async with running(one, other), pool(one, other) as made:
        made.all[0].in_flight = 1
        assert {await ask(made, affinity=None) for _ in range(8)} == {str(other.port)}
        made.all[0].in_flight = 0


async def test_each_model_is_asked_of_the_replicas_that_serve_it() -> None:
    one, other = FakeVllm(models=("m",)), FakeVllm(models=("n", "n-lora"))
    async with running(one, other), pool(one, other) as made:
        for i in range(6):
            assert await ask(made, f"{i}", "m") == str(one.port)
            assert await ask(made, f"{i}", "n-lora") == str(other.port)
        assert {await ask(made, f"{i}", "unknown") for i in range(20)} == {str(one.port), str(other.port)}
        listed = json.loads(made.models() or b"null")
        assert {card["id"] for card in listed["data"]} == {"m", "n", "n-lora"}
        await other.stop()
        await made.check()
        with pytest.raises(UpstreamDown):
            await ask(made, model="n")
        assert made.models() is None


async def test_replicas_that_serve_the_same_have_no_list_of_their_own() -> None:
    one, other = FakeVllm(), FakeVllm()
    async with running(one, other), pool(one, other) as made:
        assert made.models() is None


# One that goes --------------------------------------------------------------------------------------------


async def test_a_refused_connection_is_passed_over_and_the_replica_left_out() -> None:
    one, other = FakeVllm(), FakeVllm()
    metrics = Metrics()
    async with running(one, other), pool(one, other, metrics=metrics) as made:
        await one.stop()
        assert {await ask(made, f"{i}") for i in range(12)} == {str(other.port)}
        gone = {"replica": one.url}
        assert metrics.registry.get_sample_value("lethe_replica_ejections_total", gone) == 1
        assert metrics.registry.get_sample_value("lethe_replica_up", gone) == 0
        assert metrics.registry.get_sample_value("lethe_replica_in_flight", gone) == 0
        assert metrics.registry.get_sample_value("lethe_replica_errors_total", {**gone, "kind": "connect"}) == 1


async def test_what_was_sent_once_is_never_sent_again() -> None:
    async def break_off(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    one, other = FakeVllm(answer=break_off), FakeVllm(answer=break_off)
    async with running(one, other), pool(one, other) as made:
        with pytest.raises(UpstreamFailed):
            await ask(made)
        assert len(one.asked) + len(other.asked) == 1


async def test_no_replica_at_all_is_a_503_that_says_when_to_come_back() -> None:
    one, other = FakeVllm(), FakeVllm()
    async with running(one, other), pool(one, other) as made:
        await one.stop()
        await other.stop()
        with pytest.raises(UpstreamDown) as caught:
            await ask(made)
        assert (caught.value.status, caught.value.retryable) == (503, True)
        assert caught.value.retry_after_s is not None and caught.value.retry_after_s >= 1


async def test_three_failures_in_a_row_leave_a_replica_out_and_the_pause_grows() -> None:
    async def hang(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(30)
        return web.Response()

    one, other = FakeVllm(), FakeVllm()
    async with running(one, other), pool(one, other) as made:
        wire = made.all[0].upstream._wire
        wire._read_timeout_s, wire._interval_s = 0.05, 0.01
        homes = [f"{i}" for i in range(40) if await ask(made, f"{i}") == str(one.port)]
        one.answer = hang
        for text in homes[:3]:
            with pytest.raises(UpstreamTimeout):
                await ask(made, text)
        assert made.all[0].paused and made.all[0].up
        assert {await ask(made, text) for text in homes} == {str(other.port)}
        one.answer = None
        first = made.all[0].back_in_s
        made.all[0]._paused_until = -1.0
        assert not made.all[0].paused
        made.all[0].pause("again")
        assert made.all[0].back_in_s > first


async def test_failing_replicas_are_better_than_none() -> None:
    one = FakeVllm()
    async with running(one), pool(one) as made:
        made.all[0].pause("test")
        assert await ask(made) == str(one.port)


async def test_a_5xx_has_the_replica_looked_at_and_leaves_the_verdict_to_its_health() -> None:
    async def fails(request: web.Request) -> web.StreamResponse:
        return web.json_response({}, status=500, headers={"x-from": "500"})

    one, other = FakeVllm(answer=fails), FakeVllm(answer=fails)
    async with running(one, other), pool(one, other) as made:
        watching = asyncio.ensure_future(made.run())
        for i in range(8):
            assert await ask(made, f"{i}") == "500"
        assert all(replica.up and not replica.paused for replica in made.all)
        one.health = 503
        await until(lambda: made.all[0].up is False)
        one.health = 200
        await until(lambda: made.all[0].up is True)
        watching.cancel()
        await asyncio.wait({watching})


async def test_service_returns_with_the_server() -> None:
    one = FakeVllm()
    async with running(one), pool(one) as made:
        watching = asyncio.ensure_future(made.run())
        await one.stop()
        await until(lambda: made.all[0].up is False)
        await one.start()
        await until(lambda: made.all[0].up is True)
        assert await ask(made) == str(one.port)
        watching.cancel()
        await asyncio.wait({watching})


async def test_a_server_without_a_health_route_is_up_while_it_lists_its_models() -> None:
    one = FakeVllm(health=404)
    async with running(one), pool(one) as made:
        assert made.all[0].up and made.settled


async def test_the_watch_outlives_what_a_check_meets(monkeypatch: pytest.MonkeyPatch) -> None:
    async def odd(*_: object, **__: object) -> None:
        checks.append(1)
        raise RuntimeError("odd")

    checks: list[int] = []
    monkeypatch.setattr(module.Replica, "check", odd)
    async with pool(FakeVllm(port=9), checked=False) as made:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(made.run(), 0.4)
    assert len(checks) > 1


# What each can do -----------------------------------------------------------------------------------------


def corrupting(corruptor: Any = None) -> Guard:
    return make_guard(corruptor=corruptor or Clean())


async def test_embeddings_go_only_where_parity_holds() -> None:
    able, unable = FakeVllm(), FakeVllm(embeds=False)
    guard = corrupting()
    async with running(able, unable), pool(able, unable, guard=guard) as made:
        assert made.settled and [replica.parity.holds for replica in made.all] == [True, False]
        assert "--enable-prompt-embeds" in made.all[1].parity.reason
        assert guard.can("m", Needs(parity=True))
        assert {await ask(made, f"{i}", needs=Needs(parity=True)) for i in range(20)} == {str(able.port)}
        assert {await ask(made, f"{i}") for i in range(20)} == {str(able.port), str(unable.port)}
        await able.stop()
        with pytest.raises(UpstreamDown):
            await ask(made, needs=Needs(parity=True))
        assert not guard.can("m", Needs(parity=True))


async def test_parity_of_one_model_says_nothing_about_another() -> None:
    one, other = FakeVllm(models=("m",)), FakeVllm(models=("n",), embeds=False)
    guard = corrupting()
    async with running(one, other), pool(one, other, guard=guard):
        assert guard.can("m", Needs(parity=True)) and not guard.can("n", Needs(parity=True))


async def test_a_named_index_is_asked_only_of_those_that_have_it() -> None:
    having, lacking = FakeVllm(indexes=frozenset([INDEX])), FakeVllm()
    guard = make_guard(indexes={"a": INDEX})
    async with running(having, lacking), pool(having, lacking, guard=guard) as made:
        wanted = Needs(indexes=frozenset([INDEX]))
        assert made.settled and guard.can("m", wanted)
        assert {await ask(made, f"{i}", needs=wanted) for i in range(20)} == {str(having.port)}
        lacking.indexes = frozenset([INDEX])
        await made.check()
        assert len({await ask(made, f"{i}", needs=wanted) for i in range(20)}) == 2


async def test_a_restart_between_two_checks_is_noticed_by_the_clock_of_the_process() -> None:
    one = FakeVllm()
    metrics = Metrics()
    async with running(one), pool(one, guard=corrupting(), metrics=metrics) as made:
        assert made.all[0].parity.holds
        await made.check()
        assert metrics.registry.get_sample_value("lethe_replica_restarts_total", {"replica": one.url}) is None
        one.started, one.embeds = 2000.0, False
        await made.check()
        assert not made.all[0].parity.holds
        assert metrics.registry.get_sample_value("lethe_replica_restarts_total", {"replica": one.url}) == 1


async def test_a_server_that_goes_away_loses_parity_until_it_is_shown_again() -> None:
    one = FakeVllm()
    async with running(one), pool(one, guard=corrupting()) as made:
        await one.stop()
        await made.check()
        assert not made.settled and not made.all[0].parity.holds and made.all[0].parity.reason
        await one.start()
        await made.check()
        assert made.settled and made.all[0].parity.holds


async def test_another_tokenizer_is_no_parity() -> None:
    one = FakeVllm(ids=(1, 4, 3))
    async with running(one), pool(one, guard=corrupting()) as made:
        assert made.settled and "token 2 of 3" in made.all[0].parity.reason and not made.all[0].parity.holds


async def test_a_template_that_cant_be_rewritten_is_no_parity() -> None:
    class CantRewrite:
        def chat(self, body: dict[str, Any], targets: Any, spec: Any, policy: str) -> dict[str, Any]:
            raise CorruptionError("the template shares a token with the content")

    one = FakeVllm()
    async with running(one), pool(one, guard=corrupting(CantRewrite())) as made:
        assert made.settled and "shares a token" in made.all[0].parity.reason


async def test_what_new_policies_need_is_looked_for() -> None:
    one = FakeVllm(indexes=frozenset([INDEX]))
    async with running(one), pool(one) as made:
        assert made.settled
        changed = make_guard(corruptor=Clean(), indexes={"a": INDEX})
        made.serve(changed)
        assert not made.settled and not changed.can("m", Needs(parity=True))
        await made.check()
        assert made.settled and changed.can("m", Needs(parity=True, indexes=frozenset([INDEX])))


# Through the gateway --------------------------------------------------------------------------------------


async def test_one_gateway_two_replicas_one_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = FakeVllm(), FakeVllm()
    async with running(one, other), gateway(f"{one.url},{other.url}", probe_interval_s=0.1) as gate:

        async def post(http: aiohttp.ClientSession, text: str) -> int:
            body = {"model": "m", "messages": [{"role": "user", "content": text}]}
            async with http.post(f"{gate.url}/v1/chat/completions", json=body) as got:
                await got.read()
                return got.status

        async with aiohttp.ClientSession() as http:
            assert {await post(http, f"{i}") for i in range(10)} == {200}
            assert one.asked and other.asked
            await one.stop()
            assert {await post(http, f"{i}") for i in range(10)} == {200}
            await other.stop()
            assert {await post(http, f"{i}") for i in range(4)} == {503}
            await one.start()
            deadline = time.monotonic() + 10
            while await post(http, "again") != 200:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
            async with http.get(f"{gate.url}/ready") as got:
                facts = await got.json()
        assert facts["ready"] and [replica["up"] for replica in facts["replicas"]] == [True, False]
        assert one.url not in json.dumps(facts)


async def test_models_of_all_groups_are_listed() -> None:
    one, other = FakeVllm(models=("m",)), FakeVllm(models=("n",))
    async with running(one, other), gateway(f"{one.url},{other.url}", probe_interval_s=0.1) as gate:
        async with aiohttp.ClientSession() as http:
            deadline = time.monotonic() + 10
            names: set[str] = set()
            while names != {"m", "n"}:
                assert time.monotonic() < deadline
                async with http.get(f"{gate.url}/v1/models") as got:
                    names = {card["id"] for card in (await got.json())["data"]}
