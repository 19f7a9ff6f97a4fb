"""Which message parts of a flagged request are corrupted, and which characters of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lethe.classifier.artifact import Artifact
from lethe.classifier.attribution import evidence_spans
from lethe.corruption.spec import CorruptSpec
from lethe.server.guard.parsed_request import ParsedRequest
from lethe.server.policy.verdict import Finding
from lethe.server.requests.request_text import TargetPart

# (start, end) in characters of a part's text.
Span = tuple[int, int]
# A user message of at most this many characters may be a piece of a question that was split over several messages,
# so that no piece holds a whole name. A choice: longer than nearly all names and dates.
FRAGMENT_CHARS = 64


@dataclass(frozen=True)
class CorruptionTargets:
    """parts: message part → the spans of its text to corrupt; an empty list means all of it.

    unreachable: flagged places that can't be given as embeddings (tool schemas, names), as paths in the body.
    """

    parts: dict[TargetPart, list[Span]]
    unreachable: tuple[str, ...] = ()


def corruption_targets(
    request: ParsedRequest, findings: Sequence[Finding], artifacts: Sequence[Artifact], spec: CorruptSpec
) -> CorruptionTargets:
    """What all findings together flag. artifacts: that of each finding, in the same order."""
    parts: dict[TargetPart, list[Span]] = {}
    unreachable: tuple[str, ...] = ()
    for finding, artifact in zip(findings, artifacts, strict=True):
        targets = _targets_of(request, finding, artifact, spec)
        unreachable += targets.unreachable
        for target, spans in targets.parts.items():
            whole = not spans or parts.get(target) == []
            parts[target] = [] if whole else [*parts.get(target, []), *spans]
    return CorruptionTargets(parts, unreachable)


def _targets_of(request: ParsedRequest, finding: Finding, artifact: Artifact, spec: CorruptSpec) -> CorruptionTargets:
    scores = finding.score.text_scores
    # `not <` in place of `>=`: a score that is NaN counts as flagged, as it does in the verdict.
    flagged = [p for p, s in zip(request.pieces, scores, strict=False) if not s < finding.threshold]
    if flagged:
        unreachable = tuple(piece.place for piece in flagged if piece.target is None)
        reachable = {p.target: _spans(artifact, p.text, spec) for p in flagged if p.target is not None}
        return CorruptionTargets(reachable, unreachable)
    return _conversation_targets(request, artifact, spec)


def _conversation_targets(request: ParsedRequest, artifact: Artifact, spec: CorruptSpec) -> CorruptionTargets:
    """Only the conversation as a whole was flagged: corrupt the parts that hold the evidence, or all parts."""
    pieces = {p.target: p for p in request.pieces if p.target is not None and p.text.strip()}
    with_evidence = {target: spans for target, p in pieces.items() if (spans := list(evidence_spans(artifact, p.text)))}
    fragments: dict[TargetPart, list[Span]] = {
        target: [] for target, p in pieces.items() if p.role == "user" and len(p.text.strip()) <= FRAGMENT_CHARS
    }
    if with_evidence and spec.uses_evidence:
        return CorruptionTargets({**fragments, **with_evidence})
    chosen = [*fragments, *with_evidence] if with_evidence else list(pieces)
    return CorruptionTargets({target: [] for target in chosen}, () if pieces else ("conversation",))


def _spans(artifact: Artifact, text: str, spec: CorruptSpec) -> list[Span]:
    return list(evidence_spans(artifact, text)) if spec.uses_evidence else []
