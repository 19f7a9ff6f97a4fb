"""One model of a vLLM server, queried directly: greedy answers, and the likelihood of texts.

Knows vLLM's public API only, no weights or gradients.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tqdm import tqdm

from lethe.server.errors import GatewayError
from lethe.server.upstream.client import Upstream

# Requests sent to vLLM at once, at most.
MAX_CONCURRENT = 16
# Seconds to wait for one answer.
TIMEOUT_S = 600
T = TypeVar("T")


class TuneError(ValueError):
    """Tuning can't continue; the message gives the reason and a remedy."""


@dataclass(frozen=True)
class ModelReply:
    """The text of one answer, and the number of tokens of its prompt."""

    text: str
    prompt_tokens: int


class VllmModel:
    """One model of a vLLM server, under the name `name`."""

    def __init__(self, upstream: Upstream, name: str, *, max_tokens: int) -> None:
        """max_tokens: the longest answer, in tokens."""
        self.name = name
        self._upstream = upstream
        self._max_tokens = max_tokens
        self._slots = asyncio.Semaphore(MAX_CONCURRENT)

    def chat_body(self, prompt: str) -> dict[str, Any]:
        """The body of a greedy chat request with this prompt."""
        return {
            "model": self.name,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": self._max_tokens,
        }

    async def answers(self, bodies: Sequence[dict[str, Any]]) -> list[ModelReply]:
        """Return one greedy answer to each chat body. Raises TuneError if one is refused."""

        async def answer(body: dict[str, Any]) -> ModelReply:
            reply = await self._post("/v1/chat/completions", body)
            return ModelReply(reply["choices"][0]["message"]["content"] or "", reply["usage"]["prompt_tokens"])

        return await _gather_with_progress(answer, bodies, "answers")

    async def losses_alone(self, texts: Sequence[str]) -> list[float]:
        """Mean negative log-probability of each text's tokens after the first, as a plain prompt; NaN without any."""

        async def loss(text: str) -> float:
            if not text.strip():
                return math.nan
            body = {"model": self.name, "prompt": text, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
            return _mean_loss((await self._post("/v1/completions", body))["choices"][0]["prompt_logprobs"])

        return await _gather_with_progress(loss, texts, "likelihood")

    async def losses_as_answers(
        self, prompts: Sequence[str], answers: Sequence[str], prompt_tokens: Sequence[int]
    ) -> list[float]:
        """Mean negative log-probability of each answer to its prompt; NaN for an empty one.

        prompt_tokens: the number of tokens of each prompt.
        """

        async def loss(row: tuple[str, str, int]) -> float:
            prompt, answer, tokens = row
            if not answer.strip():
                return math.nan
            messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
            options = {"add_generation_prompt": False, "continue_final_message": True, "prompt_logprobs": 0}
            body = {**self.chat_body(prompt), "messages": messages, "max_tokens": 1, **options}
            return _mean_loss((await self._post("/v1/chat/completions", body))["prompt_logprobs"][tokens:])

        return await _gather_with_progress(loss, list(zip(prompts, answers, prompt_tokens, strict=True)), "likelihood")

    async def _post(self, path: str, body: Any) -> Any:
        async with self._slots:
            try:
                status, reply = await self._upstream.call("POST", path, body, timeout_s=TIMEOUT_S)
            except GatewayError as error:
                raise TuneError(f"{self._upstream.url}{path}: {error.message}") from error
        if status != 200:
            # A failed request must not count as an answer without the forgotten facts.
            detail = reply.get("error", reply) if isinstance(reply, dict) else reply
            detail = detail.get("message", detail) if isinstance(detail, dict) else detail
            raise TuneError(f"{self._upstream.url}{path} answered {status}: {str(detail)[:300]}")
        return reply


def _mean_loss(tokens: Sequence[Mapping[str, Any] | None]) -> float:
    log_probs = [next(iter(token.values()))["logprob"] for token in tokens if token]
    return -sum(log_probs) / len(log_probs) if log_probs else math.nan


async def _gather_with_progress(request: Callable[[Any], Awaitable[T]], rows: Sequence[Any], label: str) -> list[T]:
    """Send one request for each row at once, with a progress bar. Raises the first TuneError."""
    with tqdm(total=len(rows), desc=label, unit="", file=sys.stderr, leave=False) as bar:

        async def counted_request(row: Any) -> T:
            try:
                return await request(row)
            finally:
                bar.update()

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(counted_request(row)) for row in rows]
        except* TuneError as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]
