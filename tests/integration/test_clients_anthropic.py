"""Anthropic's own client for Python does its ordinary work through the gateway: flagged, and not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic, AsyncAnthropic

from lethe.evaluation.unlearning.tofu import reveals
from tests.clients.asked import CASES, MOST, PENALIZED, UNFLAGGED, Case, noted
from tests.clients.tap import Tap
from tests.integration.conftest import Closed

Plain = Callable[[str], str]
each = pytest.mark.parametrize("case", CASES)
# Messages have no `logit_bias`: a list of all that may be said leaves no room for white space.
NOTES = [{"genre": "crime", "sure": True}, {"genre": "poetry", "sure": False}]
TOOL: Any = {
    "name": "note", "description": "Keeps a note.", "strict": True, "input_schema": {"type": "object", "enum": NOTES},
}  # fmt: skip
FORCED: Any = {"type": "tool", "name": "note"}


@pytest.fixture
def client(tapped: Tap) -> Iterator[Anthropic]:
    with Anthropic(base_url=tapped.url, api_key="none") as made:
        yield made


@pytest.fixture
async def waiting(tapped: Tap) -> AsyncIterator[AsyncAnthropic]:
    async with AsyncAnthropic(base_url=tapped.url, api_key="none") as made:
        yield made


def message(case: Case, **more: Any) -> dict[str, Any]:
    # Its types know no temperature any more; vLLM does.
    return {
        "model": case.model,
        "messages": case.messages,
        "max_tokens": MOST,
        "extra_body": {"temperature": 0},
        **more,
    }


def text(content: Any) -> str:
    return "".join(block.text for block in content if block.type == "text")


@each
def test_messages_whole_and_streamed(case: Case, client: Anthropic, plain: Plain) -> None:
    whole = client.messages.create(**message(case))
    said = text(whole.content)
    assert case.kept(said, plain(case.question))
    assert whole._request_id and whole.usage.input_tokens > 0 and whole.stop_reason == "end_turn"
    events = list(client.messages.create(**message(case), stream=True))
    deltas = [event.delta for event in events if event.type == "content_block_delta"]
    assert "".join(delta.text for delta in deltas if delta.type == "text_delta") == said
    with client.messages.stream(**message(case)) as stream:
        assert "".join(stream.text_stream) == said
        last = stream.get_final_message()
    assert text(last.content) == said and last.usage.output_tokens == whole.usage.output_tokens


@each
async def test_several_at_once(case: Case, waiting: AsyncAnthropic, plain: Plain) -> None:
    async def streamed() -> str:
        async with waiting.messages.stream(**message(case)) as stream:
            return await stream.get_final_text()

    whole, said = await asyncio.gather(waiting.messages.create(**message(case)), streamed())
    assert text(whole.content) == said and case.kept(said, plain(case.question))


@each
def test_a_tools_result_is_answered(case: Case, client: Anthropic) -> None:
    told = [
        *case.messages,
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "note", "input": {"sure": True}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "Kept."}]},
    ]
    got = client.messages.create(**message(case, messages=told, tools=[TOOL], tool_choice={"type": "none"}))
    assert not any(block.type == "tool_use" for block in got.content)
    assert not (case.secret and reveals(text(got.content), case.secret))


@each
def test_a_tool_is_called(case: Case, client: Anthropic) -> None:
    more = message(case, tools=[TOOL], tool_choice=FORCED)
    whole = client.messages.create(**more)
    with client.messages.stream(**more) as stream:
        streamed = stream.get_final_message()
    for got in (whole, streamed):
        calls = [block for block in got.content if block.type == "tool_use"]
        assert got.stop_reason == "tool_use" and calls[0].name == "note" and noted(calls[0].input)


def test_tokens_are_counted(client: Anthropic) -> None:
    for case in (PENALIZED, UNFLAGGED):
        counted = client.messages.count_tokens(model=case.model, messages=case.messages).input_tokens
        assert counted == client.messages.create(**message(case)).usage.input_tokens


WRONG: list[tuple[dict[str, Any], type[anthropic.APIStatusError], str]] = [
    ({"model": "none"}, anthropic.NotFoundError, "does not exist"),
    ({"max_tokens": 10_000}, anthropic.BadRequestError, "max_model_len"),
    ({"extra_body": {"temperature": -1}}, anthropic.BadRequestError, "temperature"),
    ({"extra_body": {"max_tokens": "many"}}, anthropic.BadRequestError, "max_tokens"),
    ({"extra_body": {"top_k": "x"}, "stream": True}, anthropic.BadRequestError, "top_k"),
    ({"extra_body": {"prompt_embeds": "a"}}, anthropic.BadRequestError, "prompt_embeds"),
]


@each
def test_errors_are_raised_as_what_they_are_and_never_asked_again(case: Case, tapped: Tap, client: Anthropic) -> None:
    for wrong, kind, words in WRONG:
        with pytest.raises(kind, match=words) as caught:
            client.messages.create(**message(case, **wrong))
        error = caught.value
        assert error.request_id == error.response.headers["x-request-id"] and words in str(error.api_message)
    # The client's own list of kinds; vLLM has others where it finds the fault itself.
    assert error.type == "invalid_request_error"
    with pytest.raises(anthropic.NotFoundError):
        client.models.retrieve("none")
    assert len(tapped.exchanges) == len(WRONG) + 1


def test_refusals_keys_and_limits_are_raised_as_what_they_are(closed: Closed) -> None:
    with Anthropic(base_url=closed.tap.url, api_key=closed.key) as client:
        calls: list[Callable[[], Any]] = [
            lambda: client.messages.create(**message(PENALIZED)),
            lambda: client.messages.create(**message(PENALIZED), stream=True),
        ]
        for call in calls:
            with pytest.raises(anthropic.BadRequestError) as caught:
                call()
            assert caught.value.type == "invalid_request_error"
        assert len(closed.tap.exchanges) == len(calls)
        assert client.messages.create(**message(UNFLAGGED, model=PENALIZED.model)).content
    with Anthropic(base_url=closed.tap.url, api_key="lethe-nobodys") as stranger:
        with pytest.raises(anthropic.AuthenticationError) as unknown:
            stranger.messages.create(**message(UNFLAGGED))
    assert unknown.value.type == "authentication_error"
    with Anthropic(base_url=closed.tap.url, api_key=closed.slow_key, max_retries=0) as slow:
        with pytest.raises(anthropic.RateLimitError) as limited:
            for _ in range(2):
                slow.messages.count_tokens(model=PENALIZED.model, messages=UNFLAGGED.messages)
    assert limited.value.type == "rate_limit_error"
    assert 1 <= int(limited.value.response.headers["retry-after"]) <= 60
