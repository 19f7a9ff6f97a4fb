"""Candidate policies tried on the live model: prompts guarded by the gateway's own code, answers measured.

Knows vLLM's public API and nothing of weights or gradients. Greedy, so that the same candidate always gets the same
answers; retained prompts are never asked, because a guard doesn't touch them.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import orjson
from tqdm import tqdm

from lethe.classifier.artifact import Artifact
from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.judge import Judge
from lethe.corruption.phrases.extraction import forbidden_phrases
from lethe.corruption.phrases.normalize import fold
from lethe.corruption.phrases.trie import START_STATE, PhraseTrie
from lethe.evaluation.tuning.objective import (
    SIMILARITIES,
    Answers,
    Choice,
    Target,
    choice,
    describe,
    dont_know,
    garble,
    others,
    surrogate,
)
from lethe.evaluation.tuning.split import Item
from lethe.server.errors import GuardError
from lethe.server.guard import rewrite
from lethe.server.guard.guard import Guard
from lethe.server.observability.metrics import Metrics
from lethe.server.policy.schema import Policy
from lethe.server.upstream.client import Upstream

if TYPE_CHECKING:
    from lethe.corruption.embeddings.corruptor import Corruptor

CONCURRENT = 16
TIMEOUT_S = 600
# What a model that never knew would say, where none can be asked.
SURROGATES = {
    "dont-know": "a hundred sentences that say I don't know",
    "other-answers": "the answers of forget items about something else",
}
T = TypeVar("T")


class TuneError(ValueError):
    """Tuning can't go on; the message says why, and what would help."""


@dataclass(frozen=True)
class Reply:
    text: str
    prompt_tokens: int


class Model:
    """One model of a vLLM server, asked directly."""

    def __init__(self, upstream: Upstream, name: str, *, max_tokens: int) -> None:
        self.name = name
        self._upstream = upstream
        self._max_tokens = max_tokens
        self._free = asyncio.Semaphore(CONCURRENT)

    def body(self, prompt: str) -> dict[str, Any]:
        return {
            "model": self.name,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": self._max_tokens,
        }

    async def answers(self, bodies: Sequence[dict[str, Any]]) -> list[Reply]:
        """One greedy answer to each chat body. Raises TuneError when one is refused."""

        async def one(body: dict[str, Any]) -> Reply:
            got = await self._post("/v1/chat/completions", body)
            return Reply(got["choices"][0]["message"]["content"] or "", got["usage"]["prompt_tokens"])

        return await _each(one, bodies, "answers")

    async def losses_alone(self, texts: Sequence[str]) -> list[float]:
        """Mean negative log-probability of each text's tokens after the first, as a plain prompt; NaN without any."""

        async def one(text: str) -> float:
            if not text.strip():
                return math.nan
            body = {"model": self.name, "prompt": text, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
            return _loss((await self._post("/v1/completions", body))["choices"][0]["prompt_logprobs"])

        return await _each(one, texts, "likelihood")

    async def losses_as_answers(
        self, prompts: Sequence[str], answers: Sequence[str], before: Sequence[int]
    ) -> list[float]:
        """Mean negative log-probability of each answer to its prompt. before: the prompts' own tokens."""

        async def one(row: tuple[str, str, int]) -> float:
            prompt, answer, tokens = row
            if not answer.strip():
                return math.nan
            messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
            how = {"add_generation_prompt": False, "continue_final_message": True, "prompt_logprobs": 0}
            body = {**self.body(prompt), "messages": messages, "max_tokens": 1, **how}
            return _loss((await self._post("/v1/chat/completions", body))["prompt_logprobs"][tokens:])

        return await _each(one, list(zip(prompts, answers, before, strict=True)), "likelihood")

    async def _post(self, path: str, body: Any) -> Any:
        async with self._free:
            try:
                status, got = await self._upstream.call("POST", path, body, timeout_s=TIMEOUT_S)
            except GuardError as error:
                raise TuneError(f"{self._upstream.url}{path}: {error.message}") from error
        if status != 200:
            # An answer that never came would count as forgotten.
            said = got.get("error", got) if isinstance(got, dict) else got
            said = said.get("message", said) if isinstance(said, dict) else said
            raise TuneError(f"{self._upstream.url}{path} answered {status}: {str(said)[:300]}")
        return got


def _loss(tokens: Sequence[Mapping[str, Any] | None]) -> float:
    found = [next(iter(token.values()))["logprob"] for token in tokens if token]
    return -sum(found) / len(found) if found else math.nan


async def _each(ask: Callable[[Any], Awaitable[T]], rows: Sequence[Any], label: str) -> list[T]:
    with tqdm(total=len(rows), desc=label, unit="", file=sys.stderr, leave=False) as bar:

        async def one(row: Any) -> T:
            try:
                return await ask(row)
            finally:
                bar.update()

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(row)) for row in rows]
        except* TuneError as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]


class Half:
    """The prompts of one half, and what answers to them are held against."""

    def __init__(self, items: Sequence[Item], known: rewrite.Words) -> None:
        self.items = items
        self.prompts = [item.prompt for item in items]
        self.references = [item.reference for item in items]
        self.choices: list[Choice | None] = [choice(item.prompt, item.reference) for item in items]
        self.holds = [_holds(item, known) for item in items]
        # Filled once by Bench.target.
        self.target: Target | None = None
        self.twin_tokens: list[int] = []


def _holds(item: Item, known: rewrite.Words) -> Callable[[str], bool]:
    """Whether a text holds a phrase that the item's own reference forbids."""
    matcher = PhraseTrie(forbidden_phrases([item.reference], item.prompt, count=known.count))
    return lambda text: matcher.forbids(START_STATE, fold(f"{text} "))


class Bench:
    """Everything that a candidate needs to be tried: one policy, its artifact, the model, perhaps a retain model."""

    def __init__(
        self,
        policy: Policy,
        threshold: float,
        artifact: Artifact,
        encoder: Encoder,
        model: Model,
        *,
        corruptor: Corruptor | None = None,
        indexes: Mapping[str, str] | None = None,
        twin: Model | None = None,
        max_prompt_chars: int = 400_000,
        surrogate: str = "dont-know",
        seed: int = 0,
    ) -> None:
        """corruptor: parity must have been shown. indexes: as Guard has them, and vLLM too.

        surrogate: without a twin, one of SURROGATES. seed: of its lots.
        """
        self._threshold = threshold
        self._artifact = artifact
        self.encode = encoder.encode
        self._judge = Judge({policy.artifact: artifact}, encoder)
        self._model = model
        self._twin = twin
        self._corruptor = corruptor
        self._indexes = dict(indexes or {})
        self._max_prompt_chars = max_prompt_chars
        self._surrogate = surrogate
        self._seed = seed
        self._known = rewrite.Words(artifact)
        self._finder = self._guard(policy)
        self._penalizes = policy.action in ("penalize", "both")

    def _guard(self, policy: Policy) -> Guard:
        # A policy in shadow is tuned before it is enforced, and under whatever name the model is asked for.
        policy = policy.model_copy(update={"mode": "enforce", "models": None})
        guard = Guard(
            {policy.name: (policy, self._threshold)},
            {policy.artifact: self._artifact},
            self._judge,
            Metrics(),
            max_prompt_chars=self._max_prompt_chars,
            corruptor=self._corruptor,
            indexes=self._indexes,
        )
        guard.parity = self._corruptor is not None
        guard.indexes_there = frozenset(self._indexes.values())
        return guard

    def flags(self, item: Item) -> bool:
        """Whether the policy flags an item's prompt: what it misses is its threshold's matter, at any strength."""
        judged = self._finder.read("chat", self._model.body(item.prompt))
        return self._finder.find(judged, self._finder.policies).action != "pass"

    def half(self, items: Sequence[Item]) -> Half:
        return Half(items, self._known)

    async def target(self, half: Half) -> Target:
        """Asked for once a half: the unguarded model's answers, and the retain model's or what stands for it."""
        if half.target is not None:
            return half.target
        plain = [r.text for r in await self._model.answers([self._model.body(prompt) for prompt in half.prompts])]
        guess = np.array([1 / len(c.options) if c else math.nan for c in half.choices])
        twin, ignorance, garbled = None, np.zeros((len(plain), 0, len(SIMILARITIES))), [math.nan] * len(plain)
        if self._twin is not None:
            own = await self._twin.answers([self._twin.body(prompt) for prompt in half.prompts])
            half.twin_tokens = [reply.prompt_tokens for reply in own]
            twin = await self._described(half, [reply.text for reply in own])
        else:
            garbled = await self._model.losses_alone([garble(text, self._seed) for text in plain])
            ignorance = await asyncio.to_thread(surrogate, half.references, self._sayings(half), self.encode)
        half.target = Target(await self._described(half, plain), twin, ignorance, guess, np.array(garbled))
        return half.target

    def _sayings(self, half: Half) -> list[list[str]]:
        if self._surrogate == "other-answers":
            return others(half.references, [item.group for item in half.items], self._seed)
        return [dont_know()] * len(half.items)

    async def answers(self, policy: Policy, half: Half) -> Answers:
        """What the model answers under a candidate policy, measured. Raises TuneError where it can't be applied."""
        await self.target(half)
        guard = self._guard(policy)

        def guarded(prompt: str) -> dict[str, Any]:
            outcome = guard.examine(guard.read("chat", self._model.body(prompt)))
            if outcome.payload is None:
                reason = outcome.note or outcome.action
                raise TuneError(f"policy {policy.name!r}: a prompt can't be guarded as it says: {reason}")
            body: dict[str, Any] = orjson.loads(outcome.payload)
            return body

        bodies = await asyncio.to_thread(lambda: [guarded(prompt) for prompt in half.prompts])
        return await self._described(half, [reply.text for reply in await self._model.answers(bodies)])

    async def _described(self, half: Half, texts: Sequence[str]) -> Answers:
        if self._twin is not None:
            losses = await self._twin.losses_as_answers(half.prompts, texts, half.twin_tokens)
        else:
            losses = await self._model.losses_alone(texts)
        # Only what is penalised may never be said; under corruption a phrase can be a lucky guess, as the twin's are.
        holds = half.holds if self._penalizes else None
        return await asyncio.to_thread(describe, texts, half.references, half.choices, holds, losses, self.encode)
