"""The phrase trie against regular expressions over the whole text."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lethe.corruption.phrases.normalize import count_letters, fold
from lethe.corruption.phrases.trie import START_STATE, PhraseTrie

TEXTS = st.text(alphabet="abA -é東京’.", max_size=14)
PHRASES = st.lists(st.text(alphabet="ab é東-", min_size=1, max_size=8), max_size=5)


def is_forbidden(phrases: list[str], text: str) -> bool:
    """Whether the folded text contains a phrase, or ends with more than half of one."""
    text = " " + fold(text)
    for phrase in (fold(phrase).strip() for phrase in phrases):
        if not phrase:
            continue
        if re.search(f" {re.escape(phrase)} ", re.sub(" +", " ", text)):
            return True
        for end in range(1, len(phrase) + 1):
            beginning = phrase[:end]
            if 2 * count_letters(beginning) > count_letters(phrase) and re.sub(" +", " ", text).endswith(
                " " + beginning
            ):
                return True
    return False


@given(PHRASES, TEXTS, TEXTS)
def test_a_piece_is_forbidden_when_the_extended_text_is(phrases: list[str], before: str, piece: str) -> None:
    trie = PhraseTrie(phrases)
    if is_forbidden(phrases, before):
        return
    state = trie.step(START_STATE, fold(before))
    assert trie.forbids(state, fold(piece)) == is_forbidden(phrases, before + piece)


@given(PHRASES, TEXTS, st.integers(0, 14))
def test_the_state_does_not_depend_on_where_the_text_is_split(phrases: list[str], text: str, cut: int) -> None:
    trie = PhraseTrie(phrases)
    whole = trie.step(START_STATE, fold(text))
    assert trie.step(trie.step(START_STATE, fold(text[:cut])), fold(text[cut:])) == whole


@pytest.mark.parametrize(
    "text",
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
def test_phrases_are_found_in_other_spellings(text: str) -> None:
    assert PhraseTrie(["Zorin Quill"]).forbids(START_STATE, fold(text))


@pytest.mark.parametrize("text", ["smart", "artful", "a r t", "start"])
def test_a_phrase_inside_another_word_is_not_found(text: str) -> None:
    assert not PhraseTrie(["art"]).forbids(START_STATE, fold(text))


def test_half_a_phrase_is_allowed_one_letter_more_is_not() -> None:
    trie = PhraseTrie(["civil engineer"])
    assert not trie.forbids(START_STATE, fold("a civil e"))
    assert trie.forbids(START_STATE, fold("a civil en"))


def test_quotes_do_not_count_as_letters_of_a_phrase() -> None:
    plain, quoted = PhraseTrie(["harbour"]), PhraseTrie(["«“ harbour ”»!!"])
    for text in ("har", "harb", "harbo"):
        assert plain.forbids(START_STATE, fold(text)) == quoted.forbids(START_STATE, fold(text))


def test_scripts_without_spaces_match_anywhere() -> None:
    assert PhraseTrie(["東京"]).forbids(START_STATE, fold("私は東京です"))


def test_another_word_with_the_same_beginning_is_allowed() -> None:
    assert not PhraseTrie(["English"]).forbids(START_STATE, fold(" England"))


def test_a_soft_weight_applies_only_where_half_is_passed() -> None:
    trie = PhraseTrie([], {"harbour": 2.0})
    before = trie.step(START_STATE, fold("the har"))
    after = trie.step(before, "bo")
    assert trie.weight(before, "bo") == 2.0
    assert trie.weight(after, "ur") == 0.0
    assert trie.weight(START_STATE, "har") == 0.0
    assert trie.weight(START_STATE, fold(" harbour wall")) == 2.0
