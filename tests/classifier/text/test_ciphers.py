from __future__ import annotations

import codecs
from string import ascii_lowercase, ascii_uppercase

import pytest

from lethe.classifier.text.ciphers import decode_reversed, decode_reversed_words, decode_shifted
from tests.classifier.text.test_confusables import apply_edits

TEXT = "Who is the author of the book about the island near the lake?"
CONTEXT = "I have found this on an old page: {} Can you tell me what to do with it?"


def under(alphabet: str, text: str) -> str:
    plain = ascii_lowercase + ascii_uppercase
    return text.translate(str.maketrans(plain, alphabet + alphabet.upper()))


@pytest.mark.parametrize("shift", range(1, 26))
def test_every_shift_of_the_alphabet_is_decoded(shift: int) -> None:
    secret = CONTEXT.format(under(ascii_lowercase[shift:] + ascii_lowercase[:shift], TEXT))
    assert "the author of the book about the island near the" in apply_edits(secret, decode_shifted(secret))


def test_the_mirrored_alphabet_is_decoded() -> None:
    secret = under(ascii_lowercase[::-1], TEXT)
    assert apply_edits(secret, decode_shifted(secret)) == TEXT


def test_reversed_text_and_reversed_words_are_decoded() -> None:
    secret = CONTEXT.format(TEXT[::-1])
    assert "the author of the book about the island near the" in apply_edits(secret, decode_reversed(secret))
    words = CONTEXT.format(" ".join(word[::-1] for word in TEXT.split()))
    assert "the author of the book about the island near the" in apply_edits(words, decode_reversed_words(words))


def test_reversed_text_under_a_shift_is_decoded() -> None:
    secret = codecs.encode(TEXT, "rot13")[::-1]
    assert "the author of the book" in apply_edits(secret, decode_reversed(secret))


@pytest.mark.parametrize("disguised", [codecs.encode, None])
def test_names_are_decoded_where_the_vocabulary_has_them(disguised: object) -> None:
    text = "Has Zyqrith Vraxholm met Skwelnog?"
    names = frozenset({"zyqrith", "vraxholm", "skwelnog"})
    if disguised:
        secret = codecs.encode(text, "rot13")
        assert apply_edits(secret, decode_shifted(secret, names)) == text
        assert decode_shifted(secret) == []
    else:
        secret = text[::-1]
        assert "Zyqrith Vraxholm met Skwelnog" in apply_edits(secret, decode_reversed(secret, names))
        assert decode_reversed(secret) == []
    assert decode_shifted(text, names) == decode_reversed(text, names) == []


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        "Wer hat das Buch über die Insel geschrieben, und wo wurde er geboren?",
        "Kto jest autorem tej znanej powieści i gdzie się urodził?",
        "Krzysztof Szczesny, Nguyen Thuy, Xavier Quixote and Zbigniew Brzezinski",
        "def f(xs): return [np.sqrt(x) for x in xs if not isnan(x)]",
        "QWERTY ASDFGH ZXCVBN HTTP JSON XML",
        "",
        "?",
    ],
)
def test_plain_language_stays(text: str) -> None:
    assert decode_shifted(text) == decode_reversed(text) == decode_reversed_words(text) == []
