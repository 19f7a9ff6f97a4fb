"""Why a prompt is flagged or not, as a readable table: the text of `lethe judge --explain`. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from lethe.classifier.artifact import Artifact
from lethe.classifier.names.evidence import MEANING_FROM, MEANING_WEIGHT, name_evidence
from lethe.classifier.names.matcher import NameMatcher
from lethe.classifier.names.subject import ENOUGH
from lethe.classifier.names.tokens import name_tokens
from lethe.server.policy.verdict import Finding

# Characters of a prompt or fact that a line quotes.
EXCERPT_CHARACTERS = 80


def explanation(finding: Finding, artifact: Artifact, texts: Sequence[str]) -> list[str]:
    """Lines that name what decided, what each piece of evidence gave, and what was missing.

    texts: the judged texts of the request, as in `Score.text`.
    """
    score = finding.score
    text = texts[score.text] if texts else ""
    start, end = score.window
    verdict = "flagged" if finding.flagged else "passes"
    lines = [
        f"{_excerpt(text)}",
        f"  {verdict}: score {score.score:.3f}, threshold {finding.threshold:.3f}, decided by {score.decided_by}",
        f"  window      characters {start} to {end} (view {score.view}): {_excerpt(text[start:end])}",
        f"  words       {score.words_logit:+.2f} log-odds",
        f"  embedding   {score.embedding_logit:+.2f} log-odds",
    ]
    if score.nearest:
        item = artifact.items[score.nearest[0]]
        lines.append(
            f"  fact        {score.nearest[0]}: {_excerpt(item.prompt or item.text)} (cosine {score.cosine:.2f})"
        )
    names = _name_lines(artifact, text, score.cosine)
    lines += names or ["  names       none of the subject's"]
    if not finding.flagged:
        lines.append(f"  needed      a score of {finding.threshold:.3f}, or a distinctive name of the subject")
    return lines


def _name_lines(artifact: Artifact, text: str, cosine: float) -> list[str]:
    lines = []
    tokens = name_tokens(text)
    hits = NameMatcher({"": artifact.subjects}).hits(tokens)
    for number in dict.fromkeys(hit.subject for hit in hits):
        those = [hit for hit in hits if hit.subject == number]
        subject = artifact.subjects[number]
        evidence = name_evidence(subject, number, those, tokens)
        named = ", ".join(dict.fromkeys(f"{hit.name.text!r} ({hit.name.weight:g})" for hit in those))
        lines.append(
            f"  names       {named} of {subject.title or 'the facts'!r}; with {evidence.words:g} for words of its facts"
        )
        if evidence.minimum_cosine > 1:
            missing = ENOUGH - evidence.names - evidence.words - MEANING_WEIGHT
            lines.append(f"              not enough: {missing:.2f} more is needed, from another name or words")
        elif evidence.minimum_cosine > max(cosine, MEANING_FROM):
            lines.append(f"              enough with a cosine of {evidence.minimum_cosine:.2f} to a fact")
    return lines


def _excerpt(text: str) -> str:
    flat = " ".join(text.split())
    return repr(flat if len(flat) <= EXCERPT_CHARACTERS else f"{flat[: EXCERPT_CHARACTERS - 1]}…")
