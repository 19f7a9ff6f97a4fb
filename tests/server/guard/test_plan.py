"""The loop over a plan's steps: what a failed step leads to, and what is counted."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lethe.server.errors import Refused
from lethe.server.guard.parsed_request import ParsedRequest
from lethe.server.guard.plan import Context, ModelPolicies, Plan, Step, StepFailed, run_steps
from lethe.server.observability.metrics import Metrics
from lethe.server.policy.verdict import Finding, Verdict
from lethe.server.upstream.capabilities import Capabilities
from tests.server.fakes import policy, score

BODY = {"model": "m"}


def context() -> Context:
    request = ParsedRequest("chat", BODY, [])
    resources = cast(Any, SimpleNamespace())
    return Context(
        request, Verdict("pass", (), ()), resources, lambda model: ModelPolicies(), Capabilities(), lambda texts: {}
    )


def does(action: str) -> Step:
    return lambda plan, context: replace(plan, actions=plan.actions_with(action))


def fails(failure: StepFailed) -> Step:
    def step(plan: Plan, context: Context) -> Plan:
        raise failure

    return step


def failures(metrics: Metrics, **labels: str) -> float:
    return metrics.registry.get_sample_value("lethe_guard_failures_total", labels) or 0.0


def test_steps_run_in_order_and_the_plan_names_the_action() -> None:
    plan = run_steps(Plan(BODY), [does("corrupt"), does("penalize")], context(), Metrics())
    assert plan.actions == ("corrupt", "penalize") and plan.action == "both"
    assert Plan(BODY).action == "pass" and Plan(BODY, actions=("route", "verbatim")).action == "route"


@pytest.mark.parametrize("stage", ["corrupt", "penalize", "verbatim", "watch"])
def test_a_failed_step_refuses_if_the_policy_says_so(stage: str) -> None:
    metrics = Metrics()
    with pytest.raises(Refused):
        run_steps(Plan(BODY), [fails(StepFailed(stage, [policy()], "broken"))], context(), metrics)
    assert failures(metrics, policy="p", stage=stage, outcome="refuse") == 1


def test_one_refusing_policy_is_enough() -> None:
    passing, refusing = policy(name="a", on_failure="pass"), policy(name="b", on_failure="refuse")
    metrics = Metrics()
    with pytest.raises(Refused):
        run_steps(Plan(BODY), [fails(StepFailed("corrupt", [passing, refusing], "x"))], context(), metrics)
    assert failures(metrics, policy="a", stage="corrupt", outcome="pass") == 1


def test_other_steps_follow_a_failure_that_may_pass() -> None:
    failure = StepFailed("corrupt", [policy(on_failure="pass")], "no parity")
    plan = run_steps(Plan(BODY), [fails(failure), does("penalize")], context(), Metrics())
    assert (plan.actions, plan.note) == (("penalize",), "no parity")


def test_a_later_failure_keeps_the_first_note_of_the_filter_stages() -> None:
    passing = policy(on_failure="pass")
    steps = [fails(StepFailed("corrupt", [passing], "first")), fails(StepFailed("watch", [passing], "second"))]
    assert run_steps(Plan(BODY), steps, context(), Metrics()).note == "first"
    assert run_steps(Plan(BODY), steps[1:], context(), Metrics()).note == "second"


def test_policies_in_shadow_decide_nothing() -> None:
    metrics = Metrics()
    shadow = policy(mode="shadow", on_failure="refuse")
    plan = run_steps(Plan(BODY), [fails(StepFailed("watch", [shadow], "broken"))], context(), metrics)
    assert plan.note == "broken" and failures(metrics, policy="p", stage="watch", outcome="refuse") == 0


def test_unsupported_findings_are_penalized_from_where_the_step_stopped() -> None:
    finding = Finding(policy(action="corrupt"), score(1.0), 0.5)
    reached = Plan({"model": "m", "corrupted": True}, actions=("corrupt",))
    metrics = Metrics()
    failure = StepFailed.unsupported([finding], "a tool name was flagged", reached=reached)
    plan = run_steps(Plan(BODY), [fails(failure)], context(), metrics)
    assert plan == replace(reached, to_penalize=(finding,), note="a tool name was flagged")
    assert failures(metrics, policy="p", stage="unsupported", outcome="penalize") == 1


def test_unsupported_findings_are_refused_if_the_policy_says_so() -> None:
    finding = Finding(policy(action="corrupt", on_unsupported="refuse"), score(1.0), 0.5)
    metrics = Metrics()
    with pytest.raises(Refused):
        run_steps(Plan(BODY), [fails(StepFailed.unsupported([finding], "x"))], context(), metrics)
    assert failures(metrics, policy="p", stage="unsupported", outcome="refuse") == 1
