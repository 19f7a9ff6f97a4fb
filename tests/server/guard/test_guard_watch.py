"""What is watched for in an answer: which policies, which phrases, and what a failure leads to."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lethe.classifier.artifact import ForgetItem
from lethe.server.guard.guard import Guard
from tests.server.fakes import KEYWORD, KeywordJudge, make_guard, policy
from tests.server.guard.test_guard import QUESTION, artifact

STREAM = {"stream": True, "stream_options": {"include_usage": True}}


def guard(*policies: Any, **given: Any) -> Guard:
    return make_guard(*policies, artifacts={"a": artifact()}, **given)


def examined(made: Guard, text: str = QUESTION, **body: Any) -> Any:
    return made.examine(made.read("chat", {"model": "m", "messages": [{"role": "user", "content": text}], **body}))


def left(outcome: Any, text: str) -> str:
    return str(outcome.watch.watch.watcher().whole(text))


def test_a_flagged_request_goes_up_as_it_came_and_its_answer_is_watched() -> None:
    outcome = examined(guard(policy(action="watch")))
    assert (outcome.action, outcome.payload, outcome.refusal) == ("watch", None, None)
    assert left(outcome, "It was Ozren Dalmatin.") == "It was "
    assert [p.name for p in outcome.watch.policies] == ["p"]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"action": "watch"}, "hello"),
        ({"action": "watch", "mode": "shadow"}, QUESTION),
        ({"action": "penalize"}, QUESTION),
    ],
)
def test_nothing_is_watched_for_otherwise(given: Any, text: str) -> None:
    outcome = examined(guard(policy(**given)), text)
    assert outcome.watch is None


def test_what_the_user_says_may_be_said() -> None:
    outcome = examined(guard(policy(action="watch")), f"{QUESTION} Ozren Dalmatin?")
    assert left(outcome, "It was Ozren Dalmatin. ") == "It was Ozren Dalmatin. "
    assert left(outcome, "It was in 1931, ") == "It was in "
    always = examined(guard(policy(action="watch", watch={"when": "always"})), "Who is Ozren Dalmatin?")
    assert left(always, "It was Ozren Dalmatin. ") == "It was Ozren Dalmatin. "


def test_the_watch_stands_beside_any_action() -> None:
    outcome = examined(guard(policy(action="penalize", watch={"on_hit": "replace", "replacement": "someone"})))
    assert outcome.action == "penalize" and b"lethe" in outcome.payload
    assert left(outcome, "It was Ozren Dalmatin.") == "It was someone someone."


def test_always_watches_every_answer_for_every_phrase() -> None:
    outcome = examined(guard(policy(action="refuse", watch={"when": "always"})), "hello")
    assert (outcome.action, outcome.payload) == ("pass", None)
    assert left(outcome, "Ozren Dalmatin") == ""


def test_always_holds_when_judging_failed_and_the_request_may_pass() -> None:
    always = policy(action="watch", on_failure="pass", watch={"when": "always"})
    made = guard(always, judge=KeywordJudge(error=RuntimeError("broken")))
    payload, _, watch = made.unjudged(made.read("chat", {"messages": [{"role": "user", "content": "hello"}]}))
    assert payload is None and watch is not None
    flagged = guard(policy(action="watch", on_failure="pass"))
    assert flagged.unjudged(flagged.read("chat", {"messages": [{"role": "user", "content": "hello"}]}))[2] is None


def test_each_policy_watches_for_itself_and_the_stricter_action_wins() -> None:
    policies = [policy(name="p", action="watch"), policy(name="q", action="penalize"), policy(name="r", action="watch")]
    outcome = examined(guard(*policies))
    assert outcome.action == "penalize"
    assert [p.name for p in outcome.watch.policies] == ["p", "r"]


def test_the_model_that_a_request_is_routed_to_is_watched() -> None:
    routing = policy(name="p", action="route", route={"model": "twin"}, models=["m"])
    watching = policy(name="q", action="watch", models=["twin"], watch={"when": "always"})
    outcome = examined(guard(routing, watching))
    assert outcome.action == "route" and [p.name for p in outcome.watch.policies] == ["q"]


@pytest.mark.parametrize(("on_failure", "refused"), [("refuse", True), ("pass", False)])
def test_items_that_hold_no_phrase_are_the_policys_to_decide(on_failure: str, refused: bool) -> None:
    import dataclasses

    bare = dataclasses.replace(artifact(), items=(ForgetItem("Is it so?", "…", ""),))
    made = make_guard(policy(action="watch", on_failure=on_failure), artifacts={"a": bare})
    outcome = examined(made)
    assert (outcome.refusal is not None) is refused and outcome.watch is None


def test_a_stream_that_asks_for_usage_is_asked_for_it_in_every_chunk() -> None:
    outcome = examined(guard(policy(action="watch")), **STREAM)
    sent = json.loads(outcome.payload)
    assert sent["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert outcome.watch.added
    given = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    for more in ({}, {"stream": True}, {"stream_options": STREAM["stream_options"]}, given):
        outcome = examined(guard(policy(action="watch")), **more)
        assert outcome.payload is None and not outcome.watch.added


def test_a_server_that_is_no_vllm_is_asked_for_nothing_of_its_own() -> None:
    outcome = examined(guard(policy(action="watch"), vllm=False), **STREAM)
    assert outcome.payload is None and outcome.watch is not None


def test_phrases_are_kept_while_the_artifact_is_the_same() -> None:
    always = policy(action="watch", watch={"when": "always"})
    first = guard(always)
    again = make_guard(always, artifacts=first.artifacts, before=first)
    other = guard(always, before=first)
    assert again._phrases["a"] is first._phrases["a"] is not other._phrases["a"]
    assert KEYWORD not in left(examined(again, "hello"), "x")
