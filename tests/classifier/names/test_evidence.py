from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lethe.classifier.names.evidence import (
    FACT_COSINE,
    MAX_WORDS_WEIGHT,
    MEANING_FROM,
    MEANING_FULL,
    NameEvidence,
    name_evidence,
)
from lethe.classifier.names.matcher import NameMatcher
from lethe.classifier.names.subject import Name, Subject
from lethe.classifier.names.tokens import name_tokens

JONES = Subject(
    names=(
        Name("Peter Jones", 0.5, True),
        Name("Jones", 0.3, True),
        Name("Vardholm", 0.5, False),
        Name("Korvin Medal", 0.2, False),
    ),
    words=("boat", "harbour", "lantern", "medal", "theft", "vardholm"),
    items=(0,),
)
QUILL = Subject((Name("Zorin Quill", 1.0, True),), ("boat",), (0,))


def evidence(text: str, subject: Subject = JONES) -> NameEvidence:
    tokens = name_tokens(text)
    return name_evidence(subject, 0, NameMatcher({"a": [subject]}).hits(tokens), tokens)


def test_a_distinctive_name_decides_alone() -> None:
    assert evidence("Tell me about Zorin Quill.", QUILL).minimum_cosine == -1


def test_a_common_name_alone_needs_the_meaning_of_a_rewording() -> None:
    common = evidence("Tell me about Peter Jones.")
    assert (common.names, common.words) == (0.5, 0)
    assert common.minimum_cosine == pytest.approx(MEANING_FULL)
    assert evidence("Tell me about Jones.").minimum_cosine > 1


@pytest.mark.parametrize(
    "text",
    [
        "Did Peter Jones steal the lantern from a boat?",
        "What did Peter Jones do in Vardholm?",
        "Was the theft in the harbour by Peter Jones?",
    ],
)
def test_a_common_name_with_words_of_the_facts_decides(text: str) -> None:
    assert evidence(text).minimum_cosine == -1


def test_where_only_facts_are_to_be_forgotten_a_name_needs_a_fact() -> None:
    facts = replace(QUILL, scope="facts")
    assert evidence("Tell me about Zorin Quill and his boat.", facts).minimum_cosine == FACT_COSINE


def test_one_word_of_the_facts_lowers_what_the_meaning_must_add() -> None:
    none, one = evidence("Does Peter Jones cook?"), evidence("Does Peter Jones own a boat?")
    assert MEANING_FROM < one.minimum_cosine < none.minimum_cosine


def test_the_words_of_a_name_are_not_counted_as_words_of_the_facts_too() -> None:
    assert evidence("Peter Jones won the Korvin Medal").words == 0
    assert evidence("Peter Jones won a medal").words == 0.25


def test_a_name_that_is_said_twice_counts_once() -> None:
    assert evidence("Jones, I mean Peter Jones, and Jones again").names == 0.5
    assert evidence("Vardholm, yes, Vardholm").names == 0.5


def test_related_names_add_up_with_each_other_and_the_own_name() -> None:
    assert evidence("Vardholm and the Korvin Medal").names == pytest.approx(0.7)
    assert evidence("Peter Jones, Vardholm and the Korvin Medal").names == pytest.approx(1.2)


@given(st.lists(st.sampled_from([*JONES.words, "Peter Jones", "tea", "of"]), max_size=12))
def test_more_of_a_text_never_needs_more_meaning(parts: list[str]) -> None:
    costs = [evidence(" and ".join(parts[:n])).minimum_cosine for n in range(len(parts) + 1)]
    # A word that a later name holds counts with that name.
    assert costs == sorted(costs, reverse=True)


@given(st.sets(st.sampled_from(JONES.words)))
def test_words_alone_never_decide(parts: set[str]) -> None:
    found = evidence(" ".join(sorted(parts - {"vardholm"})))
    assert found.names == 0 and found.words <= MAX_WORDS_WEIGHT and found.minimum_cosine > MEANING_FROM


@given(st.floats(0, 2), st.floats(0, 0.5))
def test_the_needed_meaning_is_minus_one_two_or_between_the_limits(names: float, words: float) -> None:
    needed = NameEvidence(0, names, words).minimum_cosine
    assert needed in (-1, 2) or MEANING_FROM <= needed <= MEANING_FULL
