"""What flagged earlier turns lead to under `refuse`: a penalty, and a refusal wherever that would be weaker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lethe.classifier.judge import Score
from lethe.corruption.decoding.spec import XARGS_KEY
from lethe.server.guard.history import earlier_turns
from lethe.server.guard.parsed_request import ParsedRequest
from lethe.server.requests.extract import extract_texts
from lethe.server.upstream.capabilities import Capabilities
from tests.server.fakes import KEYWORD, GuardWithReplicas, KeywordJudge, make_guard, policy, score
from tests.server.guard.test_guard import artifact

ASKED = f"Who wrote the book about {KEYWORD}?"
PLAIN = "Thank you. What is the capital of France?"


def guard(*policies: Any, plugin: bool = True, **more: Any) -> GuardWithReplicas:
    made = make_guard(*(policies or (policy(),)), artifacts={"a": artifact()}, **more)
    made.capabilities = Capabilities.of_any_model(plugin=plugin)
    return made


def chat(*turns: str | tuple[str, Any], **more: Any) -> dict[str, Any]:
    """A conversation; a text alone is of the user and the assistant, in turn."""
    roles = ("user", "assistant")
    pairs = [turn if isinstance(turn, tuple) else (roles[at % 2], turn) for at, turn in enumerate(turns)]
    return {"model": "m", "messages": [{"role": role, "content": content} for role, content in pairs], **more}


def action(made: GuardWithReplicas, body: dict[str, Any], endpoint: Any = "chat") -> str:
    decision = made.examine(made.parse(endpoint, body))
    assert (decision.action == "refuse") is (decision.refusal is not None)
    if decision.action == "penalize":
        assert decision.payload is not None and XARGS_KEY.encode() in decision.payload
    return decision.action


TOOL_TURN = [("assistant", "Let me look."), ("tool", "It rained.")]
CASES: list[tuple[str, tuple[Any, ...]]] = [
    ("refuse", (ASKED,)),
    ("refuse", (PLAIN, "Paris.", ASKED)),
    ("penalize", (ASKED, "No.", PLAIN)),
    ("penalize", (PLAIN, f"A book about {KEYWORD}.", PLAIN)),
    # The question is still being answered: what tools say since belongs to its turn.
    ("refuse", (("user", ASKED), *TOOL_TURN)),
    ("refuse", (("user", PLAIN), ("assistant", "Let me look."), ("tool", ASKED))),
    ("penalize", (("user", ASKED), *TOOL_TURN, ("assistant", "Rain."), ("user", PLAIN))),
    # Several user messages in a row are one turn.
    ("refuse", (("user", ASKED), ("user", "Please answer."))),
    # Instructions are part of every turn.
    ("refuse", (("system", ASKED), ("user", PLAIN), ("assistant", "Paris."), ("user", PLAIN))),
    ("refuse", (ASKED, "No.", ASKED)),
]


@pytest.mark.parametrize(("expected", "turns"), CASES)
def test_only_flagged_earlier_turns_are_penalized(expected: str, turns: tuple[Any, ...]) -> None:
    assert action(guard(), chat(*turns)) == expected
    assert action(guard(policy(history="refuse")), chat(*turns)) == "refuse"


def test_every_api_has_earlier_turns() -> None:
    messages = chat(ASKED, "No.", PLAIN)["messages"]
    assert action(guard(), {"model": "m", "max_tokens": 9, "messages": messages}, "messages") == "penalize"
    assert action(guard(), {"model": "m", "input": messages}, "responses") == "penalize"
    assert action(guard(), {"model": "m", "messages": [messages, messages]}, "batch") == "penalize"
    current = chat(ASKED)["messages"]
    assert action(guard(), {"model": "m", "messages": [messages, current]}, "batch") == "refuse"
    assert action(guard(), {"model": "m", "prompt": [ASKED, PLAIN]}, "completions") == "refuse"
    tools = [{"type": "function", "function": {"name": "f", "description": ASKED}}]
    assert action(guard(), chat(ASKED, "No.", PLAIN, tools=tools)) == "refuse"


def test_where_the_penalty_would_not_hold_the_request_is_refused() -> None:
    body = chat(ASKED, "No.", PLAIN)
    assert action(guard(plugin=False), body) == "refuse"
    assert action(guard(upstream_is_vllm=False), body) == "refuse"
    for on_failure in ("refuse", "pass"):
        assert action(guard(policy(on_failure=on_failure)), {**body, "use_beam_search": True}) == "refuse"
    other = policy(name="strict", history="refuse")
    assert action(guard(policy(), other), body) == "refuse"
    assert action(guard(policy(mode="shadow"), policy(name="q", action="penalize")), body) == "penalize"


class TwoWords:
    """Flags a text that has both halves of a question."""

    def judge(self, texts: Sequence[str], *, thresholds: Mapping[str, float]) -> dict[str, Score]:
        scores = [float("alpha" in text and "omega" in text) for text in texts]
        return {"a": score(max(scores, default=0.0), texts=scores)}


def test_a_question_split_over_earlier_and_current_turns_is_refused() -> None:
    made = guard(judge=TwoWords())
    assert action(made, chat("Tell me of alpha.", "Which?", "Of omega.")) == "refuse"
    # Also beside an earlier turn that is flagged by itself.
    assert action(made, chat("alpha omega", "No.", "Tell me of alpha.", "Which?", "Of omega.")) == "refuse"
    assert action(made, chat("Tell me of alpha.", "Which?", "Of omega.", "No.", PLAIN)) == "penalize"


ROLES = st.sampled_from(["system", "user", "assistant", "tool"])
TURNS = st.lists(st.tuples(ROLES, st.sampled_from([ASKED, PLAIN, ""])), min_size=1, max_size=8)


@settings(max_examples=150, deadline=None)
@given(TURNS)
def test_a_flagged_current_turn_is_always_refused(turns: list[tuple[str, str]]) -> None:
    body = chat(*turns)
    request = ParsedRequest("chat", body, extract_texts("chat", body))
    earlier = earlier_turns(request)
    flagged = {i for i, piece in enumerate(request.pieces) if KEYWORD in piece.text}
    expected = "refuse" if flagged - earlier else "penalize" if flagged else "pass"
    assert action(guard(judge=KeywordJudge()), body) == expected
    # The last message of the user, and all that is no turn, is never an earlier turn.
    users = [i for i, piece in enumerate(request.pieces) if piece.role == "user"]
    assert not users or users[-1] not in earlier
    assert not any(request.pieces[i].role == "system" for i in earlier)
