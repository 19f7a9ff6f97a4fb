"""What becomes of a request that is refused: where only earlier turns are flagged, it may be penalized instead."""

from __future__ import annotations

from dataclasses import replace

from lethe.server.guard.history import flagged_for_earlier_turns_only
from lethe.server.guard.penalize import penalize
from lethe.server.guard.plan import Context, Plan, StepFailed, refusal_of
from lethe.server.policy.verdict import Finding, penalizing_history

NOTE = "only earlier turns are flagged"


def penalize_history(plan: Plan, context: Context) -> tuple[Plan, Context]:
    """The plan and context with which the steps go on where all refusing policies let earlier turns pass.

    Raises Refused where the current turn is flagged, and where the penalty would not hold.
    """
    refusing = context.verdict.acting
    refusal = refusal_of(refusing[0].policy)
    verdict, needs = penalizing_history(context.verdict), replace(plan.needs, plugin=True)
    is_possible = (
        verdict is not None
        and context.resources.upstream_is_vllm
        and context.capabilities.covers(context.request.model, needs)
        and not any(_lacks_copy_limit(finding, context) for finding in refusing)
    )
    if not is_possible or not flagged_for_earlier_turns_only(context.request, refusing, context.judge_texts):
        raise refusal
    assert verdict is not None
    plan = replace(plan, needs=needs, to_penalize=refusing, note=NOTE)
    try:
        penalize(plan, context)
    except StepFailed:
        # Not left to `on_failure`, which may let the request pass: the policy says `refuse`.
        raise refusal from None
    return plan, replace(context, verdict=verdict)


def _lacks_copy_limit(finding: Finding, context: Context) -> bool:
    """Whether a document was flagged that a copy of the answer could repeat, since vLLM has no index of it."""
    policy = finding.policy
    items = context.resources.artifacts[policy.artifact].items
    nearest = {index for window in finding.score.window_items for index in window}
    return policy.artifact not in context.resources.indexes and any(not items[index].answer for index in nearest)
