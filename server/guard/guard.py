"""Judge a request, decide, and plan what is sent upstream. Knows nothing of HTTP.

Not to be confused with GUARD (arXiv:2505.13312), the method of the step `penalize`.

`Guard.decide` does all of it: texts → scores → verdict → plan; it runs in a judge thread. A step of the plan that
fails is handled by the policies' `on_failure` or `on_unsupported` (`server/guard/plan.py`). An exception from `decide`,
whether from judging or from planning, counts as a failure of stage `judge`, and the gateway calls
`decide_without_scores`. Two are no failures: a refusal (`Refused`) is an ordinary result, and overload, which the
executor raises, is answered with 503.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import orjson
from prometheus_client import Counter

from lethe.classifier.artifact import Artifact
from lethe.classifier.judge import Judge, Score
from lethe.corruption.phrases.phrase_list import ForbiddenPhrases
from lethe.server.errors import BadRequest, PromptTooLong, Refused
from lethe.server.guard.copy_limits import copy_limits
from lethe.server.guard.corrupt import MODEL_LIMIT, TAKES_EMBEDDINGS, corrupt
from lethe.server.guard.decision import Decision, Forward, Reply
from lethe.server.guard.forget_answers import LazyArtifactWords, every_phrase
from lethe.server.guard.history import penalize_history
from lethe.server.guard.output_filter import output_filter_steps
from lethe.server.guard.parsed_request import ParsedRequest
from lethe.server.guard.penalize import penalize
from lethe.server.guard.plan import Context, ModelPolicies, Plan, Resources, apply_on_failure, run_steps
from lethe.server.guard.route import route
from lethe.server.observability.metrics import Metrics
from lethe.server.policy.schema import Policy
from lethe.server.policy.verdict import Verdict, decide
from lethe.server.requests.extract import extract_texts
from lethe.server.requests.fields import TABLES, Endpoint
from lethe.server.requests.validation import with_plain_values
from lethe.server.steering.constraints import ConstraintCheck
from lethe.server.steering.secret_names import LazySecretNames
from lethe.server.upstream.capabilities import Capabilities

if TYPE_CHECKING:
    from lethe.corruption.embeddings.corruptor import Corruptor

# Model names for which the matching policies are cached; all are dropped beyond that. Bounds memory,
# since the names are the clients' to choose.
MAX_CACHED_MODELS = 256
# Characters of a model name; a longer one is not cached.
MAX_CACHED_MODEL_CHARS = 256
# When more policies than this apply to a model, the verdict leaves out those for whose artifact the words alone gave no
# evidence (no window was encoded). Chosen: keeps audit records short.
MAX_LISTED_POLICIES = 32

NO_VERDICT = Verdict("pass", (), ())


def _failure_outcomes(policy: Policy) -> dict[str, str]:
    """Stages at which an enforced policy can fail → what is done then (`refuse`, `pass` or `penalize`)."""
    if policy.mode != "enforce":
        return {}
    can_fail = {
        "judge": True,
        "corrupt": policy.corrupts,
        "penalize": policy.penalizes,
        "verbatim": policy.penalize.always,
        "watch": policy.output_filter is not None,
    }
    outcomes: dict[str, str] = {stage: policy.on_failure for stage, possible in can_fail.items() if possible}
    return outcomes | ({"unsupported": policy.on_unsupported} if policy.corrupts else {})


def _verdict_over(policies: Mapping[str, tuple[Policy, float]], scores: Mapping[str, Score]) -> Verdict:
    """The verdict over `policies`; scores: by artifact name."""
    if len(policies) > MAX_LISTED_POLICIES:
        policies = {
            name: (policy, threshold)
            for name, (policy, threshold) in policies.items()
            for score in (scores[policy.artifact],)
            if score.window_items or not score.score < threshold
        }
    return decide(policies, {name: scores[policy.artifact] for name, (policy, _) in policies.items()})


class Guard:
    """Policies with their artifacts, ready to decide on requests. Safe to share between threads.

    A guard never changes: new policies make a new guard, and a request keeps the one that it began with.
    """

    def __init__(
        self,
        policies: Mapping[str, tuple[Policy, float]],
        artifacts: Mapping[str, Artifact],
        judge: Judge | None,
        metrics: Metrics,
        *,
        max_prompt_chars: int,
        corruptor: Corruptor | None = None,
        decode: Callable[[list[int]], str] | None = None,
        raw_logprobs: bool = True,
        indexes: Mapping[str, str] | None = None,
        policy_names: Collection[str] | None = None,
        previous: Guard | None = None,
        upstream_is_vllm: bool = True,
    ) -> None:
        """policies: name → (policy, threshold), without those that are off; artifacts: by name.

        decode: token ids → text, for prompts given as ids. indexes: artifact name → name of the verbatim index of its
        documents. policy_names: all policies, those that are off included; None: those of `policies`. previous: the
        guard before this one; what was prepared for an unchanged artifact is taken from it. raw_logprobs,
        upstream_is_vllm: see `plan.Resources`.
        """
        self.policies = policies
        self.policy_names = frozenset(policies if policy_names is None else policy_names)
        self.artifacts = artifacts
        self.corruptor = corruptor
        self.indexes = indexes or {}
        self.upstream_is_vllm = upstream_is_vllm
        self._judge = judge
        self._metrics = metrics
        self._decode = decode
        self._max_prompt_chars = max_prompt_chars
        self._words = LazyArtifactWords(artifacts)
        if previous is not None:
            # A copy of the items, since the previous guard still serves requests that add to them.
            prepared = list(previous._words.items())
            self._words.update(
                (name, words) for name, words in prepared if previous.artifacts[name] is artifacts.get(name)
            )
        self._names = LazySecretNames(artifacts, self._words)
        if previous is not None:
            self._names.update(
                (name, names)
                for name, names in list(previous._names.items())
                if previous.artifacts[name] is artifacts.get(name)
            )
        self._constraints = ConstraintCheck(artifacts, self._names, decode)
        self._resources = Resources(
            artifacts=artifacts,
            words=self._words,
            indexes=self.indexes,
            all_phrases=self._prepare_all_phrases(previous),
            corruptor=corruptor,
            raw_logprobs=raw_logprobs,
            upstream_is_vllm=upstream_is_vllm,
        )
        self._policies_by_model: dict[str, ModelPolicies] = {}
        self._verdict_counters: dict[tuple[str, bool], Counter] = {}
        for policy, _ in policies.values():
            # The series exist at 0 before anything fails: an alert on a rate would miss a series that starts at 1.
            for stage, outcome in _failure_outcomes(policy).items():
                metrics.guard_failures.labels(policy.name, stage, outcome)

    def _prepare_all_phrases(self, previous: Guard | None) -> dict[str, ForbiddenPhrases]:
        """Artifact name → all its phrases, for policies that filter every answer."""
        always = {p.artifact for p, _ in self.policies.values() if p.output_filter and p.output_filter.when == "always"}
        prepared = {} if previous is None else previous._resources.all_phrases
        return {
            name: prepared[name]
            if previous is not None and name in prepared and previous.artifacts[name] is self.artifacts[name]
            else ForbiddenPhrases(every_phrase(self.artifacts[name], self._words[name]))
            for name in always
        }

    def parse(self, endpoint: Endpoint, body: dict[str, Any]) -> ParsedRequest:
        """The request with its texts. Raises BadRequest for refused fields and over-long prompts."""
        pieces = extract_texts(endpoint, body, decode=self._decode)
        characters = sum(len(piece.text) for piece in pieces)
        if characters > self._max_prompt_chars:
            raise PromptTooLong.in_characters(characters, self._max_prompt_chars)
        return ParsedRequest(endpoint, with_plain_values(endpoint, body) if endpoint in TABLES else body, pieces)

    def check_supported(self, request: ParsedRequest) -> None:
        """Raises BadRequest for what can't be served once a request is flagged, so that it is refused to all alike."""
        policies = [policy for policy, _ in self.policies_for(request.model).values() if policy.mode == "enforce"]
        truncation = request.body.get("truncate_prompt_tokens")
        is_cut = truncation is not None and truncation != MODEL_LIMIT and request.endpoint in TAKES_EMBEDDINGS
        if is_cut and any(policy.corrupts for policy in policies):
            message = "Prompts are not truncated for this model."
            raise BadRequest(message, param="truncate_prompt_tokens", code="unsupported")
        if request.body.get("use_beam_search") is True and any(policy.needs_vllm for policy in policies):
            raise BadRequest("Beam search is not supported by this model.", param="use_beam_search", code="unsupported")

    def restricted_to(self, names: Collection[str]) -> Guard:
        """This guard with only the policies in `names`."""
        if self.policies.keys() <= set(names):
            return self
        restricted = copy.copy(self)
        restricted.policies = {name: entry for name, entry in self.policies.items() if name in names}
        restricted._policies_by_model = {}
        return restricted

    def policies_for(self, model: Any) -> ModelPolicies:
        """The policies that apply to the model that a request names."""
        if isinstance(model, str) and (cached := self._policies_by_model.get(model)) is not None:
            return cached
        applying = ModelPolicies({name: entry for name, entry in self.policies.items() if entry[0].covers(model)})
        if isinstance(model, str) and len(model) <= MAX_CACHED_MODEL_CHARS:
            if len(self._policies_by_model) >= MAX_CACHED_MODELS:
                self._policies_by_model.clear()
            self._policies_by_model[model] = applying
        return applying

    def judge(self, request: ParsedRequest, policies: Mapping[str, tuple[Policy, float]]) -> Verdict:
        """The verdict of `policies` on a request; nothing is planned or counted."""
        if not policies:
            return decide({}, {})
        assert self._judge is not None
        model_policies = policies if isinstance(policies, ModelPolicies) else ModelPolicies(policies)
        scores = self._judge.judge(request.texts, thresholds=model_policies.lowest_thresholds)
        scores = self._constraints.with_steered(
            request.body, [piece.place for piece in request.pieces], scores, model_policies.lowest_thresholds
        )
        return _verdict_over(policies, scores)

    def decide(self, request: ParsedRequest, capabilities: Capabilities) -> Decision:
        """Judge the request, and plan what is done with it. capabilities: what the replicas can do now."""
        started = time.perf_counter()
        verdict = self.judge(request, self.policies_for(request.model))
        return self._make_decision(request, verdict, capabilities, started)

    def decide_from_cache(self, request: ParsedRequest, capabilities: Capabilities) -> Decision | None:
        """As `decide`, but without judging.

        Only if all texts have cached scores, the constraints are known to be harmless, and nothing is flagged. None in
        all other cases.
        """
        started = time.perf_counter()
        policies = self.policies_for(request.model)
        if self._judge is None or not policies:
            return None
        scores = self._judge.judge_cached(request.texts, thresholds=policies.lowest_thresholds)
        if scores is None or not self._constraints.is_known_to_be_harmless(request.body, policies.lowest_thresholds):
            return None
        verdict = _verdict_over(policies, scores)
        if any(finding.flagged for finding in verdict.findings):
            return None
        return self._make_decision(request, verdict, capabilities, started)

    def decide_without_scores(self, request: ParsedRequest, capabilities: Capabilities, reason: str) -> Decision:
        """What is done with a request for which `decide` failed; reason: why, for log and audit trail."""
        policies = [policy for policy, _ in self.policies_for(request.model).values()]
        refusal = self.refusal_after_failure(policies, "judge", reason)
        if refusal is not None:
            return Decision(Reply(refusal), None, "refuse", reason)
        try:
            plan = self._plan(request, NO_VERDICT, capabilities)
        except Refused as error:
            return Decision(Reply(error), None, "refuse", reason)
        return Decision(_forward(request, plan), None, "pass", reason)

    def refusal_after_failure(self, policies: Collection[Policy], stage: str, reason: str) -> Refused | None:
        """Count a failure of the guard; the refusal, if an enforced policy says `on_failure: refuse`."""
        return apply_on_failure(policies, stage, reason, self._metrics)

    def _make_decision(
        self, request: ParsedRequest, verdict: Verdict, capabilities: Capabilities, started: float
    ) -> Decision:
        for finding in verdict.findings:
            self._verdict_counter(finding.policy, finding.flagged).inc()
        judged = time.perf_counter()
        result: Forward | Reply
        try:
            plan = self._plan(request, verdict, capabilities)
            result, action, note = _forward(request, plan), plan.action, plan.note
        except Refused as error:
            result, action, note = Reply(error), "refuse", error.failure or error.code
        finished = time.perf_counter()
        return Decision(result, verdict, action, note, (judged - started) * 1e3, (finished - judged) * 1e3)

    def _plan(self, request: ParsedRequest, verdict: Verdict, capabilities: Capabilities) -> Plan:
        """What is sent upstream, and what is removed from the answer. Raises Refused."""
        context = Context(request, verdict, self._resources, self.policies_for, capabilities, self._judge_texts)
        plan = Plan(request.body, actions=("watch",) if verdict.action == "watch" else ())
        if verdict.action == "refuse":
            plan, context = penalize_history(plan, context)
        plan = run_steps(plan, (route, corrupt, penalize, copy_limits), context, self._metrics)
        return run_steps(plan, output_filter_steps(plan, context), context, self._metrics)

    def _judge_texts(self, texts: Sequence[str]) -> Mapping[str, Score]:
        assert self._judge is not None
        return self._judge.judge(texts, thresholds={})

    def _verdict_counter(self, policy: Policy, flagged: bool) -> Counter:
        counter = self._verdict_counters.get((policy.name, flagged))
        if counter is None:
            counter = self._metrics.verdicts.labels(policy.name, policy.mode, str(flagged).lower())
            self._verdict_counters[policy.name, flagged] = counter
        return counter


def _forward(request: ParsedRequest, plan: Plan) -> Forward:
    return Forward(plan, None if plan.body is request.body else orjson.dumps(plan.body))
