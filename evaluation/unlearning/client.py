"""Many questions to one server at once, as a client would ask them. An answer that fails is an error, not a text."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Any

from openai import APIError, APIStatusError, AsyncOpenAI
from tqdm import tqdm

CONCURRENT = 32
MAX_TOKENS = 120


class AskError(ValueError):
    """A server did not answer; the message says which question of which server, and its status."""


class Asker:
    """One server and one model name on it."""

    def __init__(self, base_url: str, model: str, *, max_tokens: int = MAX_TOKENS, refusals: bool = False) -> None:
        """refusals: whether a 403 of the guard is an answer (its message is the text), or an error."""
        self._url, self._model, self._max_tokens, self._refusals = base_url, model, max_tokens, refusals

    def all(
        self,
        questions: Sequence[str],
        *,
        system: str | None = None,
        seed: int | None = None,
        stream: bool = False,
        label: str = "answers",
    ) -> list[str]:
        """The answers in the order of the questions: greedy, or at temperature 1 with a seed. Raises AskError."""
        return asyncio.run(self._all(questions, system, seed, stream, label))

    async def _all(
        self, questions: Sequence[str], system: str | None, seed: int | None, stream: bool, label: str
    ) -> list[str]:
        free = asyncio.Semaphore(CONCURRENT)
        failure: BaseException | None = None
        async with AsyncOpenAI(base_url=f"{self._url}/v1", api_key="none", max_retries=0, timeout=900) as client:
            with tqdm(total=len(questions), desc=label, unit="answer", file=sys.stderr, mininterval=1) as bar:

                async def one(number: int, question: str) -> str:
                    messages: list[Any] = [{"role": "user", "content": question}]
                    if system is not None:
                        messages.insert(0, {"role": "system", "content": system})
                    # A seed of its own for each question, or equal first tokens would be drawn alike.
                    drawn = (
                        {"temperature": 0.0} if seed is None else {"temperature": 1.0, "seed": seed * 10**6 + number}
                    )
                    async with free:
                        text = await self._one(client, messages, drawn, stream)
                        bar.update()
                        return text

                try:
                    async with asyncio.TaskGroup() as group:
                        tasks = [group.create_task(one(i, question)) for i, question in enumerate(questions)]
                except* AskError as failed:
                    failure = failed.exceptions[0]
                if failure is not None:
                    raise failure
        return [task.result() for task in tasks]

    async def _one(self, client: AsyncOpenAI, messages: list[Any], drawn: dict[str, Any], stream: bool) -> str:
        kwargs: Any = {"model": self._model, "messages": messages, "max_tokens": self._max_tokens, **drawn}
        try:
            if not stream:
                got = await client.chat.completions.create(**kwargs)
                return got.choices[0].message.content or ""
            chunks = await client.chat.completions.create(**kwargs, stream=True)
            return "".join([c.delta.content or "" async for chunk in chunks for c in chunk.choices])
        except APIStatusError as error:
            body = error.body if isinstance(error.body, dict) else {}
            if self._refusals and error.status_code == 403:
                return str(body.get("message", ""))
            raise AskError(f"{self._url}: status {error.status_code}: {body.get('message', error)}") from error
        except APIError as error:
            raise AskError(f"{self._url}: {error}") from error
