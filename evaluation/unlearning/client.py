"""A chat client that sends many questions to one OpenAI-compatible server concurrently.

A request that fails raises ChatError: an answer that never came must not be counted as an empty one.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Any

from openai import APIError, APIStatusError, AsyncOpenAI
from tqdm import tqdm

# Requests in flight at a time; vLLM batches them.
MAX_CONCURRENCY = 32
# Longest answer, in tokens.
MAX_TOKENS = 120
# Seconds: on a CPU, a queue of 32 answers takes minutes.
TIMEOUT_S = 900

# The code of an error with which a policy refuses a request (`refuse.as: error`).
REFUSED_CODE = "refused_by_policy"


class ChatError(ValueError):
    """A request failed; the message names the server, the status and the server's message."""


class ChatClient:
    """A client for one server and one model name on it."""

    def __init__(self, base_url: str, model: str, *, max_tokens: int = MAX_TOKENS, refusals: bool = False) -> None:
        """refusals: if True, the message of a policy's refusal counts as the answer; if False, it raises ChatError."""
        self._base_url, self._model, self._max_tokens, self._refusals = base_url, model, max_tokens, refusals

    def answer_all(
        self,
        questions: Sequence[str],
        *,
        system: str | None = None,
        seed: int | None = None,
        stream: bool = False,
        label: str = "answers",
    ) -> list[str]:
        """Return the answers in the order of the questions: greedy, or at temperature 1 with a seed.

        system: a system prompt. label: the progress bar's. Raises ChatError for the first request that fails.
        """
        return asyncio.run(self._answer_all(questions, system, seed, stream, label))

    async def _answer_all(
        self, questions: Sequence[str], system: str | None, seed: int | None, stream: bool, label: str
    ) -> list[str]:
        limit = asyncio.Semaphore(MAX_CONCURRENCY)
        failure: BaseException | None = None
        async with AsyncOpenAI(
            base_url=f"{self._base_url}/v1", api_key="none", max_retries=0, timeout=TIMEOUT_S
        ) as client:
            with tqdm(total=len(questions), desc=label, unit="answer", file=sys.stderr, mininterval=1) as bar:

                async def answer(number: int, question: str) -> str:
                    messages: list[Any] = [{"role": "user", "content": question}]
                    if system is not None:
                        messages.insert(0, {"role": "system", "content": system})
                    # One seed per question: with a shared seed, equal distributions would draw equal tokens.
                    sampling = (
                        {"temperature": 0.0} if seed is None else {"temperature": 1.0, "seed": seed * 10**6 + number}
                    )
                    async with limit:
                        text = await self._request(client, messages, sampling, stream)
                        bar.update()
                        return text

                try:
                    async with asyncio.TaskGroup() as group:
                        tasks = [group.create_task(answer(i, question)) for i, question in enumerate(questions)]
                except* ChatError as errors:
                    failure = errors.exceptions[0]
                if failure is not None:
                    raise failure
        return [task.result() for task in tasks]

    async def _request(self, client: AsyncOpenAI, messages: list[Any], sampling: dict[str, Any], stream: bool) -> str:
        kwargs: Any = {"model": self._model, "messages": messages, "max_tokens": self._max_tokens, **sampling}
        try:
            if not stream:
                completion = await client.chat.completions.create(**kwargs)
                message = completion.choices[0].message
                return self._checked(message.content or "", bool(message.refusal))
            chunks = await client.chat.completions.create(**kwargs, stream=True)
            deltas = [choice.delta async for chunk in chunks for choice in chunk.choices]
            text = "".join(delta.content or "" for delta in deltas)
            return self._checked(text, any(delta.refusal for delta in deltas))
        except APIStatusError as error:
            body = error.body if isinstance(error.body, dict) else {}
            if self._refusals and error.code == REFUSED_CODE:
                return str(body.get("message", ""))
            raise ChatError(f"{self._base_url}: status {error.status_code}: {body.get('message', error)}") from error
        except APIError as error:
            raise ChatError(f"{self._base_url}: {error}") from error

    def _checked(self, text: str, is_refusal: bool) -> str:
        """The text. Raises ChatError for a refusal, unless refusals count as answers."""
        if is_refusal and not self._refusals:
            raise ChatError(f"{self._base_url}: refused by a policy: {text}")
        return text
