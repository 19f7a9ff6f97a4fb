"""How much CPU time does penalising one request (GUARD) take, from the verdict to the last of 128 tokens?

    python -m benchmarks.guard_request [--quick]

The gateway finds the phrases of the nearest forget items and similar words, and writes the argument; vLLM's frontend
checks it; its engine builds the phrase trie and the constant masks, then makes 128 steps with one guarded row of
128,000 logits each. Items are TOFU's forget10; the answer consists of their words, so that matches begin and end all
the time. Every round uses other items; in "without caches" the artifact's words are read again too. Printed is the CPU
time of one thread in ms, by stage and in total, with CPU tensors. GUARD as published (arXiv:2505.13312) takes 25.5 s
per query.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate

from benchmarks.measuring import BenchmarkResult, Claim, alternating, timed_call
from benchmarks.penalty_step import made_up_pieces, processor
from lethe.classifier.artifact import Artifact, ForgetItem
from lethe.corruption.decoding.spec import XARGS_KEY
from lethe.corruption.decoding.token_text import TokenVocabulary
from lethe.corruption.phrases.normalize import fold
from lethe.server.guard.forget_answers import ArtifactWords
from lethe.server.guard.parsed_request import ParsedRequest
from lethe.server.guard.penalize import requested_penalty
from lethe.server.guard.penalized_body import penalized_body
from lethe.server.policy.schema import Policy
from lethe.server.policy.verdict import Finding
from lethe.server.requests.extract import extract_texts

TITLE = "Cost of a penalised request (GUARD)"
FORGET = Path(__file__).parent.parent / "evaluation" / "data" / "tofu" / "forget10.json"
# Tokens of the vocabulary and of the answer; forget items that a request is near to.
VOCABULARY = 128_000
TOKENS = 128
NEAR_ITEMS = 8
# Words that a fit knows, and the width of their vectors.
WORDS, WIDTH = 20_000, 384
TARGET_MS = 30.0
POLICY = Policy.model_validate({"name": "p", "artifact": "a", "action": "penalize"})


def forget_items() -> list[ForgetItem]:
    rows = [json.loads(line) for line in FORGET.read_text(encoding="utf-8").splitlines()]
    return [ForgetItem(row["question"], row["answer"], "") for row in rows]


def fake_artifact(items: list[ForgetItem], rng: random.Random) -> Artifact:
    """Return the parts of an artifact that a rewrite reads, with random vectors; half of the words are rare."""
    answer_words = sorted({word for item in items for word in fold(item.answer).split()})
    words = (answer_words + [f"w{i}" for i in range(WORDS)])[:WORDS]
    vectors = np.random.default_rng(0).standard_normal((WORDS, WIDTH)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    counts = np.array([rng.choice((0, 7)) for _ in words], dtype=np.int32)
    artifact = SimpleNamespace(items=items, words=words, word_counts=counts, word_vectors=vectors.astype(np.float16))
    return cast(Artifact, artifact)


def fake_vocabulary(items: list[ForgetItem], rng: random.Random) -> TokenVocabulary:
    """Return a vocabulary of random tokens and the items' words."""
    words = [f" {word}".encode() for word in dict.fromkeys(w for item in items for w in item.answer.split())]
    tokens = made_up_pieces(VOCABULARY - len(words), rng)
    return TokenVocabulary(list(dict.fromkeys([*tokens[:-1], *words, tokens[-1]])))


class PenalizedRequests:
    """Penalised requests, one per call, each with other forget items and a new guard."""

    def __init__(self, items: list[ForgetItem], rng: random.Random) -> None:
        self.rng, self.items = rng, items
        self.artifact = fake_artifact(items, rng)
        self.words = {"a": ArtifactWords(self.artifact)}
        self.vocabulary = fake_vocabulary(items, rng)
        self.token_ids = {piece: token for token, piece in enumerate(self.vocabulary.pieces)}
        self.logits = torch.randn(1, len(self.vocabulary))

    def without_caches(self) -> Mapping[str, tuple[float, str]]:
        """The same, reading the artifact's words again."""
        self.words = {"a": ArtifactWords(self.artifact)}
        return self()

    def __call__(self) -> Mapping[str, tuple[float, str]]:
        near_items = self.rng.sample(range(len(self.items)), NEAR_ITEMS)
        question = self.items[near_items[0]].prompt
        body = {"messages": [{"role": "user", "content": question}]}
        judged = ParsedRequest("chat", body, extract_texts("chat", body, decode=None))
        finding = Finding(POLICY, cast(Any, SimpleNamespace(window_items=(tuple(near_items),))), 0.5)
        tokens = self.answer_tokens(near_items)
        plugin = processor(self.vocabulary)
        taken_ms: dict[str, float] = {}

        def run_stage(name: str, work: Callable[[], Any]) -> Any:
            result, taken_ms[name] = timed_call(work)
            return result

        penalty = run_stage(
            "gateway: phrases",
            lambda: requested_penalty([finding], {"a": self.artifact}, self.words, {}, judged.user_question()),
        )
        sent = run_stage("gateway: argument", lambda: penalized_body("chat", body, penalty, raw_logprobs=False))
        params = SamplingParams(extra_args={XARGS_KEY: sent["vllm_xargs"][XARGS_KEY]})
        run_stage("frontend: check", lambda: plugin.validate_params(params))
        output: list[int] = []
        run_stage(
            "engine: preparation",
            lambda: plugin.update_state(BatchUpdate(1, [], [(0, params, [1], output)], [])),
        )
        run_stage("engine: 128 steps", partial(self.decode, plugin, output, tokens))
        return {name: (value, "ms") for name, value in {**taken_ms, "all": sum(taken_ms.values())}.items()}

    def answer_tokens(self, near_items: list[int]) -> list[int]:
        """Return 128 tokens: random words of the items' answers; words that are no token byte by byte."""
        words = [word for i in near_items for word in self.items[i].answer.split()]
        ids: list[int] = []
        for word in self.rng.choices(words, k=TOKENS):
            token = self.token_ids.get(f" {word}".encode())
            ids += [token] if token is not None else [self.token_ids[bytes([byte])] for byte in f" {word}".encode()]
        return ids[:TOKENS]

    def decode(self, plugin: Any, output: list[int], tokens: list[int]) -> None:
        for token in tokens:
            plugin.update_state(None)
            plugin.apply(self.logits)
            output.append(token)


def measure(quick: bool) -> BenchmarkResult:
    torch.set_num_threads(1)
    logging.getLogger("lethe.corruption.vllm_plugin").setLevel(logging.CRITICAL)  # it warns that there is no tokenizer
    request = PenalizedRequests(forget_items(), random.Random(5))
    measured = alternating({"one request": request, "without caches": request.without_caches}, 20 if quick else 100)
    claims = [
        Claim.level(f"{name}: a whole request takes at most 30 ms", one["all"], at_most=TARGET_MS)
        for name, one in measured.items()
    ]
    return BenchmarkResult(
        [series for one in measured.values() for series in one.values()],
        claims,
        facts={"vocabulary": len(request.vocabulary), "tokens": TOKENS},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    from benchmarks.bench import print_result

    print_result(TITLE, measure(args.quick))


if __name__ == "__main__":
    main()
