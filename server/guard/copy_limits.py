"""Step `copy_limits`: answers may copy only short runs of protected documents (`penalize.always`)."""

from __future__ import annotations

from dataclasses import replace

from lethe.server.guard.penalized_body import CannotPenalize, copy_limits_of, with_penalty
from lethe.server.guard.plan import Context, Plan, StepFailed


def copy_limits(plan: Plan, context: Context) -> Plan:
    """Add the limits of the policies that hold for every request of the model, flagged or not.

    Raises StepFailed (`verbatim`).
    """
    policies = context.model_policies(plan.model).copy_limiting
    limits = copy_limits_of(policies, context.resources.indexes)
    for name, limit in plan.penalty.verbatim.items():
        limits[name] = min(limit, limits.get(name, limit))
    if limits == dict(plan.penalty.verbatim):
        return plan
    try:
        plan = with_penalty(plan, replace(plan.penalty, verbatim=limits), context)
    except (CannotPenalize, ValueError) as error:
        raise StepFailed("verbatim", policies, str(error)) from None
    return plan if plan.actions else replace(plan, actions=plan.actions_with("verbatim"))
