"""OpenAI's own client for Python does its ordinary work through the gateway: flagged, and not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from lethe.evaluation.unlearning.tofu import reveals
from tests.clients.asked import (
    CASES,
    FORCED,
    FUNCTION,
    MOST,
    PENALIZED,
    TOOL,
    UNFLAGGED,
    Case,
    Note,
    no_blanks,
    noted,
)
from tests.clients.tap import Tap
from tests.integration.conftest import Closed

Plain = Callable[[str], str]
each = pytest.mark.parametrize("case", CASES)


@pytest.fixture
def client(tapped: Tap) -> Iterator[OpenAI]:
    # It asks again twice where it thinks it should, as it does for everybody.
    with OpenAI(base_url=f"{tapped.url}/v1", api_key="none") as made:
        yield made


@pytest.fixture
async def waiting(tapped: Tap) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{tapped.url}/v1", api_key="none") as made:
        yield made


def chat(case: Case, **more: Any) -> dict[str, Any]:
    return {"model": case.model, "messages": case.messages, "temperature": 0, "max_tokens": MOST, **more}


def formed(case: Case, **more: Any) -> dict[str, Any]:
    """For an answer that has a form."""
    return chat(case, logit_bias=no_blanks(), **more)


@each
def test_chat_whole_and_streamed(case: Case, client: OpenAI, plain: Plain) -> None:
    whole = client.chat.completions.create(**chat(case))
    text = whole.choices[0].message.content
    assert case.kept(text, plain(case.question)) and whole._request_id
    usage = {"include_usage": True}
    chunks = list(client.chat.completions.create(**chat(case), stream=True, stream_options=usage))
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == text
    assert chunks[-1].usage is not None and chunks[-1].usage == whole.usage


@each
def test_chat_with_the_streaming_helper(case: Case, client: OpenAI, plain: Plain) -> None:
    with client.chat.completions.stream(**chat(case)) as stream:
        said = [event for event in stream]
        last = stream.get_final_completion().choices[0].message
    assert said[-1].type == "content.done" and said[-1].content == last.content
    assert case.kept(last.content, plain(case.question))
    raw = client.chat.completions.with_raw_response.create(**chat(case, n=2, temperature=0.5, logprobs=True))
    assert raw.headers["x-request-id"] and len(raw.parse().choices) == 2


@each
async def test_many_at_once(case: Case, waiting: AsyncOpenAI, plain: Plain) -> None:
    async def streamed() -> str:
        stream = await waiting.chat.completions.create(**chat(case), stream=True)
        return "".join([choice.delta.content or "" async for chunk in stream for choice in chunk.choices])

    async def helped() -> str:
        async with waiting.chat.completions.stream(**chat(case)) as stream:
            return str((await stream.get_final_completion()).choices[0].message.content)

    whole, *texts = await asyncio.gather(waiting.chat.completions.create(**chat(case)), streamed(), helped())
    texts.append(str(whole.choices[0].message.content))
    assert len(set(texts)) == 1 and case.kept(texts[0], plain(case.question))


@each
def test_tools_are_called_and_answered(case: Case, client: OpenAI) -> None:
    got = client.chat.completions.create(**formed(case, tools=[TOOL], tool_choice=FORCED)).choices[0]
    assert got.finish_reason == "stop" and got.message.tool_calls
    assert noted(got.message.tool_calls[0].function.arguments)
    call = got.message.tool_calls[0]
    told = [
        *case.messages, got.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "Kept."},
    ]  # fmt: skip
    after = client.chat.completions.create(**chat(case) | {"messages": told}, tools=[TOOL], tool_choice="none")
    message = after.choices[0].message
    assert not message.tool_calls and not (case.secret and reveals(message.content or "", case.secret))


@each
def test_tool_calls_are_streamed(case: Case, client: OpenAI) -> None:
    with client.chat.completions.stream(**formed(case, tools=[TOOL], tool_choice=FORCED)) as stream:
        kinds = [event.type for event in stream]
        calls = stream.get_final_completion().choices[0].message.tool_calls
    assert "tool_calls.function.arguments.delta" in kinds and "tool_calls.function.arguments.done" in kinds
    assert calls and noted(calls[0].function.arguments)
    silent = client.chat.completions.create(**chat(case, tools=[TOOL], tool_choice="none"), stream=True)
    assert not any(choice.delta.tool_calls for chunk in silent for choice in chunk.choices)


@each
def test_answers_have_the_form_that_was_asked_for(case: Case, client: OpenAI) -> None:
    parsed = client.chat.completions.parse(**formed(case), response_format=Note).choices[0].message.parsed
    assert isinstance(parsed, Note)
    with client.chat.completions.stream(**formed(case), response_format=Note) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == parsed
    schema = {"name": "note", "strict": True, "schema": FUNCTION["parameters"]}
    wanted: Any = {"type": "json_schema", "json_schema": schema}
    got = client.chat.completions.create(**formed(case), response_format=wanted)
    assert noted(got.choices[0].message.content or "") == parsed


def response(case: Case, **more: Any) -> dict[str, Any]:
    return {"model": case.model, "input": case.question, "temperature": 0, "max_output_tokens": MOST, **more}


@each
def test_responses_whole_and_streamed(case: Case, client: OpenAI, plain: Plain) -> None:
    text = client.responses.create(**response(case)).output_text
    assert case.kept(text, plain(case.question))
    events = list(client.responses.create(**response(case), stream=True))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == text
    with client.responses.stream(**response(case)) as stream:
        assert {event.type for event in stream} == {event.type for event in events}
        assert stream.get_final_response().output_text == text


@each
def test_responses_have_forms_and_call_tools(case: Case, client: OpenAI) -> None:
    more = {"extra_body": {"logit_bias": no_blanks()}}
    assert isinstance(client.responses.parse(**response(case, **more), text_format=Note).output_parsed, Note)
    tools: Any = [{"type": "function", **FUNCTION}]
    forced: Any = {"type": "function", "name": "note"}
    whole = client.responses.create(**response(case, **more), tools=tools, tool_choice=forced)
    assert whole.output[0].type == "function_call" and noted(whole.output[0].arguments)
    with client.responses.stream(**response(case, **more), tools=tools, tool_choice=forced) as stream:
        kinds = {event.type for event in stream}
        last = stream.get_final_response().output[0]
    assert {"response.function_call_arguments.delta", "response.function_call_arguments.done"} <= kinds
    assert last.type == "function_call" and noted(last.arguments)


@each
async def test_responses_without_blocking(case: Case, waiting: AsyncOpenAI, plain: Plain) -> None:
    async with waiting.responses.stream(**response(case)) as stream:
        said = "".join([event.delta async for event in stream if event.type == "response.output_text.delta"])
    assert case.kept(said, plain(case.question))
    assert (await waiting.responses.create(**response(case))).output_text == said


@each
def test_completions_whole_and_streamed(case: Case, client: OpenAI, plain: Plain) -> None:
    # The prompt has the template's beginning already.
    more: dict[str, Any] = {
        "model": case.model, "prompt": case.prompt, "temperature": 0, "max_tokens": MOST,
        "extra_body": {"add_special_tokens": False},
    }  # fmt: skip
    text = client.completions.create(**more).choices[0].text
    assert case.kept(text, plain(case.question))
    chunks = client.completions.create(**more, stream=True)
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == text


def test_models_are_listed(client: OpenAI, direct: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [model.id for model in direct.models.list()]


WRONG: list[tuple[Callable[[OpenAI, Case], Any], type[openai.APIStatusError], str | None]] = [
    (lambda client, case: client.chat.completions.create(**chat(case, temperature=-1)),
     openai.BadRequestError, "temperature"),
    (lambda client, case: client.chat.completions.create(**chat(case, max_tokens=10**6)), openai.BadRequestError, None),
    (lambda client, case: client.chat.completions.create(**chat(case, stream=True, seed="x")),
     openai.BadRequestError, "body.seed"),
    (lambda client, case: client.chat.completions.create(**chat(case) | {"model": "none"}),
     openai.NotFoundError, "model"),
    (lambda client, case: client.chat.completions.create(**chat(case, extra_body={"prompt_embeds": "a"})),
     openai.BadRequestError, "prompt_embeds"),
    (lambda client, case: client.completions.create(model=case.model, prompt=case.prompt, n=-1),
     openai.BadRequestError, None),
    (lambda client, case: client.responses.create(**response(case, temperature=-1)),
     openai.BadRequestError, "temperature"),
    (lambda client, case: client.responses.create(**response(case, previous_response_id="r")),
     openai.BadRequestError, "previous_response_id"),
    (lambda client, case: client.responses.retrieve("r"), openai.NotFoundError, None),
    (lambda client, case: client.embeddings.create(model=case.model, input="a"), openai.NotFoundError, None),
    (lambda client, case: client.moderations.create(input="a"), openai.NotFoundError, None),
]  # fmt: skip


@each
def test_errors_are_raised_as_what_they_are_and_never_asked_again(case: Case, tapped: Tap, client: OpenAI) -> None:
    for call, kind, param in WRONG:
        with pytest.raises(kind) as caught:
            call(client, case)
        error = caught.value
        assert type(error) is kind and error.message and error.type
        assert param is None or error.param == param
        assert error.request_id == error.response.headers["x-request-id"]
        assert isinstance(error.body, dict) and error.body.keys() == {"message", "type", "param", "code"}
    assert len(tapped.exchanges) == len(WRONG)


def test_a_refusal_is_raised_and_never_asked_again(closed: Closed) -> None:
    case = PENALIZED
    with OpenAI(base_url=f"{closed.tap.url}/v1", api_key=closed.key) as client:
        calls: list[Callable[[], Any]] = [
            lambda: client.chat.completions.create(**chat(case)),
            lambda: client.chat.completions.create(**chat(case), stream=True),
            lambda: client.chat.completions.parse(**chat(case), response_format=Note),
            lambda: client.completions.create(model=case.model, prompt=case.prompt),
            lambda: client.responses.create(**response(case)),
            lambda: client.responses.create(**response(case), stream=True),
        ]
        for call in calls:
            with pytest.raises(openai.BadRequestError) as caught:
                call()
            assert (caught.value.code, caught.value.type) == ("refused_by_policy", "policy_error")
            assert caught.value.response.headers["x-should-retry"] == "false"
        assert len(closed.tap.exchanges) == len(calls)
        assert client.chat.completions.create(**chat(UNFLAGGED) | {"model": case.model}).choices[0].message.content


def test_keys_and_their_limits_are_raised_as_what_they_are(closed: Closed) -> None:
    with OpenAI(base_url=f"{closed.tap.url}/v1", api_key="lethe-nobodys") as stranger:
        with pytest.raises(openai.AuthenticationError) as unknown:
            stranger.chat.completions.create(**chat(UNFLAGGED))
    assert unknown.value.type == "authentication_error" and len(closed.tap.exchanges) == 1
    with OpenAI(base_url=f"{closed.tap.url}/v1", api_key=closed.slow_key, max_retries=0) as slow:
        with pytest.raises(openai.RateLimitError) as caught:
            for _ in range(2):
                slow.models.list()
    error = caught.value
    assert (error.type, error.code) == ("rate_limit_error", "rate_limit_exceeded")
    assert 1 <= int(error.response.headers["retry-after"]) <= 60
    assert error.response.headers["x-should-retry"] == "true"
