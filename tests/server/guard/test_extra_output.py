"""A flagged request ranks no guesses: the right one and a wrong one lead to the same request for vLLM."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lethe.corruption.decoding.spec import XARGS_KEY, decode_penalty
from lethe.server.guard.extra_output import answer_is_forced, one_choice, texts_required_by_schemas, without_ranking
from tests.server.fakes import GuardWithReplicas, make_guard, policy
from tests.server.guard.test_guard import QUESTION, artifact

SECRET, GUESS = "Ozren Dalmatin", "Milan Horvat"


def constraints(text: str) -> list[dict[str, Any]]:
    """Every way to spell a text as a constraint on the answer."""
    inner = {"type": "string", "pattern": text}
    schema = {"type": "object", "properties": {"name": inner}, "required": ["name"], "examples": [text]}
    return [
        {"structured_outputs": {"regex": text}},
        {"structured_outputs": {"regex": f"({text}|nobody)"}},
        {"structured_outputs": {"grammar": f'root ::= "{text}"'}},
        {"structured_outputs": {"structural_tag": json.dumps({"begin": text})}},
        {"structured_outputs": {"json": schema}},
        {"structured_outputs": {"json": json.dumps(schema)}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}},
        {"response_format": {"type": "structural_tag", "structures": [{"begin": text}], "triggers": [text]}},
        {"bad_words": [text]},
        {"logit_bias": {str(len(text)): 100}},
        {"allowed_token_ids": [len(text)]},
    ]


@pytest.fixture
def penalizing() -> GuardWithReplicas:
    return make_guard(policy(action="penalize"), artifacts={"a": artifact()})


def sent(guard: GuardWithReplicas, more: dict[str, Any], endpoint: Any = "chat") -> dict[str, Any]:
    messages = [{"role": "user", "content": QUESTION}]
    body = {"model": "m", **more} | ({"prompt": QUESTION} if endpoint == "completions" else {"messages": messages})
    decision = guard.examine(guard.parse(endpoint, body))
    assert decision.action == "penalize" and decision.payload is not None
    result: dict[str, Any] = json.loads(decision.payload)
    return result


@pytest.mark.parametrize("index", range(len(constraints(""))))
@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_right_and_wrong_guesses_send_the_same(penalizing: GuardWithReplicas, index: int, endpoint: str) -> None:
    asking = {"logprobs": 5} if endpoint == "completions" else {"logprobs": True, "top_logprobs": 5}
    right, wrong = (sent(penalizing, {**constraints(text)[index], **asking}, endpoint) for text in (SECRET, GUESS))
    assert right == wrong
    assert not right.get("logprobs") and "top_logprobs" not in right


@given(st.lists(st.text(), min_size=1, unique=True), st.randoms(use_true_random=False))
def test_one_choice_depends_on_the_list_alone(choices: list[str], draw: Any) -> None:
    shuffled = draw.sample(choices, len(choices))
    assert one_choice(choices) == one_choice(shuffled) in choices


def test_choices_become_one_whatever_is_forbidden(penalizing: GuardWithReplicas) -> None:
    for other in ("nobody", "Anna Kurz", "x"):
        for text in (SECRET, GUESS):
            body = sent(penalizing, {"structured_outputs": {"choice": [text, other]}, "logprobs": True})
            assert body["structured_outputs"] == {"choice": [one_choice([text, other])]}
            assert body["logprobs"] is False and "vllm_xargs" not in body and answer_is_forced(body)


def test_a_request_without_constraints_is_unchanged() -> None:
    body = {"messages": [], "logprobs": True, "top_logprobs": 3, "response_format": {"type": "json_object"}}
    assert without_ranking("chat", body) is body
    assert without_ranking("chat", {"logit_bias": None}) == {"logit_bias": None}


def test_a_schema_keeps_its_structure_on_every_endpoint() -> None:
    inner = {"type": "string", "pattern": SECRET, "enum": ["b", "a"]}
    schema = {"type": "json_schema", "name": "a", "schema": {"type": "object", "properties": {"pattern": inner}}}
    made = without_ranking("responses", {"text": {"format": schema, "verbosity": "low"}, "include": ["x"]})
    safe = {
        **schema,
        "schema": {"type": "object", "properties": {"pattern": {"type": "string", "enum": [one_choice(["a", "b"])]}}},
    }
    assert made["text"] == {"format": safe, "verbosity": "low"} and made["include"] == ["x"]


def test_a_bias_that_only_forbids_a_few_tokens_stays() -> None:
    for bias, stays in (
        ({"1": -100, "2": 0}, True),
        ({"1": 1}, False),
        (dict.fromkeys(map(str, range(301)), -1), False),
    ):
        made = without_ranking("chat", {"logit_bias": bias, "logprobs": True})
        assert ("logit_bias" in made, made["logprobs"]) == (stays, stays)


def test_a_text_that_the_schema_spells_is_not_forbidden(penalizing: GuardWithReplicas) -> None:
    for text in (SECRET, GUESS):
        schema = {"type": "object", "properties": {"name": {"enum": [text, "nobody"]}}}
        body = sent(penalizing, {"structured_outputs": {"json": schema}})
        assert body["structured_outputs"]["json"]["properties"]["name"] == {"enum": [one_choice([text, "nobody"])]}
        assert texts_required_by_schemas(body) == [one_choice([text, "nobody"])]
        penalty = decode_penalty(body["vllm_xargs"][XARGS_KEY])
        assert not any(phrase.casefold() in texts_required_by_schemas(body)[0].casefold() for phrase in penalty.phrases)
