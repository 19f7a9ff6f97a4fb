"""A plan for one request, and the loop that builds it step by step.

A step is a function `(Plan, Context) -> Plan` in a file of its own: `route`, `corrupt`, `penalize`, `copy_limits`. For
the output filter, `output_filter_steps` makes one step for each policy. A step that can't do its work raises
`StepFailed`; `run_steps` then applies the `on_failure` or `on_unsupported` of the policies concerned, and counts the
failure. Nothing here knows HTTP.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lethe.classifier.artifact import Artifact
from lethe.classifier.judge import Score
from lethe.corruption.decoding.spec import Penalty
from lethe.server.errors import Refused
from lethe.server.guard.forget_answers import ArtifactWords
from lethe.server.guard.parsed_request import ParsedRequest
from lethe.server.observability.metrics import Metrics
from lethe.server.policy.schema import Policy
from lethe.server.policy.verdict import Finding, Verdict
from lethe.server.upstream.capabilities import Capabilities, Needs

if TYPE_CHECKING:
    from lethe.corruption.embeddings.corruptor import Corruptor
    from lethe.corruption.phrases.phrase_list import ForbiddenPhrases
from lethe.corruption.phrases.stream_filter import FilterRule

log = logging.getLogger("lethe.guard")


@dataclass(frozen=True)
class PolicyRule:
    """A rule of the output filter, and the policy that it belongs to."""

    policy: Policy
    rule: FilterRule


@dataclass(frozen=True)
class Plan:
    """What is sent upstream for one request, and what is done with the answer.

    body: the request body; the very object that came in where nothing was changed. needs: what the replica must be
    able to do. penalty: what `body` carries for the logits processor. filter_rules: what the output filter removes
    from the answer. actions: what was done, in order, as audit and metrics name it; `verbatim` (copy limits for all
    requests) is listed only if it is the only one. note: why something else than the policy's action was done; written
    to the audit trail. to_penalize: findings whose `corrupt` (on_unsupported) or `refuse` (history) was replaced by
    `penalize`. usage_added: the gateway, not the client, asked for usage in every chunk of the stream.
    """

    body: dict[str, Any]
    needs: Needs = Needs()
    penalty: Penalty = Penalty()
    filter_rules: tuple[PolicyRule, ...] = ()
    actions: tuple[str, ...] = ()
    note: str | None = None
    to_penalize: tuple[Finding, ...] = ()
    usage_added: bool = False

    @property
    def model(self) -> Any:
        """The model that upstream is asked for."""
        return self.body.get("model")

    @property
    def action(self) -> str:
        """One word for what was done, as audit trail and metrics name it."""
        if {"corrupt", "penalize"} <= set(self.actions):
            return "both"
        return self.actions[0] if self.actions else "pass"

    def actions_with(self, action: str) -> tuple[str, ...]:
        """`actions` and one more."""
        return (*self.actions, action)


class ModelPolicies(dict[str, tuple[Policy, float]]):
    """The policies that apply to one model: name → (policy, threshold)."""

    @cached_property
    def copy_limiting(self) -> list[Policy]:
        """Enforced policies that limit copies in the answer to every request (`penalize.always`)."""
        return [policy for policy, _ in self.values() if policy.mode == "enforce" and policy.penalize.always]

    @cached_property
    def filtering(self) -> list[Policy]:
        """Enforced policies with an output filter (policy key `watch`)."""
        return [policy for policy, _ in self.values() if policy.mode == "enforce" and policy.output_filter is not None]

    @cached_property
    def is_enforced(self) -> bool:
        """Whether a policy acts on flagged requests."""
        return any(policy.mode == "enforce" for policy, _ in self.values())

    @cached_property
    def corrupts(self) -> bool:
        """Whether flagged requests may be corrupted."""
        return any(policy.corrupts for policy, _ in self.values())

    @cached_property
    def lowest_thresholds(self) -> dict[str, float]:
        """Artifact name → the lowest threshold of its policies."""
        lowest: dict[str, float] = {}
        for policy, threshold in self.values():
            lowest[policy.artifact] = min(threshold, lowest.get(policy.artifact, threshold))
        return lowest


@dataclass(frozen=True)
class Resources:
    """What the steps of every request read: the same as long as the policies are.

    artifacts, words: by artifact name. indexes: artifact name → name of the verbatim index of its documents, where a
    policy limits copies of them. all_phrases: artifact name → its phrases, for policies that filter every answer.
    raw_logprobs: vLLM reports log-probabilities from before the penalty (its default). upstream_is_vllm: other
    servers with OpenAI's API don't know vLLM's own options.
    """

    artifacts: Mapping[str, Artifact]
    words: Mapping[str, ArtifactWords]
    indexes: Mapping[str, str]
    all_phrases: Mapping[str, ForbiddenPhrases]
    corruptor: Corruptor | None
    raw_logprobs: bool
    upstream_is_vllm: bool


@dataclass(frozen=True)
class Context:
    """What the steps know of one request.

    model_policies: the policies that apply to a model's name. capabilities: what the replicas can do now. judge_texts:
    scores further texts, by artifact name.
    """

    request: ParsedRequest
    verdict: Verdict
    resources: Resources
    model_policies: Callable[[Any], ModelPolicies]
    capabilities: Capabilities
    judge_texts: Callable[[Sequence[str]], Mapping[str, Score]]

    def findings_for(self, *actions: str) -> list[Finding]:
        """The acting findings whose policy says one of `actions`; none where the verdict is refuse or route."""
        if self.verdict.action in ("refuse", "route"):
            return []
        return [finding for finding in self.verdict.acting if finding.policy.action in actions]


class StepFailed(Exception):
    """A step can't do what the policies say; they decide what happens instead.

    stage: what failed, as metrics and the audit trail name it: `corrupt`, `penalize`, `verbatim` (step `copy_limits`)
    or `watch` (output filter), decided by the policies' `on_failure`; or `unsupported`, decided by their
    `on_unsupported`. (Any other exception, from judging or
    from a step, counts as stage `judge`.) findings: those of the policies concerned,
    where the stage is `unsupported`. reached: the plan as far as the step got; None: the plan that the step was given.
    """

    def __init__(
        self,
        stage: str,
        policies: Iterable[Policy],
        reason: str,
        *,
        findings: Iterable[Finding] = (),
        reached: Plan | None = None,
    ) -> None:
        super().__init__(reason)
        self.stage = stage
        self.policies = tuple(policies)
        self.reason = reason
        self.findings = tuple(findings)
        self.reached = reached

    @classmethod
    def unsupported(cls, findings: Sequence[Finding], reason: str, *, reached: Plan | None = None) -> StepFailed:
        """The request can't be given as embeddings, so that `corrupt` has to become something else."""
        policies = [finding.policy for finding in findings]
        return cls("unsupported", policies, reason, findings=findings, reached=reached)


Step = Callable[[Plan, Context], Plan]


def run_steps(plan: Plan, steps: Iterable[Step], context: Context, metrics: Metrics) -> Plan:
    """The plan after all steps. Raises Refused where a step failed and a policy refuses the request for it."""
    for step in steps:
        try:
            plan = step(plan, context)
        except StepFailed as failure:
            plan = _after_failure(failure, failure.reached or plan, metrics)
    return plan


def _after_failure(failure: StepFailed, plan: Plan, metrics: Metrics) -> Plan:
    """The plan with which the remaining steps go on. Raises Refused."""
    if failure.stage == "unsupported":
        apply_on_unsupported(failure.policies, failure.reason, metrics)
        return replace(plan, to_penalize=(*plan.to_penalize, *failure.findings), note=failure.reason)
    refusal = apply_on_failure(failure.policies, failure.stage, failure.reason, metrics)
    if refusal is not None:
        raise refusal from None
    keep_note = failure.stage in ("verbatim", "watch") and plan.note is not None
    return plan if keep_note else replace(plan, note=failure.reason)


def apply_on_unsupported(policies: Iterable[Policy], reason: str, metrics: Metrics) -> None:
    """Count what can't be given as embeddings. Raises Refused where a policy says `on_unsupported: refuse`."""
    for policy in policies:
        metrics.guard_failures.labels(policy.name, "unsupported", policy.on_unsupported).inc()
        if policy.on_unsupported == "refuse":
            raise refusal_of(policy, "unsupported", reason)


def apply_on_failure(policies: Collection[Policy], stage: str, reason: str, metrics: Metrics) -> Refused | None:
    """Count a failure for each enforced policy; the refusal, if one of them says `on_failure: refuse`."""
    enforced = [policy for policy in policies if policy.mode == "enforce"]
    for policy in enforced:
        metrics.guard_failures.labels(policy.name, stage, policy.on_failure).inc()
    log.warning("%s failed: %s", stage, reason)
    refusing = [policy for policy in enforced if policy.on_failure == "refuse"]
    return refusal_of(refusing[0], stage, reason) if refusing else None


def refusal_of(policy: Policy, failed_stage: str | None = None, failure: str | None = None) -> Refused:
    """How a policy refuses a request: on purpose, or because the guard failed at a stage, for a reason."""
    refusal = Refused(policy.refuse.message, as_answer=policy.refuse.form == "answer", code="refused_by_policy")
    refusal.failed_stage, refusal.failure = failed_stage, failure
    return refusal
