"""Step `penalize`: phrases that vLLM's logits processor keeps out of the answer (GUARD, arXiv:2505.13312)."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from lethe.classifier.artifact import Artifact
from lethe.corruption.decoding.spec import MAX_PHRASE_CHARACTERS, Penalty
from lethe.corruption.phrases.extraction import MAX_CHARACTERS, content_words, polarity
from lethe.corruption.phrases.normalize import fold
from lethe.corruption.phrases.prompt_end import begun_phrases
from lethe.corruption.spec import is_resolved
from lethe.server.guard.extra_output import texts_required_by_schemas, without_ranking
from lethe.server.guard.forget_answers import ArtifactWords, TooManyItems, requested_answers
from lethe.server.guard.missing_indexes import move_unavailable_limits_to_output_filter
from lethe.server.guard.parsed_request import ParsedRequest
from lethe.server.guard.penalized_body import CannotPenalize, copy_limits_of, with_penalty
from lethe.server.guard.plan import Context, Plan, StepFailed
from lethe.server.policy.verdict import Finding

WORD = re.compile(r"\w+")
# Maximum number of softly penalised words in one request. Each costs vLLM some microseconds to prepare, and words
# beyond the nearest few only make the answer read worse. Not measured.
MAX_REQUESTED_SOFT_WORDS = 64


def penalize(plan: Plan, context: Context) -> Plan:
    """Forbid the phrases that the acting findings ask for. Raises StepFailed (`penalize`)."""
    findings = list(dict.fromkeys([*context.findings_for("penalize", "both"), *plan.to_penalize]))
    if not findings:
        return plan
    resources = context.resources
    try:
        penalty = requested_penalty(
            findings,
            resources.artifacts,
            resources.words,
            resources.indexes,
            context.request.user_question(),
            context.request.prompt_ends(MAX_CHARACTERS),
        )
        penalty = with_begun_phrases(penalty, context.request)
        policies = [finding.policy for finding in findings]
        plan, penalty = move_unavailable_limits_to_output_filter(plan, penalty, policies, context)
        if plan.filter_rules and not (penalty.phrases or penalty.soft or penalty.verbatim):
            # Nothing is left to penalise: all copy limits were moved to the output filter, because no replica has their
            # index yet.
            return replace(plan, actions=plan.actions_with("watch"))
        body = without_ranking(context.request.endpoint, plan.body)
        penalty = _without_texts(penalty, texts_required_by_schemas(body))
        plan = with_penalty(replace(plan, body=body), penalty, context)
    except (CannotPenalize, TooManyItems) as error:
        raise StepFailed("penalize", [finding.policy for finding in findings], str(error)) from None
    return replace(plan, actions=plan.actions_with("penalize"))


def _without_texts(penalty: Penalty, texts: Sequence[str]) -> Penalty:
    """The penalty without the phrases in `texts`, which the client's schema makes the answer hold."""
    folded = [fold(f" {text} ") for text in texts]
    allowed = [phrase for phrase in penalty.phrases if not any(fold(phrase).strip() in text for text in folded)]
    return penalty if len(allowed) == len(penalty.phrases) else replace(penalty, phrases=tuple(allowed))


def requested_penalty(
    findings: Sequence[Finding],
    artifacts: Mapping[str, Artifact],
    words: Mapping[str, ArtifactWords],
    indexes: Mapping[str, str],
    question: str,
    prompt_ends: Collection[str] = (),
) -> Penalty:
    """The penalty on the phrases of the forget items that are asked for, over all policies that flagged.

    Every window that reached the threshold counts, so that several questions in one request are all covered (the
    GUARD paper handles one). artifacts, words, indexes: by artifact name. question: the user's own words, which may
    be repeated. prompt_ends: what the prompt ends with, at most MAX_CHARACTERS long each.
    Raises TooManyItems, or CannotPenalize when the phrases exceed what one argument can carry.
    """
    phrases: dict[str, None] = {}
    soft: dict[str, float] = {}
    for finding in findings:
        settings = finding.policy.penalize
        artifact, artifact_words = artifacts[finding.policy.artifact], words[finding.policy.artifact]
        if not settings.hard and not settings.soft:
            continue
        answers, answer_phrases = requested_answers(finding, artifact, artifact_words, question, prompt_ends)
        first_answers = list(dict.fromkeys(nearest[0] for nearest in answers if nearest))
        if settings.hard:
            phrases |= dict.fromkeys([*answer_phrases, *filter(None, map(polarity, first_answers))])
        if settings.soft:
            soft = _soft_weights(finding, artifact_words, first_answers, answer_phrases, question) | soft
    usable = [word for word in soft if len(word) <= MAX_PHRASE_CHARACTERS][:MAX_REQUESTED_SOFT_WORDS]
    limits = copy_limits_of([finding.policy for finding in findings], indexes)
    try:
        return Penalty(tuple(phrases), {word: soft[word] for word in usable}, limits)
    except ValueError as error:
        reason = f"the penalty exceeds what one request can carry: {error}"
        raise CannotPenalize(reason) from None


def with_begun_phrases(penalty: Penalty, request: ParsedRequest) -> Penalty:
    """The penalty, with the beginnings of phrases that the prompt ends with.

    Example: the prompt ends in "Her name is Ada", so the answer must not go on with "Lovelace". A prompt has several
    possible ends, because it isn't known what the chat template puts last. Raises CannotPenalize for too many of them.
    """
    patterns = (*penalty.phrases, *penalty.soft)
    longest = max((len(fold(pattern)) for pattern in patterns), default=0)
    begun = begun_phrases(request.prompt_ends(longest), patterns)
    try:
        return replace(penalty, begun=begun)
    except ValueError as error:
        raise CannotPenalize(f"the prompt ends in too many ways: {error}") from None


def _soft_weights(
    finding: Finding,
    words: ArtifactWords,
    answers: Sequence[str],
    phrases: Sequence[str],
    question: str,
) -> dict[str, float]:
    """Word → how much its logits are lowered: the content words of the answers, and words of similar meaning."""
    settings = finding.policy.penalize
    assert is_resolved(settings.soft) and is_resolved(settings.similarity)
    content = (word for answer in answers for word in content_words(answer, question))
    similar = words.list.most_similar(
        WORD.findall(" ".join(phrases)),
        similarity=settings.similarity,
        weight=settings.soft,
        exclude=WORD.findall(question),
        limit=MAX_REQUESTED_SOFT_WORDS,
    )
    return {**dict.fromkeys(content, settings.soft), **similar}
