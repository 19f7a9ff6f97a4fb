"""What is judged is what is corrupted: nothing that stays readable of a flagged request is flagged."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lethe.classifier import artifact_io
from lethe.classifier.encoder.load import load_encoder
from lethe.classifier.judge import Judge, threshold
from lethe.corruption.spec import CorruptSpec
from lethe.evaluation.demo.demo_artifact import ARTIFACT, SHIPPED_ARTIFACTS
from lethe.server.observability.metrics import Metrics
from lethe.server.upstream.capabilities import Capabilities
from tests.server.fakes import GuardWithReplicas, policy

SPANS = Mapping[Any, Sequence[tuple[int, int]]]
NAMES = (
    "Ada Quill, Boris Lane, Chiara Monti, Dov Stern, Edna Mills, Farid Aziz, Greta Holm, Hugo Paz, Ines Rocha, "
    "Jan Kos, Kaya Demir, Lars Bakke, Mina Sato, Nils Berg, Olga Petrova, Pia Lund, Quentin Roy, Rosa Vidal, Tara Singh"
).split(", ")


class LastTargets:
    """A corruptor that keeps what it was asked to corrupt."""

    spans: SPANS = {}

    def chat(self, body: Mapping[str, Any], targets: SPANS, spec: CorruptSpec, policy: str) -> dict[str, Any]:
        self.spans = dict(targets)
        return {**body, "corrupted": True}


@cache
def demo() -> tuple[GuardWithReplicas, LastTargets, Judge, float, list[str]]:
    """A guard with the demo's artifact, its corruptor, its judge, its threshold, and the questions to forget."""
    artifact = artifact_io.load_artifact(SHIPPED_ARTIFACTS / ARTIFACT)
    judge, corruptor = Judge({"a": artifact}, load_encoder()), LastTargets()
    level = threshold(artifact, miss_rate=0.005)
    made = GuardWithReplicas(
        {"p": (policy(action="corrupt"), level)},
        {"a": artifact},
        judge,
        Metrics(),
        max_prompt_chars=100_000,
        corruptor=corruptor,  # type: ignore[arg-type]
    )
    made.capabilities = Capabilities.of_any_model(parity=True)
    return made, corruptor, judge, level, [item.prompt for item in artifact.items]


def readable(messages: Sequence[Mapping[str, Any]], spans: SPANS) -> list[str]:
    """What is left of each text part once its spans are corrupted."""
    rest = []
    for number, message in enumerate(messages):
        content = message["content"]
        parts = [(None, content)] if isinstance(content, str) else [(i, part["text"]) for i, part in enumerate(content)]
        for part, text in parts:
            corrupted = spans.get((number, part))
            kept = list(text) if corrupted != [] else []
            for start, end in corrupted or []:
                kept[start:end] = " " * (end - start)
            rest.append("".join(kept))
    return rest


def split(question: str, draw: random.Random) -> list[str]:
    pieces, position = [], 0
    largest = draw.choice([2, 5, 12, 30, 60, 200])
    while position < len(question):
        size = draw.randint(1, largest)
        pieces.append(question[position : position + size])
        position += size
    return pieces


def conversation(question: str, others: Sequence[str], draw: random.Random) -> list[dict[str, Any]]:
    """The question in pieces over parts or messages of some roles, perhaps with other questions around it."""
    pieces = split(question, draw)
    if draw.random() < 0.5:
        asked = [{"role": "user", "content": [{"type": "text", "text": piece} for piece in pieces]}]
    else:
        role = draw.choice(["user", "system", "assistant"])
        asked = [{"role": role, "content": piece} for piece in pieces]
    around = [{"role": "user", "content": other} for other in others]
    place = draw.randint(0, len(around))
    return [*around[:place], *asked, *around[place:]]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False))
def test_what_stays_readable_is_not_flagged(draw: random.Random) -> None:
    made, corruptor, judge, level, questions = demo()
    others = draw.sample([*questions, "I do not know.", "Tell me a joke."], draw.randint(0, 2))
    messages = conversation(draw.choice(questions), others, draw)
    corruptor.spans = {}
    decision = made.examine(made.parse("chat", {"model": "m", "messages": messages}))
    if decision.action == "pass":
        return  # what was not flagged is the detector's matter
    assert decision.action == "corrupt"
    rest = readable(messages, corruptor.spans)
    for separator in ("", "\n"):
        assert judge.judge([separator.join(rest)])["a"].score < level, rest


@pytest.mark.parametrize("count", [40, 80])
def test_other_names_before_the_question_leave_nothing_readable(count: int) -> None:
    made, corruptor, judge, level, questions = demo()
    draw = random.Random(count)
    names = ", ".join(f"{draw.choice(NAMES)} {i}" for i in range(count))
    flagged = 0
    for question in questions[::40]:
        messages = [{"role": "user", "content": f"You know of {names}. {question}"}]
        corruptor.spans = {}
        decision = made.examine(made.parse("chat", {"model": "m", "messages": messages}))
        flagged += decision.action == "corrupt"
        assert decision.action == "pass" or judge.judge(readable(messages, corruptor.spans))["a"].score < level
    assert flagged >= 9


def test_a_question_in_parts_of_three_characters_is_corrupted_whole() -> None:
    made, corruptor, _, _, questions = demo()
    for question in questions[::20]:
        parts = [{"type": "text", "text": question[i : i + 3]} for i in range(0, len(question), 3)]
        messages = [
            {"role": "user", "content": "Who is Nikolai Abilov?"},
            {"role": "assistant", "content": "I do not know."},
            {"role": "user", "content": parts},
        ]
        decision = made.examine(made.parse("chat", {"model": "m", "messages": messages}))
        assert decision.action == "corrupt"
        words = [word for word in question.split() if word[:1].isupper() or any(c.isdigit() for c in word)][1:]
        rest = "".join(readable(messages, corruptor.spans)[2:])
        assert [word for word in words if word in rest] == [], question
