"""Until vLLM has the verbatim index of a document, the output filter limits copies of it in flagged requests' answers.

An index is a file on the vLLM host, which somebody has to copy there: after a document was forgotten over HTTP that
may take a while. Without this, every flagged request of that policy would be refused until then.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from lethe.classifier.artifact import Artifact
from lethe.corruption.decoding.spec import Penalty
from lethe.corruption.phrases.normalize import fold
from lethe.corruption.phrases.phrase_list import ForbiddenPhrases
from lethe.corruption.phrases.stream_filter import FilterRule
from lethe.server.guard.plan import Context, Plan, PolicyRule
from lethe.server.policy.schema import Policy
from lethe.server.upstream.verbatim_index import protected_documents

NOTE = "vLLM does not have the index of a protected text (LETHE_VERBATIM); until then the output filter limits copies"
# The filter counts words, a copy limit tokens. A word has at least one token, usually 1.3, so half as many words as
# tokens are a stricter limit. Chosen: runs of fewer than MIN_RUN_WORDS words occur in any text.
TOKENS_PER_WORD, MIN_RUN_WORDS = 2, 4


def move_unavailable_limits_to_output_filter(
    plan: Plan, penalty: Penalty, policies: Iterable[Policy], context: Context
) -> tuple[Plan, Penalty]:
    """Move the copy limits whose index no replica has from the penalty to the plan's output filter.

    policies: those whose limits the penalty holds. Nothing is moved where replicas lack something else as well.
    """
    if not penalty.verbatim or not context.capabilities.covers(plan.model, plan.needs):
        return plan, penalty
    missing = {
        name
        for name in penalty.verbatim
        if not context.capabilities.covers(plan.model, replace(plan.needs, indexes=frozenset([name])))
    }
    by_name = {policy.name: policy for policy in policies}
    # A policy that limits copies in every answer says by `on_failure` what happens when it can't.
    missing -= {context.resources.indexes.get(policy.artifact) for policy in by_name.values() if policy.penalize.always}
    if not missing:
        return plan, penalty
    rules = []
    for policy in by_name.values():
        name = context.resources.indexes.get(policy.artifact)
        if name is not None and name in missing:
            phrases = document_runs(context.resources.artifacts[policy.artifact], penalty.verbatim[name])
            ends = context.request.prompt_ends(phrases.longest)
            rules.append(PolicyRule(policy, FilterRule(policy.name, phrases, prompt_ends=ends)))
    limits = {name: limit for name, limit in penalty.verbatim.items() if name not in missing}
    plan = replace(plan, filter_rules=(*plan.filter_rules, *rules), note=plan.note or NOTE)
    return plan, replace(penalty, verbatim=limits)


def document_runs(artifact: Artifact, limit: int) -> ForbiddenPhrases:
    """The runs of words of the artifact's documents that no answer may hold under a copy limit of so many tokens."""
    count = max(limit // TOKENS_PER_WORD, MIN_RUN_WORDS)
    key = f"document_runs of {count} words"
    if key not in artifact.derived:
        runs: set[str] = set()
        for text in protected_documents(artifact):
            words = fold(text).split()
            runs |= {" ".join(words[start : start + count]) for start in range(max(len(words) - count + 1, 1))}
        artifact.derived[key] = ForbiddenPhrases(runs)
    runs_of_artifact: ForbiddenPhrases = artifact.derived[key]
    return runs_of_artifact
