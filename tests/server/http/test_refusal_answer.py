"""A refusal as an ordinary answer, as the official clients read it, whole and streamed, on every endpoint."""

from __future__ import annotations

import json
from typing import Any, get_args

import aiohttp
import anthropic
import openai
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from lethe.server.http.refusal_answer import RefusalAnswer, has_refusal_answer, wants_stream
from lethe.server.output.sse import Parser
from lethe.server.policy.schema import Policy
from lethe.server.requests.fields import RELAYED, Endpoint
from tests.server.fakes import KEYWORD, FakeUpstream, KeywordJudge, gateway, make_guard, policy, upstream

MESSAGE = "Not here."
FLAGGED: list[Any] = [{"role": "user", "content": f"about {KEYWORD}"}]
GUARDED: list[Endpoint] = [endpoint for endpoint in get_args(Endpoint) if endpoint not in RELAYED]
ANSWERED: list[Endpoint] = [endpoint for endpoint in GUARDED if has_refusal_answer(endpoint)]


async def count(fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
    return web.json_response({"input_tokens": 7})


def refusing(**more: Any) -> Policy:
    return policy(refuse={"message": MESSAGE}, **more)


# Refused on purpose, and because the guard failed in one of its ways.
GUARDS: dict[str, Any] = {
    "refused": lambda: make_guard(refusing()),
    "judging failed": lambda: make_guard(refusing(), judge=KeywordJudge(error=RuntimeError("broken"))),
    "rewriting failed": lambda: make_guard(refusing(action="corrupt")),
    "unsupported": lambda: make_guard(refusing(action="corrupt", on_unsupported="refuse")),
}


@pytest.mark.parametrize("reason", list(GUARDS))
async def test_openai_clients_read_a_refusal(reason: str) -> None:
    async with upstream(count) as fake, gateway(fake.url, GUARDS[reason]()) as gate:
        async with openai.AsyncOpenAI(base_url=f"{gate.url}/v1", api_key="none", max_retries=2) as client:
            chat = await client.chat.completions.create(model="m", messages=FLAGGED, n=2)
            assert [(c.index, c.finish_reason, c.message.content) for c in chat.choices] == [
                (0, "content_filter", MESSAGE), (1, "content_filter", MESSAGE)]  # fmt: skip
            assert chat.choices[0].message.refusal == MESSAGE and chat.model == "m"
            assert chat.usage is not None and chat.usage.total_tokens == 0
            options: Any = {"include_usage": True}
            stream = await client.chat.completions.create(
                model="m", messages=FLAGGED, stream=True, stream_options=options
            )
            chunks = [chunk async for chunk in stream]
            deltas = [chunk.choices[0].delta for chunk in chunks[:-1]]
            assert "".join(delta.content or "" for delta in deltas) == MESSAGE
            assert "".join(delta.refusal or "" for delta in deltas) == MESSAGE
            assert chunks[-2].choices[0].finish_reason == "content_filter" and chunks[-1].usage is not None
            text = await client.completions.create(model="m", prompt=[KEYWORD, "hello"])
            assert [(c.text, c.finish_reason) for c in text.choices] == [(MESSAGE, "content_filter")] * 2
            answer = await client.responses.create(model="m", input=KEYWORD)
            assert answer.status == "completed" and answer.output[0].type == "message"
            part = answer.output[0].content[0]
            assert part.type == "refusal" and part.refusal == MESSAGE
            async with client.responses.stream(model="m", input=KEYWORD) as events:
                numbers = [event.sequence_number async for event in events]
                done = await events.get_final_response()
            assert numbers == list(range(len(numbers))) and done.output[0].type == "message"
            assert done.output[0].content == [part]
        assert fake.bodies == []


@pytest.mark.parametrize("reason", list(GUARDS))
async def test_anthropic_clients_read_a_refusal(reason: str) -> None:
    async with upstream(count) as fake, gateway(fake.url, GUARDS[reason]()) as gate:
        async with anthropic.AsyncAnthropic(base_url=gate.url, api_key="none", max_retries=2) as client:
            told = await client.messages.create(model="m", messages=FLAGGED, max_tokens=9)
            async with client.messages.stream(model="m", messages=FLAGGED, max_tokens=9) as stream:
                streamed = await stream.get_final_message()
            for message in (told, streamed):
                assert (message.stop_reason, message.stop_sequence, message.model) == ("refusal", None, "m")
                assert message.content[0].type == "text" and message.content[0].text == MESSAGE
                assert (message.usage.input_tokens, message.usage.output_tokens) == (0, 0)
            assert fake.bodies == []
            # Counting tokens has no answer that a model writes: it is counted, flagged or not.
            counted = await client.messages.count_tokens(model="m", messages=FLAGGED)
            assert counted.input_tokens == 7


async def test_a_refusal_as_error_is_told_for_every_reason() -> None:
    for reason in GUARDS:
        made = GUARDS[reason]()
        (name, (plain, threshold)), *_ = made.policies.items()
        as_error = plain.model_copy(update={"refuse": plain.refuse.model_copy(update={"form": "error"})})
        made.policies = {name: (as_error, threshold)}
        async with upstream(count) as fake, gateway(fake.url, made) as gate, aiohttp.ClientSession() as http:
            body = {"model": "m", "messages": FLAGGED}
            async with http.post(f"{gate.url}/v1/chat/completions", json=body) as got:
                assert (got.status, (await got.json())["error"]["code"]) == (400, "refused_by_policy"), reason
            assert got.headers["x-should-retry"] == "false"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 5) | st.floats(allow_nan=False) | st.sampled_from(["", "true", "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["include_usage", "a"]), inner),
    max_leaves=5,
)
FIELDS = st.sampled_from(
    ["n", "stream", "stream_options", "messages", "prompt", "input", "model", "best_of", "tools", "tool_choice"]
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(ANSWERED), st.dictionaries(FIELDS, JSON), st.text(min_size=1))
def test_any_request_has_a_whole_and_a_streamed_refusal(endpoint: Endpoint, body: dict[str, Any], message: str) -> None:
    answer = RefusalAnswer(endpoint, body)
    message = message.encode("utf-8", "replace").decode()
    whole = json.loads(answer.whole(message))
    assert message in strings(whole)
    events = [event.data for event in Parser().feed(answer.stream(message))]
    read = [json.loads(data) for data in events if data != "[DONE]"]
    assert message in strings(read)
    assert (events[-1] == "[DONE]") is (endpoint not in ("responses", "messages"))
    assert answer.streamed is wants_stream(endpoint, body)
    if endpoint in ("chat", "batch", "completions"):
        finished = [c["index"] for event in read for c in event["choices"] if c["finish_reason"] == "content_filter"]
        assert finished == [choice["index"] for choice in whole["choices"]]


def strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        value = list(value.values())
    return (
        [value] if isinstance(value, str) else [s for v in value for s in strings(v)] if isinstance(value, list) else []
    )


def test_the_stream_field_is_read_as_vllm_reads_it() -> None:
    for value, streamed in [(True, True), ("true", True), (1, True), ("false", False), (0, False), (None, False)]:
        assert wants_stream("chat", {"stream": value}) is streamed, value
    assert not wants_stream("batch", {"stream": True})
