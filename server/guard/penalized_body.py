"""A request body with a penalty in it, and without the fields that would work around the penalty."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from lethe.corruption.decoding.spec import XARGS_KEY, Penalty, encode_penalty
from lethe.server.guard.extra_output import answer_is_forced, asks_for, without_prompt_logprobs
from lethe.server.guard.plan import Context, Plan
from lethe.server.policy.schema import Policy
from lethe.server.requests.fields import Endpoint


class CannotPenalize(Exception):
    """The penalty would not hold for this request; the message says why."""


def with_penalty(plan: Plan, penalty: Penalty, context: Context) -> Plan:
    """The plan with `penalty` in its body, in place of the one it may have. Raises CannotPenalize."""
    needs = replace(plan.needs, indexes=frozenset(penalty.verbatim))
    if penalty.verbatim and not context.capabilities.covers(plan.model, needs):
        raise CannotPenalize("vLLM does not have the index of a protected text (LETHE_VERBATIM)")
    resources = context.resources
    body = penalized_body(context.request.endpoint, plan.body, penalty, raw_logprobs=resources.raw_logprobs)
    return replace(plan, body=body, needs=needs, penalty=penalty)


def penalized_body(endpoint: Endpoint, body: dict[str, Any], penalty: Penalty, *, raw_logprobs: bool) -> dict[str, Any]:
    """The body with the penalty in `vllm_xargs`. Raises CannotPenalize where it would not hold.

    raw_logprobs: vLLM reports log-probabilities from before the penalty (its default). The alternative tokens would
    then reveal what is forbidden, so that only the chosen token's own log-probability is left.
    """
    if body.get("use_beam_search"):
        raise CannotPenalize("beam search does not run logits processors")
    if not penalty.phrases and not penalty.soft and not penalty.verbatim:
        raise CannotPenalize("the nearest forget items hold nothing that could be forbidden")
    if endpoint == "count_tokens":
        return body  # vLLM only counts the tokens of the prompt; no answer is generated
    body = _without_candidates(endpoint, body) if raw_logprobs else body
    body = without_prompt_logprobs(body)
    if answer_is_forced(body):
        return body  # a ban would leave vLLM without a token, which it answers with an error
    return {
        **body,
        "vllm_xargs": {**(body.get("vllm_xargs") or {}), XARGS_KEY: encode_penalty(penalty)},
    }


def _without_candidates(endpoint: Endpoint, body: dict[str, Any]) -> dict[str, Any]:
    # vLLM reads 5.0 and true as numbers too, so that any value but null and false is set to 0 candidates.
    count_field = "logprobs" if endpoint == "completions" else "top_logprobs"
    fields = {key: value for key, value in body.items() if key != "logprob_token_ids"}
    if asks_for(fields.get(count_field)):
        fields[count_field] = 0
    return fields


def copy_limits_of(policies: Iterable[Policy], indexes: Mapping[str, str]) -> dict[str, int]:
    """Name of a verbatim index → the most tokens in a row that may be copied, by the strictest of `policies`.

    indexes: by artifact name; an artifact without documents has none.
    """
    limits: dict[str, int] = {}
    for policy in policies:
        name, limit = indexes.get(policy.artifact), policy.penalize.verbatim
        if name is not None and limit:
            limits[name] = min(limit, limits.get(name, limit))
    return limits
