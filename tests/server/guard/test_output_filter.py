"""What is watched for in an answer: which policies, which phrases, and what a failure leads to."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lethe.classifier.artifact import ForgetItem
from lethe.corruption.phrases.extraction import forbidden_phrases
from lethe.corruption.phrases.stream_filter import AnswerFilter
from lethe.server.guard.decision import Decision
from lethe.server.guard.plan import Plan
from tests.server.fakes import KEYWORD, GuardWithReplicas, KeywordJudge, make_guard, policy
from tests.server.guard.test_guard import QUESTION, artifact

STREAM = {"stream": True, "stream_options": {"include_usage": True}}


def guard(*policies: Any, **given: Any) -> GuardWithReplicas:
    return make_guard(*policies, artifacts={"a": artifact()}, **given)


def examined(made: GuardWithReplicas, text: str = QUESTION, **body: Any) -> Decision:
    return made.examine(made.parse("chat", {"model": "m", "messages": [{"role": "user", "content": text}], **body}))


def plan(outcome: Decision) -> Plan:
    assert outcome.refusal is None
    return outcome.result.plan  # type: ignore[union-attr]


def left(outcome: Decision, text: str) -> str:
    rules = AnswerFilter(entry.rule for entry in plan(outcome).filter_rules)
    return rules.new_matcher().whole(text)


def filtering(outcome: Decision) -> list[str]:
    return [entry.policy.name for entry in plan(outcome).filter_rules]


def test_watch_sends_the_request_unchanged_and_filters_the_answer() -> None:
    outcome = examined(guard(policy(action="watch")))
    assert (outcome.action, outcome.payload, outcome.refusal) == ("watch", None, None)
    assert left(outcome, "It was Ozren Dalmatin.") == "It was "
    assert filtering(outcome) == ["p"]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"action": "watch"}, "hello"),
        ({"action": "watch", "mode": "shadow"}, QUESTION),
        ({"action": "penalize"}, QUESTION),
    ],
)
def test_other_answers_are_not_filtered(given: Any, text: str) -> None:
    outcome = examined(guard(policy(**given)), text)
    assert filtering(outcome) == []


def test_the_users_own_words_are_not_filtered() -> None:
    outcome = examined(guard(policy(action="watch")), f"{QUESTION} Ozren Dalmatin?")
    assert left(outcome, "It was Ozren Dalmatin. ") == "It was Ozren Dalmatin. "
    assert left(outcome, "It was in 1931, ") == "It was in "
    always = examined(guard(policy(action="watch", watch={"when": "always"})), "Who is Ozren Dalmatin?")
    assert left(always, "It was Ozren Dalmatin. ") == "It was Ozren Dalmatin. "


def test_any_action_can_have_an_output_filter() -> None:
    outcome = examined(guard(policy(action="penalize", watch={"on_hit": "replace", "replacement": "someone"})))
    assert outcome.action == "penalize" and b"lethe" in outcome.payload
    assert left(outcome, "It was Ozren Dalmatin.") == "It was someone someone."


def test_always_filters_every_answer_for_every_phrase() -> None:
    outcome = examined(guard(policy(action="refuse", watch={"when": "always"})), "hello")
    assert (outcome.action, outcome.payload) == ("pass", None)
    assert left(outcome, "Ozren Dalmatin") == ""


def test_the_list_for_every_answer_keeps_the_longer_of_two_phrases() -> None:
    answer = "The author is Zorin Quill, born Zorin Quill Dalmatin."
    kept = forbidden_phrases([answer], "", count=lambda word: 0, keep_redundant=True)
    assert {"Quill", "Zorin Quill", "Zorin Quill Dalmatin"} <= set(kept)
    assert "Zorin Quill Dalmatin" not in forbidden_phrases([answer], "", count=lambda word: 0)


def test_always_filters_when_judging_failed() -> None:
    always = policy(action="watch", on_failure="pass", watch={"when": "always"})
    made = guard(always, judge=KeywordJudge(error=RuntimeError("broken")))
    request = made.parse("chat", {"messages": [{"role": "user", "content": "hello"}]})
    passed = made.decide_without_scores(request, made.capabilities, "broken")
    assert passed.payload is None and filtering(passed) == ["p"]
    flagged = guard(policy(action="watch", on_failure="pass"))
    passed = flagged.decide_without_scores(request, flagged.capabilities, "broken")
    assert filtering(passed) == []


def test_each_policy_filters_and_the_stricter_action_wins() -> None:
    policies = [policy(name="p", action="watch"), policy(name="q", action="penalize"), policy(name="r", action="watch")]
    outcome = examined(guard(*policies))
    assert outcome.action == "penalize"
    assert filtering(outcome) == ["p", "r"]


def test_the_answer_of_the_model_routed_to_is_filtered() -> None:
    routing = policy(name="p", action="route", route={"model": "twin"}, models=["m"])
    watching = policy(name="q", action="watch", models=["twin"], watch={"when": "always"})
    outcome = examined(guard(routing, watching))
    assert outcome.action == "route" and filtering(outcome) == ["q"]


@pytest.mark.parametrize(("on_failure", "refused"), [("refuse", True), ("pass", False)])
def test_on_failure_decides_about_items_without_a_phrase(on_failure: str, refused: bool) -> None:
    import dataclasses

    bare = dataclasses.replace(artifact(), items=(ForgetItem("Is it so?", "…", ""),))
    made = make_guard(policy(action="watch", on_failure=on_failure), artifacts={"a": bare})
    outcome = examined(made)
    assert (outcome.refusal is not None) is refused and (refused or filtering(outcome) == [])


def test_a_filtered_stream_reports_usage_in_every_chunk() -> None:
    outcome = examined(guard(policy(action="watch")), **STREAM)
    sent = json.loads(outcome.payload)
    assert sent["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert plan(outcome).usage_added
    given = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    for more in ({}, {"stream": True}, {"stream_options": STREAM["stream_options"]}, given):
        outcome = examined(guard(policy(action="watch")), **more)
        assert outcome.payload is None and not plan(outcome).usage_added


def test_other_servers_get_no_options_of_vllm() -> None:
    outcome = examined(guard(policy(action="watch"), upstream_is_vllm=False), **STREAM)
    assert outcome.payload is None and filtering(outcome)


def test_a_new_guard_takes_over_phrases_of_unchanged_artifacts() -> None:
    always = policy(action="watch", watch={"when": "always"})
    first = guard(always)
    again = make_guard(always, artifacts=first.artifacts, previous=first)
    other = guard(always, previous=first)
    phrases = [one._resources.all_phrases["a"] for one in (first, again, other)]
    assert phrases[1] is phrases[0] is not phrases[2]
    assert KEYWORD not in left(examined(again, "hello"), "x")
