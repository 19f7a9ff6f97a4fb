"""From scores to one verdict. Pure: no I/O, no clock, no log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lethe.classifier.judge import Score
from lethe.server.policy.schema import Action, Policy

# Strictest first. A request that several policies flag gets the strictest of their actions, except that corrupt and
# penalize combine to both.
STRICTNESS: tuple[Action, ...] = ("refuse", "route", "both", "corrupt", "penalize", "watch", "pass")


@dataclass(frozen=True)
class Finding:
    """The result of one policy for one request."""

    policy: Policy
    score: Score
    threshold: float

    @property
    def flagged(self) -> bool:
        # `not <` in place of `>=`: a NaN score counts as flagged.
        return not self.score.score < self.threshold

    def to_record(self, place: str) -> dict[str, Any]:
        """The finding for the audit record: numbers and names, never text. place: path of the deciding text."""
        score = self.score
        return {
            "flagged": self.flagged,
            "score": round(score.score, 6),
            "threshold": round(self.threshold, 6),
            "group": score.group,
            "decided_by": score.decided_by,
            "place": place,
            "view": score.view,
            "lexical": round(score.words_logit, 4),
            "head": round(score.embedding_logit, 4),
            "cosine": round(score.cosine, 4),
            "windows": score.windows,
            "characters_seen": score.characters_seen,
            "characters_present": score.characters_present,
        }


@dataclass(frozen=True)
class Verdict:
    """What happens to a request. acting: the enforced findings that cause the action. findings: all, for the audit."""

    action: Action
    acting: tuple[Finding, ...]
    findings: tuple[Finding, ...]


def penalizing_history(verdict: Verdict) -> Verdict | None:
    """The verdict if every flagged `refuse` policy with `history: penalize` penalised instead.

    None if an enforced flagged `refuse` policy doesn't allow that.
    """
    acting = [finding for finding in verdict.findings if finding.flagged and finding.policy.mode == "enforce"]
    if any(finding.policy.action == "refuse" and not finding.policy.penalizes_history for finding in acting):
        return None
    return _verdict_of(acting, verdict.findings)


def decide(policies: Mapping[str, tuple[Policy, float]], scores: Mapping[str, Score]) -> Verdict:
    """Return the verdict over all policies that judged a request.

    policies: name → (policy, threshold). scores: name → score. Policies in shadow mode have findings but never act.
    """
    findings = tuple(Finding(policy, scores[name], threshold) for name, (policy, threshold) in policies.items())
    acting = [finding for finding in findings if finding.flagged and finding.policy.mode == "enforce"]
    refusing = tuple(finding for finding in acting if finding.policy.action == "refuse")
    return Verdict("refuse", refusing, findings) if refusing else _verdict_of(acting, findings)


def _verdict_of(acting: Sequence[Finding], findings: tuple[Finding, ...]) -> Verdict:
    """The verdict where nothing is refused; a policy that says `refuse` counts as `penalize`."""
    actions: set[Action] = {
        "penalize" if finding.policy.action == "refuse" else finding.policy.action for finding in acting
    }
    if not actions:
        return Verdict("pass", (), findings)
    if actions >= {"corrupt", "penalize"}:
        actions = actions | {"both"}
    action = next(action for action in STRICTNESS if action in actions)
    if action == "route":
        return Verdict(action, tuple(finding for finding in acting if finding.policy.action == action), findings)
    return Verdict(action, tuple(acting), findings)
