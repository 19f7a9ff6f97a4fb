"""Whether a request is flagged for earlier turns of its conversation alone (policy key `history`).

A refused question stays in the conversation that a client sends again with each turn. If it refused every later turn
too, one question would end the conversation for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from lethe.classifier.judge import Score
from lethe.server.guard.parsed_request import ParsedRequest
from lethe.server.guard.penalize import penalize
from lethe.server.guard.plan import Context, Plan, StepFailed, refusal_of
from lethe.server.policy.verdict import Finding, penalizing_history

# Texts → one score for each artifact, by its name.
JudgeTexts = Callable[[Sequence[str]], Mapping[str, Score]]
# How often the conversation is judged without the turns that were flagged. Chosen: bounds the work; a request that is
# still flagged then is refused.
MAX_ROUNDS = 3
# The note of such a request in the audit trail.
NOTE = "only earlier turns are flagged"
# Roles of the messages that turns consist of. Instructions and tools are part of every turn.
TURN_ROLES = frozenset({"user", "assistant", "tool", "function"})


def penalize_history(plan: Plan, context: Context) -> tuple[Plan, Context]:
    """The plan and context with which the steps go on where all refusing policies let earlier turns pass.

    Raises Refused where the current turn is flagged, and where the penalty would not hold.
    """
    refusing = context.verdict.acting
    refusal = refusal_of(refusing[0].policy)
    verdict, needs = penalizing_history(context.verdict), replace(plan.needs, plugin=True)
    is_possible = (
        verdict is not None
        and context.resources.upstream_is_vllm
        and context.capabilities.covers(context.request.model, needs)
        and not any(_lacks_copy_limit(finding, context) for finding in refusing)
    )
    if not is_possible or not flagged_for_earlier_turns_only(context.request, refusing, context.judge_texts):
        raise refusal
    assert verdict is not None
    plan = replace(plan, needs=needs, to_penalize=refusing, note=NOTE)
    try:
        penalize(plan, context)
    except StepFailed:
        # Not left to `on_failure`, which may let the request pass: the policy says `refuse`.
        raise refusal from None
    return plan, replace(context, verdict=verdict)


def _lacks_copy_limit(finding: Finding, context: Context) -> bool:
    """Whether a flagged item is a document that the answer could copy, since its artifact has no verbatim index."""
    policy = finding.policy
    items = context.resources.artifacts[policy.artifact].items
    nearest = {index for window in finding.score.window_items for index in window}
    return policy.artifact not in context.resources.indexes and any(not items[index].answer for index in nearest)


def earlier_turns(request: ParsedRequest) -> frozenset[int]:
    """The texts of earlier turns, as indexes of `request.pieces`.

    The current turn begins with the user's first message after the last answer before the user's last message: what
    the model and tools wrote since belongs to it, and so do several user messages in a row.
    """
    earlier: set[int] = set()
    for conversation in {piece.conversation for piece in request.pieces}:
        turns = [
            (index, piece.role)
            for index, piece in enumerate(request.pieces)
            if piece.conversation == conversation and piece.message and piece.role in TURN_ROLES
        ]
        start = max((at for at, (_, role) in enumerate(turns) if role == "user"), default=0)
        while start > 0 and turns[start - 1][1] != "assistant":
            start -= 1
        earlier.update(index for index, _ in turns[:start])
    return frozenset(earlier)


def flagged_for_earlier_turns_only(
    request: ParsedRequest, findings: Sequence[Finding], judge_texts: JudgeTexts
) -> bool:
    """Whether none of the findings would flag the request without the earlier turns that are flagged.

    A question that is split over earlier turns and the current one stays flagged.
    """
    earlier = earlier_turns(request)
    removed: frozenset[int] = frozenset()
    if not earlier:
        return False
    everything = frozenset(range(len(request.pieces)))
    for _ in range(MAX_ROUNDS):
        if not _flagged_pieces(request, everything - removed, findings, judge_texts):
            return True
        flagged = _flagged_pieces(request, earlier - removed, findings, judge_texts)
        if not flagged:
            return False
        removed |= flagged
    return False


def _flagged_pieces(
    request: ParsedRequest, indexes: frozenset[int], findings: Sequence[Finding], judge_texts: JudgeTexts
) -> frozenset[int]:
    """The flagged pieces, where the conversation holds only the pieces with these indexes.

    Where only joined texts are flagged, those that these are joined from.
    """
    pieces = [piece if i in indexes else piece._replace(text="") for i, piece in enumerate(request.pieces)]
    rest = replace(request, pieces=pieces)
    scores = judge_texts(rest.texts)
    flagged = {
        index
        for finding in findings
        for index, score in enumerate(scores[finding.policy.artifact].text_scores)
        if not score < finding.threshold  # a NaN score counts as flagged
    }
    single = frozenset(index for index in flagged if index < len(pieces))
    return single or frozenset(
        source for index in flagged for source in rest.sources(index) if source in indexes and pieces[source].text
    )
