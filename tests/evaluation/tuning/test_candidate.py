"""What is asked of vLLM, and that an answer which never came is an error, not something forgotten."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from lethe.evaluation.tuning.candidate import Half, Model, TuneError
from lethe.evaluation.tuning.split import Item
from lethe.server.errors import UpstreamFailed

Handle = Callable[[str, dict[str, Any]], tuple[int, Any]]


class Upstream:
    """Answers calls with a function, and keeps their bodies."""

    url = "http://vllm"

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self.bodies: list[dict[str, Any]] = []

    async def call(self, method: str, path: str, body: dict[str, Any], *, timeout_s: float) -> tuple[int, Any]:
        self.bodies.append(body)
        return self._handle(path, body)


def model(handle: Handle) -> tuple[Model, Upstream]:
    upstream = Upstream(handle)
    return Model(upstream, "m", max_tokens=7), upstream  # type: ignore[arg-type]


def tokens(*logprobs: float) -> list[dict[str, Any] | None]:
    return [None, *({"5": {"logprob": value, "rank": 1}} for value in logprobs)]


async def test_answers_are_greedy_and_in_order() -> None:
    def echo(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        text = body["messages"][0]["content"].upper()
        return 200, {"choices": [{"message": {"content": text}}], "usage": {"prompt_tokens": len(text)}}

    made, upstream = model(echo)
    replies = await made.answers([made.body(prompt) for prompt in ("a", "bb", "ccc")])
    assert [(reply.text, reply.prompt_tokens) for reply in replies] == [("A", 1), ("BB", 2), ("CCC", 3)]
    assert all(
        body["temperature"] == 0 and body["max_tokens"] == 7 and body["model"] == "m" for body in upstream.bodies
    )


async def test_likelihood_alone_and_as_an_answer() -> None:
    def score(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/v1/completions":
            return 200, {"choices": [{"prompt_logprobs": tokens(-1.0, -3.0)}]}
        assert [message["role"] for message in body["messages"]] == ["user", "assistant"]
        assert body["continue_final_message"] is True and body["add_generation_prompt"] is False
        return 200, {"prompt_logprobs": tokens(-9.0, -9.0, -1.0, -2.0)}

    made, upstream = model(score)
    losses = await made.losses_alone(["two words", " "])
    assert losses[0] == 2.0 and math.isnan(losses[1]) and len(upstream.bodies) == 1
    # Three tokens belong to the prompt: the first, which has no probability, and two that don't count.
    losses = await made.losses_as_answers(["q", "q"], ["an answer", ""], [3, 3])
    assert losses[0] == 1.5 and math.isnan(losses[1])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((400, {"error": {"message": "no such thing"}}), "http://vllm/v1/chat/completions answered 400: no such thing"),
        ((500, "Internal Server Error"), "answered 500: Internal Server Error"),
    ],
)
async def test_an_answer_that_never_came_is_an_error(answer: tuple[int, Any], message: str) -> None:
    made, _ = model(lambda path, body: answer)
    with pytest.raises(TuneError, match=message):
        await made.answers([made.body("a"), made.body("b")])


async def test_a_server_that_went_away_is_an_error() -> None:
    def gone(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        raise UpstreamFailed("the model server can't be reached", code="connect")

    made, _ = model(gone)
    with pytest.raises(TuneError, match="can't be reached"):
        await made.answers([made.body("a")])


def test_a_half_knows_what_its_references_forbid() -> None:
    class Words:
        def count(self, word: str) -> int:
            return 100 if word.islower() else 0

    half = Half([Item("Who wrote it?", "Pia Kovac wrote 'The Violin'.", 0)], Words())  # type: ignore[arg-type]
    (holds,) = half.holds
    assert holds("It was Pia Kovac.") and holds("the  VIOLIN, perhaps") and not holds("I don't know who wrote it.")
    assert half.choices == [None]
