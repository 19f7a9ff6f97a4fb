"""Try candidate policies on the live model: guard prompts with the gateway's own code, measure the answers.

Decoding is greedy, so the same candidate always gets the same answers. Retained prompts are not tried, because the
guard doesn't change them.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from lethe.classifier.artifact import Artifact
from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.judge import Judge
from lethe.corruption.phrases.extraction import forbidden_phrases
from lethe.corruption.phrases.normalize import fold
from lethe.corruption.phrases.trie import START_STATE, PhraseTrie
from lethe.evaluation.tuning.answer_similarity import (
    SIMILARITIES,
    dont_know_sentences,
    other_references,
    surrogate_similarities,
)
from lethe.evaluation.tuning.multiple_choice import MultipleChoice, find_choices
from lethe.evaluation.tuning.objective import AnswerMeasures, ObjectiveTarget, measure_answers, shuffle_words
from lethe.evaluation.tuning.split import TuningItem
from lethe.evaluation.tuning.vllm_model import TuneError, VllmModel
from lethe.server.guard.forget_answers import ArtifactWords
from lethe.server.guard.guard import Guard
from lethe.server.observability.metrics import Metrics
from lethe.server.policy.schema import Policy
from lethe.server.upstream.capabilities import Capabilities

if TYPE_CHECKING:
    from lethe.corruption.embeddings.corruptor import Corruptor

# Substitutes for the answers of a model that never knew, used without a retain twin: key → description.
SURROGATES = {
    "dont-know": "a hundred sentences that say I don't know",
    "other-answers": "the answers of forget items about something else",
}


class PromptHalf:
    """The prompts of one half, their references, and the target of the answers to them."""

    def __init__(self, items: Sequence[TuningItem], words: ArtifactWords) -> None:
        self.items = items
        self.prompts = [item.prompt for item in items]
        self.references = [item.reference for item in items]
        self.choices: list[MultipleChoice | None] = [find_choices(item.prompt, item.reference) for item in items]
        self.contains_forbidden = [_forbidden_phrase_test(item, words) for item in items]
        # Set once, by CandidateEvaluator.target.
        self.target: ObjectiveTarget | None = None
        self.twin_tokens: list[int] = []


def _forbidden_phrase_test(item: TuningItem, words: ArtifactWords) -> Callable[[str], bool]:
    """Return a function that tells whether a text contains a phrase that the item's reference forbids."""
    trie = PhraseTrie(forbidden_phrases([item.reference], item.prompt, count=words.count))
    return lambda text: trie.forbids(START_STATE, fold(f"{text} "))


class CandidateEvaluator:
    """Measures candidates of one policy on its artifact and a live model, with or without a retain twin."""

    def __init__(
        self,
        policy: Policy,
        threshold: float,
        artifact: Artifact,
        encoder: Encoder,
        model: VllmModel,
        *,
        corruptor: Corruptor | None = None,
        indexes: Mapping[str, str] | None = None,
        twin: VllmModel | None = None,
        max_prompt_chars: int = 400_000,
        surrogate: str = "dont-know",
        seed: int = 0,
    ) -> None:
        """corruptor: only with parity of the model server. indexes: verbatim indexes that vLLM has loaded, by
        artifact. surrogate: a key of SURROGATES, used without a twin. seed: the seed of the surrogate's random choices.
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
        self._words = ArtifactWords(artifact)
        self._capabilities = Capabilities.of_any_model(parity=corruptor is not None, indexes=self._indexes.values())
        self._policy_guard = self._guard(policy)
        self._penalizes = policy.action in ("penalize", "both")

    def _guard(self, policy: Policy) -> Guard:
        # A policy in shadow mode can be tuned too, and under any name of the model.
        policy = policy.model_copy(update={"mode": "enforce", "models": None})
        return Guard(
            {policy.name: (policy, self._threshold)},
            {policy.artifact: self._artifact},
            self._judge,
            Metrics(),
            max_prompt_chars=self._max_prompt_chars,
            corruptor=self._corruptor,
            indexes=self._indexes,
        )

    def flags(self, item: TuningItem) -> bool:
        """Whether the policy flags an item's prompt. That depends on the threshold, not on the tuned parameters."""
        judged = self._policy_guard.parse("chat", self._model.chat_body(item.prompt))
        return self._policy_guard.judge(judged, self._policy_guard.policies).action != "pass"

    def prepare_half(self, items: Sequence[TuningItem]) -> PromptHalf:
        """Return the prompts with all that is needed to measure answers to them."""
        return PromptHalf(items, self._words)

    async def target(self, half: PromptHalf) -> ObjectiveTarget:
        """Measure the unguarded model's answers, and the retain twin's or its surrogate; once for each half."""
        if half.target is not None:
            return half.target
        unguarded = [
            r.text for r in await self._model.answers([self._model.chat_body(prompt) for prompt in half.prompts])
        ]
        guess = np.array([1 / len(c.options) if c else math.nan for c in half.choices])
        twin, surrogate = None, np.zeros((len(unguarded), 0, len(SIMILARITIES)))
        garbled_loss = [math.nan] * len(unguarded)
        if self._twin is not None:
            replies = await self._twin.answers([self._twin.chat_body(prompt) for prompt in half.prompts])
            half.twin_tokens = [reply.prompt_tokens for reply in replies]
            twin = await self._measure(half, [reply.text for reply in replies])
        else:
            garbled_loss = await self._model.losses_alone([shuffle_words(text, self._seed) for text in unguarded])
            surrogate = await asyncio.to_thread(
                surrogate_similarities, half.references, self._surrogate_answers(half), self.encode
            )
        measures = await self._measure(half, unguarded)
        half.target = ObjectiveTarget(measures, twin, surrogate, guess, np.array(garbled_loss))
        return half.target

    def _surrogate_answers(self, half: PromptHalf) -> list[list[str]]:
        if self._surrogate == "other-answers":
            return other_references(half.references, [item.group for item in half.items], self._seed)
        return [dont_know_sentences()] * len(half.items)

    async def answers(self, policy: Policy, half: PromptHalf) -> AnswerMeasures:
        """Measure the model's answers under a candidate policy. Raises TuneError if the policy can't be applied."""
        await self.target(half)
        guard = self._guard(policy)

        def guarded_body(prompt: str) -> dict[str, Any]:
            outcome = guard.decide(guard.parse("chat", self._model.chat_body(prompt)), self._capabilities)
            if outcome.payload is None:
                reason = outcome.note or outcome.action
                raise TuneError(f"policy {policy.name!r}: can't guard a prompt: {reason}")
            body: dict[str, Any] = orjson.loads(outcome.payload)
            return body

        bodies = await asyncio.to_thread(lambda: [guarded_body(prompt) for prompt in half.prompts])
        return await self._measure(half, [reply.text for reply in await self._model.answers(bodies)])

    async def _measure(self, half: PromptHalf, texts: Sequence[str]) -> AnswerMeasures:
        if self._twin is not None:
            losses = await self._twin.losses_as_answers(half.prompts, texts, half.twin_tokens)
        else:
            losses = await self._model.losses_alone(texts)
        # Only penalties forbid phrases strictly; under corruption a phrase can be a correct guess, as with the twin.
        contains_forbidden = half.contains_forbidden if self._penalizes else None
        return await asyncio.to_thread(
            measure_answers, texts, half.references, half.choices, contains_forbidden, losses, self.encode
        )
