"""Documents whose index vLLM lacks: flagged requests are answered under the output filter, not refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lethe.classifier.artifact import ForgetItem
from lethe.corruption.phrases.stream_filter import AnswerFilter, FilterRule
from lethe.server.guard.missing_indexes import MIN_RUN_WORDS, NOTE, TOKENS_PER_WORD, document_runs
from lethe.server.upstream.capabilities import Capabilities
from tests.server.fakes import policy
from tests.server.guard.test_guard import INDEX, ITEM, QUESTION, TEXT, artifact, chat, examine, keeping

LONG = " ".join(f"word{number} of the tale," for number in range(60))


@pytest.mark.parametrize("settings", [{"verbatim": 12}, {"verbatim": 12, "hard": False}])
def test_a_flagged_request_is_filtered_until_the_index_is_there(settings: dict[str, Any]) -> None:
    made = keeping(policy(action="penalize", penalize=settings), there=False)
    outcome = examine(made, chat(QUESTION))
    assert outcome.refusal is None and outcome.note == NOTE
    assert [entry.policy.name for entry in outcome.result.plan.filter_rules] == ["p"]
    made.capabilities = Capabilities.of_any_model(indexes=[INDEX])
    outcome = examine(made, chat(QUESTION))
    assert outcome.note is None and not outcome.result.plan.filter_rules


@given(st.integers(1, 40), st.integers(0, 239), st.integers(0, 60))
def test_no_answer_copies_more_of_a_document_than_the_limit(limit: int, start: int, length: int) -> None:
    whole = dataclasses.replace(artifact(), items=(ITEM, ForgetItem("", "", LONG)))
    runs = document_runs(whole, limit)
    assert runs is document_runs(whole, limit)
    copied = LONG.split()[start : start + length]
    shown = AnswerFilter([FilterRule("p", runs)]).new_matcher().whole(" ".join(copied)).split()
    # A text that ends on most of a run loses it, since it may have meant the run.
    assert shown == copied[: len(shown)] and len(shown) < max(limit // TOKENS_PER_WORD, MIN_RUN_WORDS)
    other = "An answer that says something else altogether, in words of its own, is left as it is."
    assert AnswerFilter([FilterRule("p", runs)]).new_matcher().whole(other) == other


def test_a_short_document_is_one_run() -> None:
    whole = dataclasses.replace(artifact(), items=(ForgetItem("", "", TEXT[:22]),))
    assert len(document_runs(whole, 40)) == 1
