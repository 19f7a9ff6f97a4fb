"""Step `route`: another model, served by the same upstream, answers the request."""

from __future__ import annotations

from dataclasses import replace

from lethe.server.guard.plan import Context, Plan


def route(plan: Plan, context: Context) -> Plan:
    """Put the policy's model in the place of the requested one, where the verdict is `route`."""
    if context.verdict.action != "route":
        return plan
    destination = context.verdict.acting[0].policy.route
    assert destination is not None  # the policy's schema demands it
    return replace(plan, body={**plan.body, "model": destination.model}, actions=plan.actions_with("route"))
