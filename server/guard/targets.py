"""Which message parts of a flagged request are corrupted, and which characters of them.

The rule: what is judged is what is acted on. After the parts with evidence are chosen, the text that would stay
readable is judged again, each part and the conversation as a whole. Where it is still flagged, every part that the
flagged text touches is corrupted whole. So a second, more conspicuous question beside the real one, a question that is
split over parts or messages, and more names than the evidence can hold leave nothing readable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from lethe.classifier.artifact import Artifact
from lethe.classifier.attribution import evidence_spans
from lethe.classifier.judge import Score
from lethe.corruption.prompt.message_parts import PartLocation
from lethe.corruption.spec import CorruptSpec
from lethe.server.guard.parsed_request import ParsedRequest
from lethe.server.policy.verdict import Finding
from lethe.server.requests.request_text import RequestText

# (start, end) in characters of a part's text.
Span = tuple[int, int]
# Texts → one score for each artifact, by its name.
JudgeTexts = Callable[[Sequence[str]], Mapping[str, Score]]
# A user message of at most this many characters may be a piece of a question that was split over several messages,
# so that no piece holds a whole name. Chosen, not measured: longer than nearly all names and dates.
FRAGMENT_CHARS = 64
# What a model may see between two parts or messages: nothing, or a line break.
JOINTS = ("", "\n")
# How often the readable rest is judged. Each round corrupts at least one more part whole, and nearly all requests need
# one; past the last round all parts are corrupted. Chosen: bounds the work of a flagged request.
MAX_ROUNDS = 3


@dataclass
class CorruptionTargets:
    """parts: message part → the spans of its text to corrupt; an empty list means all of it.

    unreachable: flagged places that can't be given as embeddings (tool schemas, names), as paths in the body.
    """

    parts: dict[PartLocation, list[Span]] = field(default_factory=dict)
    unreachable: list[str] = field(default_factory=list)

    def add(self, target: PartLocation, spans: Sequence[Span]) -> None:
        """Corrupt `spans` of a part, beside those it has.

        No spans, or a part that is already corrupted whole: the whole part.
        """
        whole = not spans or self.parts.get(target) == []
        self.parts[target] = [] if whole else [*self.parts.get(target, []), *spans]

    def add_place(self, place: str) -> None:
        """Note a flagged place that can't be corrupted."""
        if place not in self.unreachable:
            self.unreachable.append(place)


def corruption_targets(
    request: ParsedRequest,
    findings: Sequence[Finding],
    artifacts: Sequence[Artifact],
    spec: CorruptSpec,
    judge_texts: JudgeTexts,
) -> CorruptionTargets:
    """What all findings together flag.

    artifacts: that of each finding, in the same order. judge_texts: judges what stays readable.
    """
    targets = CorruptionTargets()
    for finding, artifact in zip(findings, artifacts, strict=True):
        _add_flagged(targets, request, finding, artifact, spec)
        _add_split_evidence(targets, request, finding, artifact)
    for _ in range(MAX_ROUNDS):
        if not _add_readable_rest(targets, request, findings, judge_texts):
            return targets
    for piece in request.pieces:
        if piece.part_location is not None and piece.text.strip():
            targets.add(piece.part_location, [])
    return targets


def _add_flagged(
    targets: CorruptionTargets, request: ParsedRequest, finding: Finding, artifact: Artifact, spec: CorruptSpec
) -> None:
    """Add the parts that are flagged by themselves; where none is, those that the conversation is flagged for."""
    scores = finding.score.text_scores
    flagged = [p for p, score in zip(request.pieces, scores, strict=False) if _reaches(score, finding)]
    for piece in flagged:
        if piece.part_location is None:
            targets.add_place(piece.place)
        else:
            spans = evidence_spans(artifact, piece.text) if spec.uses_evidence else ()
            targets.add(piece.part_location, spans)
    if not flagged:
        _add_conversation(targets, request, artifact, spec)


def _add_conversation(
    targets: CorruptionTargets, request: ParsedRequest, artifact: Artifact, spec: CorruptSpec
) -> None:
    """Only the conversation as a whole is flagged: add the parts that hold evidence.

    Add short user messages too, which may be fragments of a split question (FRAGMENT_CHARS). If no part holds evidence,
    add all parts.
    """
    pieces = {p.part_location: p for p in request.pieces if p.part_location is not None and p.text.strip()}
    if not pieces:
        targets.add_place("conversation")
    with_evidence = {target: spans for target, p in pieces.items() if (spans := evidence_spans(artifact, p.text))}
    for target, piece in pieces.items():
        if piece.role == "user" and len(piece.text.strip()) <= FRAGMENT_CHARS and target not in with_evidence:
            targets.add(target, [])
    for target, spans in with_evidence.items():
        targets.add(target, spans if spec.uses_evidence else [])
    if not with_evidence:
        for target in pieces:
            targets.add(target, [])


def _add_split_evidence(
    targets: CorruptionTargets, request: ParsedRequest, finding: Finding, artifact: Artifact
) -> None:
    """Add in full every part over which a name, number or word of the evidence is split.

    (`Score.text_scores` has one score for each piece, then one for each joined text.)
    """
    joined_scores = finding.score.text_scores[len(request.pieces) :]
    scored = zip(request.joined_texts, joined_scores, strict=False)
    for joined in (joined for joined, score in scored if _reaches(score, finding)):
        for span in evidence_spans(artifact, joined.text):
            sources = joined.sources_at(*span)
            places = [request.pieces[source].part_location for source in sources]
            if len(set(places)) > 1:
                for target in places:
                    if target is not None:
                        targets.add(target, [])


def _add_readable_rest(
    targets: CorruptionTargets, request: ParsedRequest, findings: Sequence[Finding], judge_texts: JudgeTexts
) -> bool:
    """Judge what stays readable. Where it is still flagged, add in full the parts it comes from.

    False if nothing was added.
    """
    rest = ParsedRequest(request.endpoint, request.body, [_readable_piece(piece, targets) for piece in request.pieces])
    if not any(piece.text.strip() for piece in rest.pieces):
        return False
    scores = judge_texts(rest.texts)
    flagged: set[int] = set()
    for finding in findings:
        text_scores = scores[finding.policy.artifact].text_scores
        flagged |= {s for i, score in enumerate(text_scores) if _reaches(score, finding) for s in rest.sources(i)}
        flagged |= _flagged_pieces_of_whole(rest, finding, judge_texts)
    added = False
    for piece in (rest.pieces[source] for source in sorted(flagged)):
        if piece.part_location is None:
            targets.add_place(piece.place)
        elif piece.text.strip() and targets.parts.get(piece.part_location) != []:
            targets.add(piece.part_location, [])
            added = True
    return added


def _flagged_pieces_of_whole(rest: ParsedRequest, finding: Finding, judge_texts: JudgeTexts) -> set[int]:
    """The pieces that the flagged window of all readable text touches, however they are put together.

    The joined texts of a request are made for whole questions; what is left of one between corrupted characters may lie
    across them.
    """
    found: set[int] = set()
    for separator in JOINTS:
        score = judge_texts([separator.join(piece.text for piece in rest.pieces)])[finding.policy.artifact]
        if not _reaches(score.score, finding):
            continue
        position = 0
        for source, piece in enumerate(rest.pieces):
            if position < score.window[1] and position + len(piece.text) > score.window[0]:
                found.add(source)
            position += len(piece.text) + len(separator)
    return found


def _readable_piece(piece: RequestText, targets: CorruptionTargets) -> RequestText:
    """What stays readable of a text. A flagged place that can't be corrupted is left to `on_unsupported`."""
    if piece.part_location is None:
        return piece._replace(text="") if piece.place in targets.unreachable else piece
    spans = targets.parts.get(piece.part_location)
    if spans is None:
        return piece
    readable, position = [], 0
    for start, end in sorted(spans) or [(0, len(piece.text))]:
        readable.append(piece.text[position:start])
        position = max(position, end)
    # A blank in the place of what is corrupted: the words around it must not join to another one.
    return piece._replace(text=" ".join([*readable, piece.text[position:]]))


def _reaches(score: float, finding: Finding) -> bool:
    # A NaN score counts as flagged.
    return not score < finding.threshold
