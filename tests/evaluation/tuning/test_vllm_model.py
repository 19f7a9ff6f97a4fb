"""The requests sent to vLLM; a failed request is an error and never counts as an answer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from lethe.evaluation.tuning.vllm_model import TuneError, VllmModel
from lethe.server.errors import UpstreamFailed

Handle = Callable[[str, dict[str, Any]], tuple[int, Any]]


class FakeUpstream:
    """Answers calls with a function and records their bodies."""

    url = "http://vllm"

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self.bodies: list[dict[str, Any]] = []

    async def call(self, method: str, path: str, body: dict[str, Any], *, timeout_s: float) -> tuple[int, Any]:
        self.bodies.append(body)
        return self._handle(path, body)


def make_model(handle: Handle) -> tuple[VllmModel, FakeUpstream]:
    upstream = FakeUpstream(handle)
    return VllmModel(upstream, "m", max_tokens=7), upstream  # type: ignore[arg-type]


def tokens(*logprobs: float) -> list[dict[str, Any] | None]:
    return [None, *({"5": {"logprob": value, "rank": 1}} for value in logprobs)]


async def test_answers_are_greedy_and_in_order() -> None:
    def echo(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        text = body["messages"][0]["content"].upper()
        return 200, {"choices": [{"message": {"content": text}}], "usage": {"prompt_tokens": len(text)}}

    model, upstream = make_model(echo)
    replies = await model.answers([model.chat_body(prompt) for prompt in ("a", "bb", "ccc")])
    assert [(reply.text, reply.prompt_tokens) for reply in replies] == [("A", 1), ("BB", 2), ("CCC", 3)]
    assert all(
        body["temperature"] == 0 and body["max_tokens"] == 7 and body["model"] == "m" for body in upstream.bodies
    )


async def test_losses_of_plain_texts_and_of_answers() -> None:
    def score(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/v1/completions":
            return 200, {"choices": [{"prompt_logprobs": tokens(-1.0, -3.0)}]}
        assert [message["role"] for message in body["messages"]] == ["user", "assistant"]
        assert body["continue_final_message"] is True and body["add_generation_prompt"] is False
        return 200, {"prompt_logprobs": tokens(-9.0, -9.0, -1.0, -2.0)}

    model, upstream = make_model(score)
    losses = await model.losses_alone(["two words", " "])
    assert losses[0] == 2.0 and math.isnan(losses[1]) and len(upstream.bodies) == 1
    # Three tokens belong to the prompt: the first has no probability, the other two don't count.
    losses = await model.losses_as_answers(["q", "q"], ["an answer", ""], [3, 3])
    assert losses[0] == 1.5 and math.isnan(losses[1])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((400, {"error": {"message": "no such thing"}}), "http://vllm/v1/chat/completions answered 400: no such thing"),
        ((500, "Internal Server Error"), "answered 500: Internal Server Error"),
    ],
)
async def test_a_failed_request_is_an_error(answer: tuple[int, Any], message: str) -> None:
    model, _ = make_model(lambda path, body: answer)
    with pytest.raises(TuneError, match=message):
        await model.answers([model.chat_body("a"), model.chat_body("b")])


async def test_an_unreachable_server_is_an_error() -> None:
    def fail(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        raise UpstreamFailed("the model server can't be reached", code="connect")

    model, _ = make_model(fail)
    with pytest.raises(TuneError, match="can't be reached"):
        await model.answers([model.chat_body("a")])
