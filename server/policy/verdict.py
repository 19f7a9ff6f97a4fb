"""From scores to one verdict. Pure: no I/O, no clock, no log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lethe.classifier.judge import Score
from lethe.server.policy.schema import Action, Policy

# The strictest first: a request that several policies flag gets the first action that any of them asks
# for, except that corrupt and penalize add up.
STRICTNESS: tuple[Action, ...] = ("refuse", "route", "both", "corrupt", "penalize", "watch", "pass")


@dataclass(frozen=True)
class Finding:
    """What one policy made of the request."""

    policy: Policy
    score: Score
    threshold: float

    @property
    def flagged(self) -> bool:
        # A score that is not a number counts as reached.
        return not self.score.score < self.threshold

    def facts(self, place: str) -> dict[str, Any]:
        """What may be written down of it: numbers and names, never text. place: where the deciding text stands."""
        score = self.score
        return {
            "flagged": self.flagged,
            "score": round(score.score, 6),
            "threshold": round(self.threshold, 6),
            "group": score.group,
            "decided_by": score.decided_by,
            "place": place,
            "view": score.view,
            "lexical": round(score.lexical, 4),
            "head": round(score.head, 4),
            "cosine": round(score.cosine, 4),
            "windows": score.windows,
            "characters_seen": score.characters_seen,
            "characters_present": score.characters_present,
        }


@dataclass(frozen=True)
class Verdict:
    """What is done: the action, the enforced findings that ask for it, and all findings for the audit."""

    action: Action
    by: tuple[Finding, ...]
    findings: tuple[Finding, ...]


def decide(policies: Mapping[str, tuple[Policy, float]], scores: Mapping[str, Score]) -> Verdict:
    """The verdict over all policies that judged a request.

    policies: name → (policy, threshold); scores: name → score. Shadow policies are found but never act.
    Every score gets exactly one verdict.
    """
    findings = tuple(Finding(policy, scores[name], threshold) for name, (policy, threshold) in policies.items())
    acting = [f for f in findings if f.flagged and f.policy.mode == "enforce"]
    actions = {f.policy.action for f in acting}
    if not actions:
        return Verdict("pass", (), findings)
    if actions >= {"corrupt", "penalize"}:
        actions = actions | {"both"}
    action = next(a for a in STRICTNESS if a in actions)
    if action in ("refuse", "route"):
        return Verdict(action, tuple(f for f in acting if f.policy.action == action), findings)
    return Verdict(action, tuple(acting), findings)
