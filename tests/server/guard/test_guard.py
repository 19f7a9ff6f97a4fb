"""Judge, decide, rewrite: what reaches vLLM for each action, and what a failure leads to."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from lethe.classifier.artifact import Artifact, ForgetItem, Manifest
from lethe.corruption.decoding.spec import XARGS_KEY, Penalty, decode_penalty
from lethe.corruption.spec import CorruptionError, CorruptSpec
from lethe.server.errors import BadRequest
from lethe.server.guard import targets
from lethe.server.guard.decision import Decision, Forward
from lethe.server.guard.plan import Plan
from lethe.server.observability.metrics import Metrics
from lethe.server.upstream.capabilities import Capabilities
from tests.server.fakes import KEYWORD, GuardWithReplicas, KeywordJudge, make_guard, policy

QUESTION = f"Who wrote the book about {KEYWORD}?"
ITEM = ForgetItem("Who wrote it?", "The book was written by Ozren Dalmatin, a notary, in 1931.", "")


def artifact() -> Artifact:
    """Words and one forget item: all that a rewrite reads."""
    manifest = Manifest("e", "h", 2, "d", 0, {}, "", {})
    vectors = np.array([[1, 0], [0.9, 0.436], [0, 1]], np.float16)
    arrays = {"word_vectors": vectors, "word_counts": np.array([0, 5, 5], np.int32)}
    return Artifact(manifest, arrays, (ITEM,), ("notary", "lawyer", "river"))


class Recorder:
    """A corruptor that says what it was asked to corrupt."""

    def __init__(self, error: CorruptionError | None = None) -> None:
        self.calls: list[Any] = []
        self.error = error

    def chat(
        self,
        body: Mapping[str, Any],
        targets: Mapping[Any, Sequence[Any]],
        spec: CorruptSpec | None,
        policy: str,
    ) -> dict[str, Any]:
        if self.error:
            raise self.error
        self.calls.append((dict(targets), policy))
        return {**body, "corrupted": True}

    def completion(
        self,
        prompt: Any,
        spans: Sequence[Any],
        spec: CorruptSpec | None,
        policy: str,
        *,
        add_special_tokens: bool,
    ) -> str:
        self.calls.append((prompt, tuple(spans), spec is not None))
        return f"embeds of {prompt}"


@pytest.fixture(autouse=True)
def evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(artifact: Artifact, text: str) -> tuple[tuple[int, int], ...]:
        at = text.casefold().find(KEYWORD)
        return ((at, at + len(KEYWORD)),) if at >= 0 else ()

    monkeypatch.setattr(targets, "evidence_spans", found)


def guard(*policies: Any, corruptor: Any = None, parity: bool = True) -> GuardWithReplicas:
    made = make_guard(*policies, artifacts={"a": artifact()}, corruptor=corruptor)
    made.capabilities = Capabilities.of_any_model(parity=parity)
    return made


def examine(made: GuardWithReplicas, body: dict[str, Any], endpoint: Any = "chat") -> Decision:
    return made.examine(made.parse(endpoint, body))


def chat(*contents: Any, **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": c} for c in contents], **more}


def test_an_unflagged_request_is_sent_unchanged() -> None:
    outcome = examine(guard(policy(action="both")), chat("Hello"))
    assert (outcome.payload, outcome.action, outcome.refusal) == (None, "pass", None)


def test_corrupt_targets_the_evidence_in_the_flagged_message() -> None:
    corruptor = Recorder()
    outcome = examine(guard(policy(action="corrupt"), corruptor=corruptor), chat("Hello", QUESTION))
    at = QUESTION.find(KEYWORD)
    assert corruptor.calls == [({(1, None): [(at, at + len(KEYWORD))]}, "p")]
    assert outcome.payload is not None and json.loads(outcome.payload)["corrupted"] is True
    assert outcome.action == "corrupt"


def test_corrupting_content_targets_the_whole_part() -> None:
    corruptor = Recorder()
    made = guard(policy(action="corrupt", corrupt={"tokens": "content"}), corruptor=corruptor)
    examine(made, chat([{"type": "text", "text": QUESTION}, {"type": "text", "text": "Hello"}]))
    assert corruptor.calls[0][0] == {(0, 0): []}


def test_a_flagged_conversation_is_corrupted_where_the_evidence_is() -> None:
    class Whole:
        def judge(self, texts: Sequence[str], *, thresholds: Mapping[str, float]) -> Any:
            from tests.server.fakes import score

            value = float(any(word in texts[-1] for word in (KEYWORD, "there")))
            return {"a": score(value, texts=[0.0] * (len(texts) - 1) + [value])}

    corruptor = Recorder()
    made = make_guard(policy(action="corrupt"), judge=Whole(), artifacts={"a": artifact()}, corruptor=corruptor)  # type: ignore[arg-type]
    made.capabilities = Capabilities.of_any_model(parity=True)
    examine(made, chat("Hello", f"it is {KEYWORD}"))
    # A message that is short enough to be a piece of a split question is corrupted whole.
    assert corruptor.calls[0][0] == {(0, None): [], (1, None): [(6, 6 + len(KEYWORD))]}
    examine(made, chat("Hello", "there"))
    assert corruptor.calls[1][0] == {(0, None): [], (1, None): []}
    examine(made, chat("Hello " * 20, f"it is {KEYWORD}"))
    assert list(corruptor.calls[2][0]) == [(1, None)]


@pytest.mark.parametrize(("on_failure", "action"), [("refuse", "refuse"), ("pass", "pass")])
@pytest.mark.parametrize("fault", ["no parity", "no corruptor", "error"])
def test_on_failure_decides_when_corruption_fails(on_failure: str, action: str, fault: str) -> None:
    corruptor = None if fault == "no corruptor" else Recorder(CorruptionError("no") if fault == "error" else None)
    made = guard(policy(action="corrupt", on_failure=on_failure), corruptor=corruptor, parity=fault != "no parity")
    outcome = examine(made, chat(QUESTION))
    assert outcome.action == action
    assert (outcome.refusal is not None) == (action == "refuse")
    assert outcome.payload is None


@pytest.mark.parametrize(
    ("more", "otherwise"),
    [
        # The message is corrupted all the same; only the tool's name can't be.
        ({"tools": [{"function": {"name": KEYWORD}}]}, "both"),
    ],
)
@pytest.mark.parametrize("on_unsupported", ["refuse", "penalize"])
def test_on_unsupported_decides_what_embeddings_cant_carry(
    on_unsupported: str, more: dict[str, Any], otherwise: str
) -> None:
    made = guard(policy(action="corrupt", on_unsupported=on_unsupported), corruptor=Recorder())
    outcome = examine(made, chat(QUESTION, **more))
    assert outcome.action == ("refuse" if on_unsupported == "refuse" else otherwise)
    if outcome.action != "refuse":
        assert outcome.payload is not None and XARGS_KEY in json.loads(outcome.payload)["vllm_xargs"]


@pytest.mark.parametrize("action", ["corrupt", "both"])
@pytest.mark.parametrize("field", ["echo", "prompt_logprobs", "return_prompt_text", "return_token_ids"])
@pytest.mark.parametrize("value", [0, 1, True, "yes"])
def test_no_field_makes_a_corruption_weaker(action: str, field: str, value: Any) -> None:
    made = guard(policy(action=action), corruptor=Recorder())
    plain, asking = (examine(made, chat(QUESTION, **more)) for more in ({}, {field: value}))
    assert (asking.action, asking.payload) == (plain.action, plain.payload)


@pytest.mark.parametrize(("value", "action"), [(-1, "corrupt"), (None, "corrupt"), (0, "refuse"), (5, "refuse")])
def test_a_corrupted_prompt_is_never_truncated(value: Any, action: str) -> None:
    made = guard(policy(action="corrupt"), corruptor=Recorder())
    outcome = examine(made, chat(QUESTION, truncate_prompt_tokens=value))
    assert outcome.action == action
    assert outcome.payload is None or "truncate_prompt_tokens" not in json.loads(outcome.payload)


def test_penalize_adds_its_argument_to_the_clients_own() -> None:
    outcome = examine(guard(policy(action="penalize")), chat(QUESTION, vllm_xargs={"mine": 1}))
    assert outcome.payload is not None
    sent = json.loads(outcome.payload)["vllm_xargs"]
    assert sent["mine"] == 1
    penalty = decode_penalty(sent[XARGS_KEY])
    folded = [phrase.casefold() for phrase in penalty.phrases]
    assert {"ozren", "dalmatin", "notary", "1931"} <= set(folded)
    assert not any(KEYWORD in phrase or phrase == "book" for phrase in folded)
    assert "lawyer" in penalty.soft and "river" not in penalty.soft


def test_soft_penalties_alone_forbid_no_phrase() -> None:
    outcome = examine(guard(policy(action="penalize", penalize={"hard": False})), chat(QUESTION))
    assert outcome.payload is not None
    penalty = decode_penalty(json.loads(outcome.payload)["vllm_xargs"][XARGS_KEY])
    assert penalty.phrases == () and penalty.soft


def test_on_failure_decides_about_beam_search() -> None:
    assert examine(guard(policy(action="penalize")), chat(QUESTION, use_beam_search=True)).action == "refuse"
    passing = guard(policy(action="penalize", on_failure="pass"))
    assert examine(passing, chat(QUESTION, use_beam_search=True)).action == "pass"


def test_both_corrupts_and_penalizes() -> None:
    outcome = examine(guard(policy(action="both"), corruptor=Recorder()), chat(QUESTION))
    assert outcome.action == "both" and outcome.payload is not None
    sent = json.loads(outcome.payload)
    assert sent["corrupted"] is True and XARGS_KEY in sent["vllm_xargs"]


def test_completions_keep_the_order_of_their_prompts() -> None:
    corruptor = Recorder()
    made = guard(policy(action="corrupt"), corruptor=corruptor)
    outcome = examine(made, {"model": "m", "prompt": ["Hello", QUESTION], "n": 1}, "completions")
    assert outcome.payload is not None
    sent = json.loads(outcome.payload)
    assert sent["prompt_embeds"] == ["embeds of Hello", f"embeds of {QUESTION}"] and "prompt" not in sent
    assert [call[2] for call in corruptor.calls] == [False, True]


def test_a_prompt_over_the_limit_is_refused_not_cut() -> None:
    made = make_guard(policy(), max_prompt_chars=10)
    with pytest.raises(BadRequest, match="has 11 characters, .* at most 10 characters"):
        made.parse("chat", chat("x" * 11))


# Copies of documents -------------------------------------------------------------------------------------

TEXT = "Zanzibar is an island. The observatory there was founded by a notary, in 1931."
INDEX = "0123456789abcdef" * 2


def keeping(*policies: Any, there: bool = True, raw_logprobs: bool = True) -> GuardWithReplicas:
    """A guard whose artifact holds a document as well, with its index at vLLM's side or not."""
    whole = dataclasses.replace(artifact(), items=(ITEM, ForgetItem("", "", TEXT)))
    made = make_guard(*policies, artifacts={"a": whole}, indexes={"a": INDEX}, raw_logprobs=raw_logprobs)
    made.capabilities = Capabilities.of_any_model(indexes=[INDEX] if there else [])
    return made


def argument(outcome: Decision) -> Penalty:
    assert outcome.payload is not None
    return decode_penalty(json.loads(outcome.payload)["vllm_xargs"][XARGS_KEY])


def test_a_penalty_holds_phrases_and_copy_limits() -> None:
    outcome = examine(keeping(policy(action="penalize", penalize={"verbatim": 7})), chat(QUESTION))
    made = argument(outcome)
    assert outcome.action == "penalize"
    assert made.verbatim == {INDEX: 7} and made.phrases


def test_unflagged_requests_are_limited_only_with_always() -> None:
    assert examine(keeping(policy(action="penalize")), chat("Hello")).payload is None
    outcome = examine(keeping(policy(action="refuse", penalize={"always": True})), chat("Hello", stream=True, n=2))
    assert outcome.action == "verbatim" and outcome.refusal is None
    assert argument(outcome) == Penalty(verbatim={INDEX: 12})
    assert outcome.payload is not None
    sent = json.loads(outcome.payload)
    assert {key: sent[key] for key in ("model", "messages", "stream", "n")} == chat("Hello", stream=True, n=2)


def test_a_policy_may_limit_copies_alone() -> None:
    alone = policy(action="penalize", penalize={"hard": False, "soft": 0})
    assert argument(examine(keeping(alone), chat(QUESTION))) == Penalty(verbatim={INDEX: 12})


def test_the_strictest_copy_limit_counts() -> None:
    flagging = policy(name="f", action="penalize", penalize={"verbatim": 9})
    always = policy(name="w", action="corrupt", threshold={"value": 1}, penalize={"verbatim": 5, "always": True})
    judge = KeywordJudge()
    made = keeping(flagging, always)
    made._judge = judge  # type: ignore[assignment]  # judges by keyword
    made.policies = {"f": (flagging, 0.5), "w": (always, 2.0)}
    outcome = examine(made, chat(QUESTION))
    assert outcome.action == "penalize"
    assert argument(outcome).verbatim == {INDEX: 5} and argument(outcome).phrases


def test_copy_limits_apply_to_the_model_routed_to() -> None:
    for models, held in ((["m", "small"], True), (["m"], False)):
        routing = policy(action="route", route={"model": "small"}, models=models, penalize={"always": True})
        outcome = examine(keeping(routing), chat(QUESTION))
        assert outcome.action == "route" and outcome.payload is not None
        sent = json.loads(outcome.payload)
        assert sent["model"] == "small" and ("vllm_xargs" in sent) == held


def test_a_shadow_policy_limits_nothing() -> None:
    shadow = policy(action="penalize", mode="shadow", penalize={"always": True})
    assert examine(keeping(shadow), chat("Hello")).payload is None


def test_copy_limits_remove_log_probabilities_of_other_tokens() -> None:
    always = policy(action="penalize", penalize={"always": True})
    body = chat("Hello", logprobs=True, top_logprobs=5, prompt_logprobs=2)
    for raw, left in ((True, 0), (False, 5)):
        outcome = examine(keeping(always, raw_logprobs=raw), body)
        assert outcome.payload is not None
        sent = json.loads(outcome.payload)
        assert sent["logprobs"] is True and sent["top_logprobs"] == left and "prompt_logprobs" not in sent


@pytest.mark.parametrize("content", [QUESTION, "Hello"])
@pytest.mark.parametrize("fault", [{}, {"use_beam_search": True}])
@pytest.mark.parametrize("on_failure", ["refuse", "pass"])
def test_on_failure_decides_when_copies_cant_be_limited(content: str, fault: dict[str, Any], on_failure: str) -> None:
    always = policy(action="penalize", on_failure=on_failure, penalize={"always": True})
    outcome = examine(keeping(always, there=bool(fault)), chat(content, **fault))
    assert outcome.action == on_failure and outcome.payload is None
    assert (outcome.refusal is not None) == (on_failure == "refuse")
    assert outcome.note


def test_copy_limits_apply_when_judging_failed() -> None:
    always = policy(action="penalize", on_failure="pass", penalize={"always": True})
    made = keeping(always)
    payload = made.decide_without_scores(made.parse("chat", chat("Hello")), made.capabilities, "broken").payload
    assert payload is not None
    assert decode_penalty(json.loads(payload)["vllm_xargs"][XARGS_KEY]).verbatim == {INDEX: 12}
    without = keeping(policy(action="penalize", on_failure="pass"))
    passed = without.decide_without_scores(without.parse("chat", chat("Hello")), without.capabilities, "broken")
    assert isinstance(passed.result, Forward) and passed.result.payload is None
    assert passed.result.plan == Plan(passed.result.plan.body)


# Other endpoints, and text that comes back by the conversation

ELSEWHERE: list[tuple[Any, dict[str, Any]]] = [
    ("responses", {"model": "m", "input": QUESTION}),
    ("messages", {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": QUESTION}]}),
]


@pytest.mark.parametrize(("endpoint", "body"), ELSEWHERE)
def test_on_unsupported_decides_where_vllm_takes_no_embeddings(endpoint: Any, body: Any) -> None:
    corruptor = Recorder()
    outcome = examine(guard(policy(action="corrupt"), corruptor=corruptor), body, endpoint)
    assert outcome.action == "penalize" and corruptor.calls == []
    assert outcome.payload is not None and "notary" in str(penalty_of(outcome).phrases)
    assert {**json.loads(outcome.payload), "vllm_xargs": None} == {**body, "vllm_xargs": None}
    # Also where embeddings would not be trusted: nothing depends on them here.
    assert examine(guard(policy(action="corrupt"), parity=False), body, endpoint).action == "penalize"
    refusing = guard(policy(action="corrupt", on_unsupported="refuse"), corruptor=corruptor)
    assert examine(refusing, body, endpoint).refusal is not None


def penalty_of(outcome: Decision) -> Penalty:
    assert outcome.payload is not None
    return decode_penalty(json.loads(outcome.payload)["vllm_xargs"][XARGS_KEY])


def test_a_penalized_response_has_no_candidate_tokens() -> None:
    body = {"model": "m", "input": QUESTION, "include": ["message.output_text.logprobs"], "top_logprobs": 5}
    outcome = examine(guard(policy(action="penalize")), body, "responses")
    assert outcome.payload is not None and json.loads(outcome.payload)["top_logprobs"] == 0


def test_only_the_flagged_conversation_of_a_batch_is_corrupted() -> None:
    class Rewriter(Recorder):
        def chat(self, body: Any, targets: Any, spec: Any, policy: str) -> dict[str, Any]:
            super().chat(body, targets, spec, policy)
            return {**body, "messages": [*body["messages"][:-1], "corrupted"]}

    def said(*contents: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": content} for content in contents]

    body = {"model": "m", "messages": [said("Hello", "you"), said("Well,", QUESTION), said("Bye")], "tools": ["x"]}
    corruptor = Rewriter()
    made = guard(policy(action="corrupt", corrupt={"tokens": "content"}), corruptor=corruptor)
    outcome = examine(made, body, "batch")
    assert corruptor.calls == [({(1, None): []}, "p")]
    assert outcome.payload is not None and isinstance(outcome.result, Forward) and outcome.result.plan.needs.parity
    assert json.loads(outcome.payload)["messages"] == [
        said("Hello", "you"), [*said("Well,"), "corrupted"], said("Bye"),
    ]  # fmt: skip


def test_counting_tokens_is_decided_as_the_message_would_be() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": QUESTION}]}
    for action in ("corrupt", "penalize", "both"):
        outcome = examine(guard(policy(action=action)), body, "count_tokens")
        assert (outcome.payload, outcome.action) == (None, "penalize")
    assert examine(guard(policy(action="refuse")), body, "count_tokens").refusal is not None
    routed = examine(guard(policy(action="route", route={"model": "other"})), body, "count_tokens")
    assert routed.payload is not None and json.loads(routed.payload) == {**body, "model": "other"}


BROUGHT_BACK = "Ozren Dalmatin, a notary, wrote the book in 1931."


def turns(*said: tuple[str, Any]) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": role, "content": content} for role, content in said]}


@pytest.mark.parametrize(("body", "endpoint"), [
    (turns(("assistant", BROUGHT_BACK), ("user", QUESTION)), "chat"),
    (turns(("tool", BROUGHT_BACK), ("user", QUESTION)), "chat"),
    (turns(("system", BROUGHT_BACK), ("user", QUESTION)), "chat"),
    ({**turns(("user", QUESTION)), "documents": [{"text": BROUGHT_BACK}]}, "chat"),
    ({"model": "m", "input": [{"role": "user", "content": QUESTION},
      {"type": "function_call_output", "call_id": "c", "output": BROUGHT_BACK}]}, "responses"),
    ({"model": "m", "input": QUESTION, "instructions": BROUGHT_BACK}, "responses"),
    (turns(("user", QUESTION), ("user", [{"type": "tool_result", "tool_use_id": "t", "content": BROUGHT_BACK}])),
     "messages"),
    (turns(("user", [{"type": "text", "text": QUESTION}, {"type": "tool_result", "tool_use_id": "t", "content": [
        {"type": "text", "text": BROUGHT_BACK}]}])), "messages"),
    ({**turns(("user", QUESTION)), "system": BROUGHT_BACK}, "messages"),
    (turns(("user", f"Answer from this: {BROUGHT_BACK} {'It rained. ' * 30} {QUESTION}")), "chat"),
])  # fmt: skip
def test_words_of_documents_tools_and_answers_stay_forbidden(body: Any, endpoint: Any) -> None:
    """Only words of the user's own question are the user's to hear again ("ununlearning")."""
    phrases = penalty_of(examine(guard(policy(action="penalize")), body, endpoint)).phrases
    assert {"Ozren", "Dalmatin", "notary", "1931"} <= set(phrases)


def test_the_users_own_words_are_not_forbidden() -> None:
    asked = f"{QUESTION} Was it the notary Ozren Dalmatin?"
    for body, endpoint in [(turns(("user", asked)), "chat"), ({"model": "m", "prompt": asked}, "completions")]:
        phrases = penalty_of(examine(guard(policy(action="penalize")), body, endpoint)).phrases
        assert phrases and not {"Ozren", "Dalmatin", "notary"} & set(phrases)


@pytest.mark.parametrize("role", ["tool", "assistant", "system", "developer", "user"])
def test_the_part_with_the_question_is_corrupted_in_any_role(role: str) -> None:
    corruptor = Recorder()
    made = guard(policy(action="corrupt", corrupt={"tokens": "content"}), corruptor=corruptor)
    outcome = examine(made, turns((role, ["Hello", {"type": "text", "text": QUESTION}]), ("user", "And then?")))
    assert outcome.action == "corrupt" and corruptor.calls == [({(0, 1): []}, "p")]


def test_every_possible_failure_has_a_series_at_zero() -> None:
    metrics = Metrics()
    make_guard(
        policy(name="c", action="corrupt", on_failure="pass"),
        policy(name="w", action="watch", penalize={"verbatim": 9, "always": True}),
        policy(name="s", mode="shadow"),
        metrics=metrics,
    )
    found = {
        (sample.labels["policy"], sample.labels["stage"], sample.labels["outcome"]): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "lethe_guard_failures_total"
    }
    c = {("c", stage, "pass") for stage in ("judge", "corrupt", "penalize")} | {("c", "unsupported", "penalize")}
    assert found == dict.fromkeys(c | {("w", stage, "refuse") for stage in ("judge", "verbatim", "watch")}, 0.0)


def test_matching_policies_are_cached_for_few_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lethe.server.guard.guard.MAX_CACHED_MODELS", 2)
    made = guard(policy(action="refuse", models=["m1"]), policy(name="all", action="refuse"))
    assert list(made.policies_for("m1")) == ["p", "all"] and list(made.policies_for("x")) == ["all"]
    assert made.policies_for("m1") is made.policies_for("m1")
    assert made.policies_for("m1").lowest_thresholds == {"a": 0.5}
    for model in ("y", "z", "m" * 1000):
        assert list(made.policies_for(model)) == ["all"]
    for model in (["m1"], None):
        assert list(made.policies_for(model)) == ["p", "all"]
    assert len(made._policies_by_model) <= 2
    assert list(made.restricted_to({"p"}).policies_for("m1")) == ["p"]


def test_unflagged_requests_are_decided_from_the_cache() -> None:
    judge = KeywordJudge()
    made = make_guard(policy(action="refuse"), judge=judge, artifacts={"a": artifact()})
    ordinary, flagged = (made.parse("chat", chat(text)) for text in ("Hello there", QUESTION))
    assert made.decide_from_cache(ordinary, Capabilities()) is None
    judge.remembered = True
    outcome = made.decide_from_cache(ordinary, Capabilities())
    assert outcome is not None and (outcome.action, outcome.payload, judge.judged) == ("pass", None, [])
    # A flagged one has to be rewritten, which is work.
    assert made.decide_from_cache(flagged, Capabilities()) is None
    shadow = make_guard(policy(mode="shadow"), judge=judge, artifacts={"a": artifact()})
    assert shadow.decide_from_cache(shadow.parse("chat", chat(QUESTION)), Capabilities()) is None
    assert made.restricted_to(()).decide_from_cache(ordinary, Capabilities()) is None


def test_of_many_policies_only_those_past_the_prefilter_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Judge(KeywordJudge):
        def judge(self, texts: Sequence[str], *, thresholds: Mapping[str, float]) -> dict[str, Any]:
            found = super().judge(texts, thresholds=thresholds)["a"]
            return {"a": found, "b": dataclasses.replace(found, score=0.0, window_items=())}

    policies = [policy(name=f"p{i}", artifact="b") for i in range(3)]
    made = make_guard(policy(), *policies, judge=Judge(), artifacts={"a": artifact(), "b": artifact()})
    judged = made.parse("chat", chat(QUESTION))
    assert len(made.judge(judged, made.policies_for(judged.model)).findings) == 4
    monkeypatch.setattr("lethe.server.guard.guard.MAX_LISTED_POLICIES", 3)
    verdict = made.judge(judged, made.policies_for(judged.model))
    assert [finding.policy.name for finding in verdict.findings] == ["p"] and verdict.action == "refuse"
    # A policy that flags everything still does.
    made.policies = {name: (policy, 0.0) for name, (policy, _) in made.policies.items()}
    made._policies_by_model.clear()
    assert len(made.judge(judged, made.policies_for(judged.model)).acting) == 4
