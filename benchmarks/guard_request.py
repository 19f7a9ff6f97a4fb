"""What penalising one request costs in all: from the verdict to the last of 128 tokens.

    python -m benchmarks.guard_request [--quick]

In the gateway: the phrases of the nearest forget items, similar words, the argument. In vLLM's frontend: the
argument is checked. In its engine: the automaton and the masks that always hold, then 128 steps, one guarded row
of 128,000 logits in each. Items are TOFU's forget10, the answer is made of their words, so that matches open and
close all the time; every round asks for other items. In "all anew" nothing is known from the rounds before either.
CPU time of one thread, CPU tensors. GUARD as published (arXiv:2505.13312) takes 25.5 s a query.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate

from benchmarks.measuring import Answer, Claim, alternating
from benchmarks.penalty_step import made_up_pieces, processor
from lethe.classifier.artifact import Artifact, ForgetItem
from lethe.corruption.decoding.spec import XARGS_KEY
from lethe.corruption.decoding.token_text import TokenVocabulary
from lethe.corruption.phrases.normalize import fold
from lethe.server.guard import rewrite
from lethe.server.policy.schema import Policy
from lethe.server.policy.verdict import Finding
from lethe.server.requests import extract as fields

TITLE = "What a penalised request costs in all (GUARD)"
FORGET = Path(__file__).parent.parent / "evaluation" / "data" / "tofu" / "forget10.json"
VOCABULARY = 128_000
TOKENS = 128
NEAR = 8
# A fit knows about so many words, each with a vector of its encoder's width.
WORDS, WIDTH = 20_000, 384
TARGET_MS = 30.0
POLICY = Policy.model_validate({"name": "p", "artifact": "a", "action": "penalize"})


def facts() -> list[ForgetItem]:
    rows = [json.loads(line) for line in FORGET.read_text(encoding="utf-8").splitlines()]
    return [ForgetItem(row["question"], row["answer"], "") for row in rows]


def stand_in(items: list[ForgetItem], rng: random.Random) -> Artifact:
    """What a rewrite reads of an artifact, with made-up vectors; half of the answers' words are rare."""
    own = sorted({word for item in items for word in fold(item.answer).split()})
    words = (own + [f"w{i}" for i in range(WORDS)])[:WORDS]
    vectors = np.random.default_rng(0).standard_normal((WORDS, WIDTH)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    counts = np.array([rng.choice((0, 7)) for _ in words], dtype=np.int32)
    made = SimpleNamespace(items=items, words=words, word_counts=counts, word_vectors=vectors.astype(np.float16))
    return cast(Artifact, made)


def vocabulary(items: list[ForgetItem], rng: random.Random) -> TokenVocabulary:
    """Made-up tokens and the items' words, as a real vocabulary has those of a language."""
    own = [f" {word}".encode() for word in dict.fromkeys(w for item in items for w in item.answer.split())]
    made = made_up_pieces(VOCABULARY - len(own), rng)
    return TokenVocabulary(list(dict.fromkeys([*made[:-1], *own, made[-1]])))


class Request:
    """One request after another: other items each time, no guard kept."""

    def __init__(self, items: list[ForgetItem], rng: random.Random) -> None:
        self.rng, self.items = rng, items
        self.artifact = stand_in(items, rng)
        self.words = {"a": rewrite.Words(self.artifact)}
        self.vocabulary = vocabulary(items, rng)
        self.place = {piece: token for token, piece in enumerate(self.vocabulary.pieces)}
        self.logits = torch.randn(1, len(self.vocabulary))

    def anew(self) -> Mapping[str, tuple[float, str]]:
        self.words = {"a": rewrite.Words(self.artifact)}
        return self()

    def __call__(self) -> Mapping[str, tuple[float, str]]:
        asked = self.rng.sample(range(len(self.items)), NEAR)
        question = self.items[asked[0]].prompt
        body = {"messages": [{"role": "user", "content": question}]}
        judged = rewrite.Judged("chat", body, fields.extract("chat", body, decode=None))
        finding = Finding(POLICY, cast(Any, SimpleNamespace(asked=(tuple(asked),))), 0.5)
        tokens = self.answer(asked)
        plugin = processor(self.vocabulary)
        taken: dict[str, float] = {}

        def timed(name: str, work: Callable[[], Any]) -> Any:
            begin = time.thread_time()
            done = work()
            taken[name] = (time.thread_time() - begin) * 1e3
            return done

        penalty = timed(
            "gateway: phrases",
            lambda: rewrite.penalty(judged, [finding], {"a": self.artifact}, self.words, {}),
        )
        sent = timed("gateway: argument", lambda: rewrite.penalize("chat", body, penalty, raw_logprobs=False))
        params = SamplingParams(extra_args={XARGS_KEY: sent["vllm_xargs"][XARGS_KEY]})
        timed("frontend: check", lambda: plugin.validate_params(params))
        output: list[int] = []
        timed(
            "engine: preparation",
            lambda: plugin.update_state(BatchUpdate(1, [], [(0, params, [1], output)], [])),
        )
        timed("engine: 128 steps", partial(self.decode, plugin, output, tokens))
        return {name: (value, "ms") for name, value in {**taken, "all": sum(taken.values())}.items()}

    def answer(self, asked: list[int]) -> list[int]:
        """128 tokens: words of the items' answers, shuffled; those that are no token, letter by letter."""
        said = [word for i in asked for word in self.items[i].answer.split()]
        ids: list[int] = []
        for word in self.rng.choices(said, k=TOKENS):
            whole = self.place.get(f" {word}".encode())
            ids += [whole] if whole is not None else [self.place[bytes([byte])] for byte in f" {word}".encode()]
        return ids[:TOKENS]

    def decode(self, plugin: Any, output: list[int], tokens: list[int]) -> None:
        for token in tokens:
            plugin.update_state(None)
            plugin.apply(self.logits)
            output.append(token)


def measure(quick: bool) -> Answer:
    torch.set_num_threads(1)
    logging.getLogger("lethe.corruption.vllm_plugin").setLevel(logging.CRITICAL)  # it misses a tokenizer
    request = Request(facts(), random.Random(5))
    found = alternating({"one request": request, "all anew": request.anew}, 20 if quick else 100)
    claims = [
        Claim.level(f"{name}: a whole request takes at most 30 ms", one["all"], at_most=TARGET_MS)
        for name, one in found.items()
    ]
    return Answer(
        [series for one in found.values() for series in one.values()],
        claims,
        facts={"vocabulary": len(request.vocabulary), "tokens": TOKENS},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    from benchmarks.bench import print_answer

    print_answer(TITLE, measure(args.quick))


if __name__ == "__main__":
    main()
