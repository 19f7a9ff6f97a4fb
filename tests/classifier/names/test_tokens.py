from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lethe.classifier.names.tokens import MAX_ENDING, SCRIPT_MARK, SOUND_MARK, is_form_of, name_tokens, sound

LATIN = "abcdefghijklmnopqrstuvwxyzàáâãäåæçèéêëìíîïñòóôõöøùúûüýÿœăąćčďđęěğłńňőřśšşťůűźżž"
GREEK_AND_CYRILLIC = "αβγδεζηθικλμνξοπρστυφχψωάέήίόύώабвгдежзийклмнопрстуфхцчшщыэюяёіїєґ"
cased_words = st.text(LATIN + GREEK_AND_CYRILLIC, min_size=1, max_size=12)
latin_words = st.text(LATIN, min_size=1, max_size=12)
between = st.sampled_from([" ", "-", "‑", ", ", ". ", " — ", "'", "’", "\n", "_", "/", " (", "\u00a0", "、"])


@given(cased_words)
def test_every_case_gives_the_same_tokens(word: str) -> None:
    assert name_tokens(word.upper()) == name_tokens(word.title()) == name_tokens(word)


@given(latin_words)
def test_letters_without_their_accents_give_the_same_tokens(word: str) -> None:
    bare = "".join(c for c in unicodedata.normalize("NFD", word) if not unicodedata.combining(c))
    assert name_tokens(word) == name_tokens(bare) == name_tokens(unicodedata.normalize("NFD", word))


@given(st.lists(cased_words, min_size=1, max_size=5), st.data())
def test_punctuation_separates_words_and_is_no_token(words: list[str], data: st.DataObject) -> None:
    text = words[0] + "".join(data.draw(between) + word for word in words[1:])
    assert name_tokens(text) == [token for word in words for token in name_tokens(word)]


@given(st.text(max_size=60))
def test_tokens_hold_no_blank_and_no_capital(text: str) -> None:
    for token in name_tokens(text):
        assert token and token == token.strip().casefold() and " " not in token


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Zorin Quill's ferry", ["zorin", "quill", "s", "ferry"]),
        ("ZORÍN Ouill", ["zorin", "ouill"]),
        ("Straße 12", ["strasse", "12"]),
        ("Ｚｏｒｉｎ", ["zorin"]),
        ("Зорин 12", [f"{SCRIPT_MARK}zorin", "12"]),
        ("欧阳泽霖在哪里", list("欧阳泽霖在哪里")),
        ("Ada与欧阳", ["ada", "与", "欧", "阳"]),
        ("ゾリン", list("ゾリン")),
        ("", []),
        ("… — !", []),
    ],
)
def test_texts_of_several_scripts_give_these_tokens(text: str, tokens: list[str]) -> None:
    assert name_tokens(text) == tokens


@pytest.mark.parametrize("token", ["quill", "quills", "quilles"])
def test_a_word_with_an_ending_is_a_form_of_the_word(token: str) -> None:
    assert is_form_of(token, "quill")


@pytest.mark.parametrize(
    ("token", "word"), [("quilling", "quill"), ("quil", "quill"), ("adas", "ada"), ("aquill", "quill")]
)
def test_other_words_are_no_forms_of_the_word(token: str, word: str) -> None:
    assert not is_form_of(token, word)


@given(st.text("abcxyz", min_size=5, max_size=9), st.text("abcxyz", max_size=5))
def test_an_ending_has_a_greatest_length(word: str, ending: str) -> None:
    assert is_form_of(word + ending, word) == (len(ending) <= MAX_ENDING)


@pytest.mark.parametrize(
    "spellings",
    [("vermeer", "Вермеер", "ফারমির"), ("picasso", "Пикассо", "Πικάσο", "पिकासो"), ("tamlin", "Тамлин", "تاملين")],
)
def test_one_name_in_several_alphabets_has_one_sound(spellings: tuple[str, ...]) -> None:
    latin, *others = spellings
    assert {sound(token) for other in others for token in name_tokens(other)} == {sound(latin)}


@given(st.text("abcdefghijklmnopqrstuvwxyz", max_size=12))
def test_a_sound_has_no_vowels_and_no_letter_twice(word: str) -> None:
    consonants = sound(word).removeprefix(SOUND_MARK)
    assert not set(consonants) & set("aeiouyhw") and len(consonants) <= 2 * len(word)
    assert all(one != other for one, other in zip(consonants, consonants[1:], strict=False))
