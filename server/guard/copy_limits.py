"""Step `copy_limits`: answers may copy only short runs of protected documents (`penalize.always`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from lethe.server.guard.plan import Context, Plan, StepFailed
from lethe.server.guard.vllm_arguments import CannotPenalize, with_penalty
from lethe.server.policy.schema import Policy


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
    return plan if plan.actions else replace(plan, actions=plan.did("verbatim"))


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
