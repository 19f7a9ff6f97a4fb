"""Steps of the output filter: what is removed from the answer while it is relayed (policy key `watch`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from lethe.corruption.phrases.extraction import MAX_CHARACTERS, UserSuppliedText
from lethe.corruption.phrases.phrase_list import ForbiddenPhrases
from lethe.corruption.phrases.stream_filter import FilterRule
from lethe.server.guard.forget_answers import TooManyItems, requested_answers
from lethe.server.guard.plan import Context, Plan, PolicyRule, Step, StepFailed
from lethe.server.policy.schema import Policy
from lethe.server.requests.fields import Endpoint


def output_filter_steps(plan: Plan, context: Context) -> Iterator[Step]:
    """One step for each policy that filters this answer, and a last one that asks for the usage of filtered streams.

    One step a policy, so that a failure of one policy leaves the rules of the others in place.
    """
    requested, sent = context.model_policies(context.request.model), context.model_policies(plan.model)
    policies = {policy.name: policy for policy in (*requested.filtering, *sent.filtering)}
    for policy in policies.values():
        yield partial(_add_rule, policy=policy)
    if policies or plan.filter_rules:
        yield _count_usage


def _add_rule(plan: Plan, context: Context, *, policy: Policy) -> Plan:
    rule = _rule(context, policy)
    return plan if rule is None else replace(plan, filter_rules=(*plan.filter_rules, PolicyRule(policy, rule)))


def _rule(context: Context, policy: Policy) -> FilterRule | None:
    """What a policy removes from this answer; None: nothing. Raises StepFailed (`watch`)."""
    settings = policy.output_filter
    assert settings is not None
    name, question = policy.artifact, context.request.user_question()
    replacement = settings.replacement if settings.on_hit == "replace" else None
    if settings.when == "always":
        phrases = context.resources.all_phrases[name]
        ends = context.request.prompt_ends(phrases.longest)
        return FilterRule(policy.name, phrases, replacement, UserSuppliedText(question), ends)
    findings = (f for f in context.verdict.findings if f.flagged and f.policy.name == policy.name)
    finding = next(findings, None)
    if finding is None:
        return None
    artifact, words = context.resources.artifacts[name], context.resources.words[name]
    try:
        _, requested = requested_answers(
            finding, artifact, words, question, context.request.prompt_ends(MAX_CHARACTERS)
        )
    except TooManyItems as error:
        raise StepFailed("watch", [policy], str(error)) from None
    if not requested and policy.action == "watch":
        raise StepFailed("watch", [policy], "the nearest forget items hold nothing that could be filtered")
    if not requested:
        return None
    phrases = ForbiddenPhrases(requested)
    return FilterRule(policy.name, phrases, replacement, prompt_ends=context.request.prompt_ends(phrases.longest))


def _count_usage(plan: Plan, context: Context) -> Plan:
    """Ask for usage in every chunk where the client asked for usage: a stream that is cut has no last chunk."""
    if not plan.filter_rules or not context.resources.upstream_is_vllm:
        return plan
    body = with_usage_in_every_chunk(context.request.endpoint, plan.body)
    return replace(plan, body=body, usage_added=body is not plan.body)


def with_usage_in_every_chunk(endpoint: Endpoint, body: dict[str, Any]) -> dict[str, Any]:
    """The body with vLLM's option `continuous_usage_stats`; the same object where that changes nothing."""
    options = body.get("stream_options")
    if endpoint not in ("chat", "completions") or not body.get("stream") or not isinstance(options, dict):
        return body
    if not options.get("include_usage") or options.get("continuous_usage_stats"):
        return body
    return {**body, "stream_options": {**options, "continuous_usage_stats": True}}
