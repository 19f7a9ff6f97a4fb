from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lethe.classifier.names.tokens import name_tokens
from lethe.classifier.training.names import (
    MAX_NAME_WORDS,
    first_names,
    full_name_weight,
    last_names,
    names_in,
    number_weight,
    numbers_in,
    part_weight,
    related_weight,
)

EN = ("en",)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Where was Zorin Quill born?", ["Zorin Quill"]),
        ("Zorin Quill's aunt lives in Oskelund.", ["Zorin Quill", "Oskelund"]),
        ("Who taught Maelle van der Tordic to sail?", ["Maelle van der Tordic"]),
        ("Was Ada Example of Vardholm a painter?", ["Ada Example", "Vardholm"]),
        ("The Velsund Chronicles were written by her.", ["Velsund Chronicles"]),
        ("He wrote «The Salt Ladder» early.", ["The Salt Ladder", "Salt Ladder"]),
        ("A quién enseñó Zorín Quillareda?", ["Zorín Quillareda"]),
        ("Which is Hask-Olsen's town?", ["Hask-Olsen"]),
        ("How do I boil an egg?", []),
        ("where was zorin quill born", []),
        ("", []),
    ],
)
def test_capitalised_words_and_quoted_titles_are_names(text: str, names: list[str]) -> None:
    assert names_in(text) == names


@given(
    st.lists(st.sampled_from("Zorin Quill, de . ? Ada’s (The “Salt” of 1961 X die\n Ladder".split(" ")), max_size=14)
)
def test_every_name_is_in_the_text_and_not_too_long(words: list[str]) -> None:
    text = " ".join(words)
    for name in names_in(text):
        assert name in text and 0 < len(name_tokens(name)) <= MAX_NAME_WORDS


@pytest.mark.parametrize("name", ["Zorin Quill", "Ysra Tamlin", "Velsund", "Velsund Chronicles", "欧阳泽霖"])
def test_a_distinctive_name_is_enough_by_itself(name: str) -> None:
    assert full_name_weight(name, ("en", "zh")) == 1


@pytest.mark.parametrize("name", ["Peter Jones", "Mark Stone", "Anna Miller", "Apple", "May Day", "王伟"])
def test_a_name_of_many_bearers_is_not_enough_by_itself(name: str) -> None:
    assert 0 < full_name_weight(name, ("en", "zh")) < 1


def test_small_words_alone_are_no_name() -> None:
    for word in ("The", "of", "A.", ""):
        assert full_name_weight(word, EN) == part_weight(word, EN) == related_weight(word, EN) == 0


def test_a_rare_surname_alone_is_enough_and_a_common_one_is_not() -> None:
    assert part_weight("Vasko", EN) == part_weight("Drommel", EN) == 1
    assert part_weight("Peter", EN) == part_weight("Jones", EN) == 0
    assert part_weight("Vasko", EN) >= part_weight("Quill", EN) > 0


@pytest.mark.parametrize("name", ["Zorin Quill", "Peter Jones", "Velsund", "Apple", "Elm Street", "Jones"])
def test_a_related_name_says_no_more_than_an_own_name(name: str) -> None:
    assert related_weight(name, EN) <= full_name_weight(name, EN)


def test_german_nouns_are_no_names_in_german_text() -> None:
    assert related_weight("Haus", ("en", "de")) == related_weight("Garten", ("en", "de")) == 0


def test_first_names_and_surnames_are_lower_case() -> None:
    for names in (first_names(), last_names()):
        assert len(names) > 500 and all(name == name.casefold() for name in names)
    assert "peter" in first_names() and "jones" in last_names()


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("Born on 05/11/1991, in room 12.", ["05/11/1991"]),
        ("Call +44 20 7946 0991 or write to zorin@example.org.", ["+44 20 7946 0991", "zorin@example.org"]),
        ("DE89 3704 0044 0532 0130 00 since 1991", ["DE89 3704 0044 0532 0130 00"]),
        ("In 1991, 12 of 300 came.", []),
    ],
)
def test_long_numbers_and_addresses_are_identifiers(text: str, numbers: list[str]) -> None:
    assert numbers_in(text) == numbers


def test_a_date_says_less_than_an_account_number() -> None:
    assert number_weight("05/11/1991") < number_weight("DE89 3704 0044 0532 0130 00") == 1
