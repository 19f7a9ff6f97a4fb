"""Judge a request, decide, rewrite it. Runs in a worker thread; knows nothing of HTTP.

`Guard.examine` is the whole of it: texts → scores → verdict → body. Whatever fails on the way is the
policy's `on_failure` to decide, and is counted.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import orjson
from prometheus_client import Counter

from lethe.classifier.artifact import Artifact
from lethe.classifier.judge import Judge, Score
from lethe.corruption.decoding.spec import Penalty
from lethe.corruption.phrases.extraction import Told
from lethe.corruption.phrases.stream_filter import Phrases, Rule, Watch
from lethe.corruption.spec import CorruptionError
from lethe.server.errors import BadRequest, Refused
from lethe.server.guard import rewrite
from lethe.server.guard.rewrite import CannotGuard, Judged, Span, Unsupported
from lethe.server.observability.metrics import Metrics
from lethe.server.policy.schema import Policy, Watching
from lethe.server.policy.verdict import Finding, Verdict, decide
from lethe.server.requests import extract as fields
from lethe.server.requests.extract import Target

if TYPE_CHECKING:
    from lethe.corruption.embeddings.corruptor import Corruptor

log = logging.getLogger("lethe.guard")

# Names of models, as requests give them, for which it is kept which policies hold.
MODELS_KEPT = 256
# Of more policies than this that hold for a model, those whose first stage lets a request pass are not written down.
MOST_NAMED = 32
LONGEST_MODEL = 256


@dataclass
class Needs:
    """What a request asks of the replica that is to answer it, beyond serving its model."""

    parity: bool = False  # it carries embeddings
    indexes: frozenset[str] = frozenset()  # it names these indexes of protected texts


@dataclass(frozen=True)
class Watched:
    """What is watched for in an answer, and for which policies.

    added: usage in every chunk of the stream was asked for by the gateway alone, so that an answer that is cut
    can be counted.
    """

    watch: Watch
    policies: tuple[Policy, ...]
    added: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of a request: the bytes for upstream (None: those that came in), or a refusal.

    model: what upstream is asked for. needs: what the replica must be able to do. watch: what is watched
    for in the answer; None: nothing.
    """

    verdict: Verdict
    payload: bytes | None
    action: str
    note: str | None
    refusal: Refused | None
    judge_ms: float
    rewrite_ms: float
    model: Any = None
    needs: Needs = field(default_factory=Needs)
    watch: Watched | None = None

    @property
    def hides(self) -> bool:
        """Whether it hides that the request was flagged, or was to; a policy that says `refuse` tells it."""
        return self.payload is not None or (self.refusal is not None and self.verdict.action != "refuse")


def _may_fail(policy: Policy) -> dict[str, str]:
    """Where a policy in enforce may fail to do what it says, and what is done then."""
    if policy.mode != "enforce":
        return {}
    may = {
        "judge": True,
        "corrupt": policy.corrupts,
        "penalize": policy.penalizes,
        "verbatim": policy.penalize.always,
        "watch": policy.watching is not None,
    }
    stages: dict[str, str] = {stage: policy.on_failure for stage, there in may.items() if there}
    return stages | ({"unsupported": policy.on_unsupported} if policy.corrupts else {})


class _WordsOf(dict[str, rewrite.Words]):
    """Each artifact's words, made ready when something of it is first asked for: of many, few are."""

    def __init__(self, artifacts: Mapping[str, Artifact]) -> None:
        super().__init__()
        self._artifacts = artifacts

    def __missing__(self, name: str) -> rewrite.Words:
        return self.setdefault(name, rewrite.Words(self._artifacts[name]))


class Covering(dict[str, tuple[Policy, float]]):
    """Policies that hold for one model: name → (policy, threshold)."""

    @cached_property
    def always(self) -> list[Policy]:
        """Those in enforce that keep every request's answer from copying."""
        return [policy for policy, _ in self.values() if policy.mode == "enforce" and policy.penalize.always]

    @cached_property
    def watching(self) -> list[Policy]:
        """Those in enforce that watch answers."""
        return [policy for policy, _ in self.values() if policy.mode == "enforce" and policy.watching is not None]

    @cached_property
    def levels(self) -> dict[str, float]:
        """Artifact → the least threshold of its policies."""
        found: dict[str, float] = {}
        for policy, threshold in self.values():
            found[policy.artifact] = min(threshold, found.get(policy.artifact, threshold))
        return found


def _decided(policies: Mapping[str, tuple[Policy, float]], scores: Mapping[str, Score]) -> Verdict:
    """The verdict; of very many policies, those that only had to see the words to let a request pass say nothing."""
    if len(policies) > MOST_NAMED:
        policies = {
            name: (policy, threshold)
            for name, (policy, threshold) in policies.items()
            for score in (scores[policy.artifact],)
            if score.asked or not score.score < threshold
        }
    return decide(policies, {name: scores[policy.artifact] for name, (policy, _) in policies.items()})


class Guard:
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
        before: Guard | None = None,
        vllm: bool = True,
    ) -> None:
        """policies: name → (policy, threshold), those that are off left out; artifacts by their own name.

        indexes: artifact name → name of the index of its documents, where a policy keeps them from being copied.
        before: a guard whose work on the same artifacts is taken over. vllm: whether that is what answers; any
        other server of OpenAI's API doesn't know what vLLM alone can do.
        """
        self._raw_logprobs = raw_logprobs
        self.policies = policies
        self.known = frozenset(policies)  # those that are off included, where the loader says so
        self.artifacts = artifacts
        self.corruptor = corruptor
        self.indexes = indexes or {}
        # Whether a replica that serves a model can do what a request needs: the gateway's replicas say. Without
        # any (measurements, tests) the two below do; without parity nothing is corrupted.
        self.can: Callable[[Any, Needs], bool] = lambda model, needs: (
            (self.parity or not needs.parity) and needs.indexes <= self.indexes_there
        )
        self.parity = False
        self.indexes_there: frozenset[str] = frozenset()
        self._words = _WordsOf(artifacts)
        if before:
            kept = list(before._words.items())  # others use them meanwhile, and make more of them ready
            self._words.update((name, words) for name, words in kept if before.artifacts[name] is artifacts.get(name))
        self._vllm = vllm
        self._covering: dict[str, Covering] = {}
        self._counters: dict[tuple[str, bool], Counter] = {}
        # Artifact name → all its phrases, for policies that always watch.
        self._phrases: dict[str, Phrases] = {
            name: before._phrases[name]
            if before and name in before._phrases and before.artifacts[name] is artifacts[name]
            else Phrases(rewrite.all_phrases(artifacts[name], self._words[name]))
            for name in {p.artifact for p, _ in policies.values() if p.watching and p.watching.when == "always"}
        }
        self._judge = judge
        self._metrics = metrics
        self._decode = decode
        self._max_prompt_chars = max_prompt_chars
        for policy, _ in policies.values():
            # There at 0 before anything fails: an alert on a rate would miss a series that begins with its first one.
            for stage, outcome in _may_fail(policy).items():
                metrics.guard_failures.labels(policy.name, stage, outcome)

    def read(self, endpoint: fields.Endpoint, body: dict[str, Any]) -> Judged:
        """The request's texts. Raises BadRequest for refused fields and over-long prompts."""
        pieces = fields.extract(endpoint, body, decode=self._decode)
        present = sum(len(piece.text) for piece in pieces)
        if present > self._max_prompt_chars:
            raise BadRequest(
                f"the prompt has {present} characters; at most {self._max_prompt_chars} are judged",
                code="prompt_too_long",
            )
        return Judged(endpoint, body, pieces)

    def only(self, names: Collection[str]) -> Guard:
        """This guard with no policies but those."""
        if self.policies.keys() <= set(names):
            return self
        made = copy.copy(self)
        made.policies = {name: entry for name, entry in self.policies.items() if name in names}
        made._covering = {}
        return made

    def covering(self, body: dict[str, Any]) -> Covering:
        """The policies that hold for the model that a request names."""
        model = body.get("model")
        if isinstance(model, str) and (known := self._covering.get(model)) is not None:
            return known
        found = Covering({name: entry for name, entry in self.policies.items() if entry[0].covers(model)})
        if isinstance(model, str) and len(model) <= LONGEST_MODEL:
            if len(self._covering) >= MODELS_KEPT:
                self._covering.clear()
            self._covering[model] = found
        return found

    def find(self, judged: Judged, policies: Mapping[str, tuple[Policy, float]]) -> Verdict:
        """The verdict of `policies` on a request; nothing is rewritten or counted."""
        if not policies:
            return decide({}, {})
        assert self._judge is not None
        covering = policies if isinstance(policies, Covering) else Covering(policies)
        return _decided(policies, self._judge.judge(judged.texts, levels=covering.levels))

    def examine(self, judged: Judged) -> Outcome:
        """Judge, decide and rewrite."""
        started = time.perf_counter()
        return self._outcome(judged, self.find(judged, self.covering(judged.body)), started)

    def examine_at_once(self, judged: Judged) -> Outcome | None:
        """As `examine`, where that is no work: all texts were judged lately, none is flagged. None elsewhere."""
        started = time.perf_counter()
        policies = self.covering(judged.body)
        if self._judge is None or not policies:
            return None
        scores = self._judge.recall(judged.texts, levels=policies.levels)
        if scores is None:
            return None
        verdict = _decided(policies, scores)
        if any(finding.flagged for finding in verdict.findings):
            return None
        return self._outcome(judged, verdict, started)

    def _outcome(self, judged: Judged, verdict: Verdict, started: float) -> Outcome:
        for finding in verdict.findings:
            self._verdicts(finding.policy, finding.flagged).inc()
        done = time.perf_counter()
        payload, refusal, body, needs, watch = None, None, judged.body, Needs(), None
        try:
            body, action, note = self._apply(judged, verdict, needs)
            body, watch = self._watched(judged, body, verdict.findings)
            payload = None if body is judged.body else orjson.dumps(body)
        except Refused as error:
            action, note, refusal = "refuse", error.code, error
        end = time.perf_counter()
        return Outcome(
            verdict, payload, action, note, refusal, (done - started) * 1e3, (end - done) * 1e3,
            model=body.get("model"), needs=needs, watch=watch,
        )  # fmt: skip

    def _verdicts(self, policy: Policy, flagged: bool) -> Counter:
        counter = self._counters.get((policy.name, flagged))
        if counter is None:
            counter = self._metrics.verdicts.labels(policy.name, policy.mode, str(flagged).lower())
            self._counters[policy.name, flagged] = counter
        return counter

    def _apply(self, judged: Judged, verdict: Verdict, needs: Needs) -> tuple[dict[str, Any], str, str | None]:
        """The body for upstream, the action really taken, and a note where it is not the one asked for.

        needs: filled in on the way.
        """
        if verdict.action in ("pass", "watch"):
            return self._limited(judged.endpoint, judged.body, Penalty(), verdict.action, None, needs)
        first = verdict.by[0].policy
        if verdict.action == "refuse":
            raise Refused(first.refuse.message, code="refused_by_policy")
        if verdict.action == "route":
            assert first.route is not None
            routed = {**judged.body, "model": first.route.model}
            return self._limited(judged.endpoint, routed, Penalty(), "route", None, needs)
        body, note, made = judged.body, None, Penalty()
        corrupting = [f for f in verdict.by if f.policy.action in ("corrupt", "both")]
        penalizing = [f for f in verdict.by if f.policy.action in ("penalize", "both")]
        did = []
        if corrupting:
            try:
                body, beyond = self._corrupted(judged, corrupting)
                if body is not judged.body:
                    did.append("corrupt")
                    needs.parity = True
                if beyond:
                    raise Unsupported(f"{beyond[0]} was flagged and can't be given as embeddings")
            except Unsupported as reason:
                note = str(reason)
                self._unsupported(corrupting)
                penalizing = list(dict.fromkeys([*penalizing, *corrupting]))
            except (CorruptionError, CannotGuard) as reason:
                note = str(reason)
                if refusal := self.failed([f.policy for f in corrupting], "corrupt", note):
                    raise refusal from None
        if penalizing:
            try:
                made = rewrite.penalty(judged, penalizing, self.artifacts, self._words, self.indexes)
                body = self._penalized(judged.endpoint, body, made, needs)
                did.append("penalize")
            except CannotGuard as reason:
                note = str(reason)
                if refusal := self.failed([f.policy for f in penalizing], "penalize", note):
                    raise refusal from None
        action = "both" if len(did) == 2 else did[0] if did else "pass"
        return self._limited(judged.endpoint, body, made if "penalize" in did else Penalty(), action, note, needs)

    def _penalized(
        self, endpoint: fields.Endpoint, body: dict[str, Any], made: Penalty, needs: Needs
    ) -> dict[str, Any]:
        wanted = dataclasses.replace(needs, indexes=frozenset(made.verbatim))
        if made.verbatim and not self.can(body.get("model"), wanted):
            raise CannotGuard("vLLM does not have the index of a protected text (LETHE_VERBATIM)")
        changed = rewrite.penalize(endpoint, body, made, raw_logprobs=self._raw_logprobs)
        needs.indexes = wanted.indexes
        return changed

    def _limited(
        self,
        endpoint: fields.Endpoint,
        body: dict[str, Any],
        made: Penalty,
        action: str,
        note: str | None,
        needs: Needs,
    ) -> tuple[dict[str, Any], str, str | None]:
        """The body, action and note with copies kept short where policies say `always`; made: what it carries."""
        always = self.covering(body).always
        limits = rewrite.copy_limits(always, self.indexes)
        for name, limit in made.verbatim.items():
            limits[name] = min(limit, limits.get(name, limit))
        if limits == dict(made.verbatim):
            return body, action, note
        try:
            body = self._penalized(endpoint, body, dataclasses.replace(made, verbatim=limits), needs)
        except (CannotGuard, ValueError) as reason:
            if refusal := self.failed(always, "verbatim", str(reason)):
                raise refusal from None
            return body, action, note or str(reason)
        return body, "verbatim" if action == "pass" else action, note

    def unjudged(self, judged: Judged) -> tuple[bytes | None, Needs, Watched | None]:
        """What goes upstream of a request that could not be judged but may pass. Raises Refused."""
        needs = Needs()
        body, _, _ = self._limited(judged.endpoint, judged.body, Penalty(), "pass", None, needs)
        body, watch = self._watched(judged, body, ())
        return None if body is judged.body else orjson.dumps(body), needs, watch

    def _watched(
        self, judged: Judged, body: dict[str, Any], findings: Iterable[Finding]
    ) -> tuple[dict[str, Any], Watched | None]:
        """The body for upstream, and what is watched for in its answer. Raises Refused."""
        flagged = {finding.policy.name: finding for finding in findings if finding.flagged}
        rules, policies = [], []
        asked, sent = self.covering(judged.body).watching, self.covering(body).watching
        for policy in {policy.name: policy for policy in (*asked, *sent)}.values():
            watching = policy.watching
            assert watching is not None
            finding = None if watching.when == "always" else flagged.get(policy.name)
            if watching.when == "always" or finding is not None:
                rule = self._rule(policy, watching, finding, rewrite.asking(judged))
                if rule is not None:
                    rules.append(rule)
                    policies.append(policy)
        if not rules:
            return body, None
        counted = rewrite.counted(judged.endpoint, body) if self._vllm else body
        return counted, Watched(Watch(rules), tuple(policies), counted is not body)

    def _rule(self, policy: Policy, watching: Watching, finding: Finding | None, prompt: str) -> Rule | None:
        """finding: what flagged the request; None: all phrases are watched for. Raises Refused."""
        name = policy.artifact
        replacement = watching.replacement if watching.on_hit == "replace" else None
        if finding is None:
            return Rule(policy.name, self._phrases[name], replacement, Told(prompt))
        try:
            _, found = rewrite.given_away(finding, self.artifacts[name], self._words[name], prompt)
            if not found and policy.action == "watch":
                raise CannotGuard("the nearest forget items hold nothing that could be watched for")
        except CannotGuard as reason:
            if refusal := self.failed([policy], "watch", str(reason)):
                raise refusal from None
            return None
        return Rule(policy.name, Phrases(found), replacement) if found else None

    def _corrupted(self, judged: Judged, findings: list[Finding]) -> tuple[dict[str, Any], tuple[str, ...]]:
        """The body with what was flagged as corrupted embeddings, and the places that can't be given so."""
        if judged.endpoint not in rewrite.TAKES_EMBEDDINGS:
            raise Unsupported(f"vLLM takes no embeddings on {judged.endpoint}")
        if self.corruptor is None or not self.can(judged.body.get("model"), Needs(parity=True)):
            raise CannotGuard("no parity: clean embeddings did not give the same answer as text")
        # Once, as the first policy says; what the others found in the same text is corrupted with it.
        policy = findings[0].policy
        parts: dict[Target, list[Span]] = {}
        beyond: tuple[str, ...] = ()
        for finding in findings:
            found = rewrite.targets(judged, finding, self.artifacts[finding.policy.artifact], policy.corrupt)
            beyond += found.beyond
            for target, spans in found.parts.items():
                whole = not spans or parts.get(target) == []
                parts[target] = [] if whole else [*parts.get(target, []), *spans]
        body = rewrite.corrupt(judged, self.corruptor, policy, parts) if parts else judged.body
        return body, beyond

    def _unsupported(self, findings: list[Finding]) -> None:
        for finding in findings:
            policy = finding.policy
            self._metrics.guard_failures.labels(policy.name, "unsupported", policy.on_unsupported).inc()
            if policy.on_unsupported == "refuse":
                raise Refused(policy.refuse.message, code="refused_by_policy")

    def failed(self, policies: list[Policy], stage: str, reason: str) -> Refused | None:
        """Count a failure of the guard; the refusal, if any policy in enforce asks for one."""
        enforced = [policy for policy in policies if policy.mode == "enforce"]
        for policy in enforced:
            self._metrics.guard_failures.labels(policy.name, stage, policy.on_failure).inc()
        log.warning("%s failed: %s", stage, reason)
        refusing = [policy for policy in enforced if policy.on_failure == "refuse"]
        return Refused(refusing[0].refuse.message, code="refused_by_policy") if refusing else None
