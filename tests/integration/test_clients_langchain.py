"""LangChain's client for OpenAI does its ordinary work through the gateway: flagged, and not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import openai
import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langchain_openai import OpenAI as Completing

from lethe.evaluation.unlearning.tofu import reveals
from tests.clients.asked import CASES, MOST, PENALIZED, TOOL, UNFLAGGED, Case, Note, no_blanks, noted
from tests.clients.tap import Tap
from tests.integration.conftest import Closed

Plain = Callable[[str], str]
each = pytest.mark.parametrize("case", CASES)


def chat(url: str, case: Case, **more: Any) -> ChatOpenAI:
    given = {"base_url": f"{url}/v1", "api_key": "none", "model": case.model, "temperature": 0, "max_tokens": MOST}
    return ChatOpenAI(**{**given, **more})


def joined(chunks: list[AIMessageChunk]) -> AIMessageChunk:
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    return whole


@each
def test_invoke_and_stream(case: Case, tapped: Tap, plain: Plain) -> None:
    model = chat(tapped.url, case, stream_usage=True)
    whole = model.invoke(case.question)
    assert case.kept(str(whole.text), plain(case.question)) and whole.usage_metadata
    streamed = joined(list(model.stream(case.question)))
    assert (streamed.text, streamed.usage_metadata) == (whole.text, whole.usage_metadata)


@each
async def test_many_at_once(case: Case, tapped: Tap, plain: Plain) -> None:
    async def streamed() -> str:
        return "".join([str(chunk.text) async for chunk in model.astream(case.question)])

    # Its own connections are kept for the whole process, longer than this test's event loop.
    async with openai.DefaultAsyncHttpxClient() as connections:
        model = chat(tapped.url, case, http_async_client=connections)
        whole, said, batch = await asyncio.gather(
            model.ainvoke(case.question), streamed(), model.abatch([case.question, case.question])
        )
    assert {str(whole.text), said, *(str(one.text) for one in batch)} == {said}
    assert case.kept(said, plain(case.question))


@each
def test_responses(case: Case, tapped: Tap, plain: Plain) -> None:
    model = chat(tapped.url, case, use_responses_api=True)
    whole = model.invoke(case.question)
    assert case.kept(str(whole.text), plain(case.question))
    assert joined(list(model.stream(case.question))).text == whole.text


@each
def test_tools_are_called_and_answered(case: Case, tapped: Tap) -> None:
    model = chat(tapped.url, case, logit_bias=no_blanks()).bind_tools([TOOL], tool_choice="note", strict=True)
    called = model.invoke(case.question)
    assert isinstance(called, AIMessage) and noted(called.tool_calls[0]["args"])
    assert noted(joined(list(model.stream(case.question))).tool_calls[0]["args"])
    result = ToolMessage("Kept.", tool_call_id=called.tool_calls[0]["id"])
    after = chat(tapped.url, case).invoke([HumanMessage(case.question), called, result])
    assert not (case.secret and reveals(str(after.text), case.secret))


@each
def test_answers_have_the_form_that_was_asked_for(case: Case, tapped: Tap) -> None:
    model = chat(tapped.url, case, logit_bias=no_blanks())
    for method in ("json_schema", "function_calling"):
        assert isinstance(model.with_structured_output(Note, method=method, strict=True).invoke(case.question), Note)


@each
def test_completions(case: Case, tapped: Tap, plain: Plain) -> None:
    given: dict[str, Any] = {"base_url": f"{tapped.url}/v1", "api_key": "none", "model": case.model}
    model = Completing(**given, temperature=0, max_tokens=MOST, extra_body={"add_special_tokens": False})
    text = model.invoke(case.prompt)
    assert case.kept(text, plain(case.question))
    assert "".join(model.stream(case.prompt)) == text


def test_errors_are_raised_as_what_they_are_and_never_asked_again(tapped: Tap) -> None:
    with pytest.raises(openai.BadRequestError):
        chat(tapped.url, UNFLAGGED, max_tokens=10**6).invoke("a")
    with pytest.raises(openai.NotFoundError):
        chat(tapped.url, UNFLAGGED, model="none").invoke("a")
    with pytest.raises(openai.NotFoundError):
        OpenAIEmbeddings(base_url=f"{tapped.url}/v1", api_key="none", check_embedding_ctx_length=False).embed_query("a")
    assert len(tapped.exchanges) == 3


def test_a_refusal_is_raised_and_never_asked_again(closed: Closed) -> None:
    model = chat(closed.tap.url, PENALIZED, api_key=closed.key)
    for call in (model.invoke, lambda question: list(model.stream(question))):
        with pytest.raises(openai.BadRequestError) as caught:
            call(PENALIZED.question)
        assert caught.value.code == "refused_by_policy"
    assert len(closed.tap.exchanges) == 2
    assert model.invoke(UNFLAGGED.question).text
