"""The automaton of phrases against regular expressions over the whole text."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lethe.corruption.phrases.normalize import count_letters, fold
from lethe.corruption.phrases.trie import START_STATE, PhraseTrie

TEXTS = st.text(alphabet="abA -é東京’.", max_size=14)
PHRASES = st.lists(st.text(alphabet="ab é東-", min_size=1, max_size=8), max_size=5)


def first_fault(phrases: list[str], text: str) -> bool:
    """The obvious reference: does the folded text so far hold a phrase, or end with too much of one?"""
    text = " " + fold(text)
    for phrase in (fold(phrase).strip() for phrase in phrases):
        if not phrase:
            continue
        if re.search(f" {re.escape(phrase)} ", re.sub(" +", " ", text)):
            return True
        for end in range(1, len(phrase) + 1):
            begun = phrase[:end]
            if 2 * count_letters(begun) > count_letters(phrase) and re.sub(" +", " ", text).endswith(" " + begun):
                return True
    return False


@given(PHRASES, TEXTS, TEXTS)
def test_a_piece_is_forbidden_exactly_when_the_text_with_it_is(phrases: list[str], before: str, piece: str) -> None:
    matcher = PhraseTrie(phrases)
    if first_fault(phrases, before):
        return
    state = matcher.step(START_STATE, fold(before))
    assert matcher.forbids(state, fold(piece)) == first_fault(phrases, before + piece)


@given(PHRASES, TEXTS, st.integers(0, 14))
def test_the_state_does_not_depend_on_where_the_text_is_cut(phrases: list[str], text: str, cut: int) -> None:
    matcher = PhraseTrie(phrases)
    whole = matcher.step(START_STATE, fold(text))
    assert matcher.step(matcher.step(START_STATE, fold(text[:cut])), fold(text[cut:])) == whole


@pytest.mark.parametrize(
    "said",
    [
        "ZORIN QUILL",
        "zorin\n\nquill",
        "Zorin-Quill's",
        "“Zorin Quill”",
        "Zo\u200brin Quill",
        "Ｚorin Quíll",
        "the Zorin — Quill,",
    ],
)
def test_a_phrase_is_found_however_it_is_written(said: str) -> None:
    assert PhraseTrie(["Zorin Quill"]).forbids(START_STATE, fold(said))


@pytest.mark.parametrize("said", ["smart", "artful", "a r t", "start"])
def test_a_phrase_inside_another_word_is_not_found(said: str) -> None:
    assert not PhraseTrie(["art"]).forbids(START_STATE, fold(said))


def test_half_of_a_phrase_may_stand_and_one_letter_more_may_not() -> None:
    matcher = PhraseTrie(["civil engineer"])
    assert not matcher.forbids(START_STATE, fold("a civil e"))
    assert matcher.forbids(START_STATE, fold("a civil en"))


def test_quotes_around_a_phrase_do_not_lengthen_its_half() -> None:
    plain, quoted = PhraseTrie(["harbour"]), PhraseTrie(["«“ harbour ”»!!"])
    for said in ("har", "harb", "harbo"):
        assert plain.forbids(START_STATE, fold(said)) == quoted.forbids(START_STATE, fold(said))


def test_scripts_without_spaces_match_inside_a_run_of_letters() -> None:
    assert PhraseTrie(["東京"]).forbids(START_STATE, fold("私は東京です"))


def test_a_piece_that_passes_through_and_goes_another_way_is_free() -> None:
    assert not PhraseTrie(["English"]).forbids(START_STATE, fold(" England"))


def test_a_soft_word_weighs_only_where_its_half_is_passed() -> None:
    matcher = PhraseTrie([], {"harbour": 2.0})
    begun = matcher.step(START_STATE, fold("the har"))
    past = matcher.step(begun, "bo")
    assert matcher.weight(begun, "bo") == 2.0
    assert matcher.weight(past, "ur") == 0.0
    assert matcher.weight(START_STATE, "har") == 0.0
    assert matcher.weight(START_STATE, fold(" harbour wall")) == 2.0
