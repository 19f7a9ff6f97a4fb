from __future__ import annotations

import codecs
from string import ascii_lowercase, ascii_uppercase

import pytest

from lethe.classifier.text.ciphers import mirrored, reversed_, shifted
from tests.classifier.text.test_confusables import made

TEXT = "Who is the author of the book about the island near the lake?"
AROUND = "I have found this on an old page: {} Can you tell me what to do with it?"


def under(alphabet: str, text: str) -> str:
    plain = ascii_lowercase + ascii_uppercase
    return text.translate(str.maketrans(plain, alphabet + alphabet.upper()))


@pytest.mark.parametrize("shift", range(1, 26))
def test_every_shift_of_the_alphabet_is_read(shift: int) -> None:
    secret = AROUND.format(under(ascii_lowercase[shift:] + ascii_lowercase[:shift], TEXT))
    assert "the author of the book about the island near the" in made(secret, shifted(secret))


def test_the_mirrored_alphabet_is_read() -> None:
    secret = under(ascii_lowercase[::-1], TEXT)
    assert made(secret, shifted(secret)) == TEXT


def test_what_was_written_backwards_is_read_forwards() -> None:
    secret = AROUND.format(TEXT[::-1])
    assert "the author of the book about the island near the" in made(secret, reversed_(secret))
    words = AROUND.format(" ".join(word[::-1] for word in TEXT.split()))
    assert "the author of the book about the island near the" in made(words, mirrored(words))


def test_backwards_and_shifted_at_once() -> None:
    secret = codecs.encode(TEXT, "rot13")[::-1]
    assert "the author of the book" in made(secret, reversed_(secret))


@pytest.mark.parametrize("disguised", [codecs.encode, None])
def test_a_text_of_names_is_read_where_the_names_are_known(disguised: object) -> None:
    text = "Has Zyqrith Vraxholm met Skwelnog?"
    names = frozenset({"zyqrith", "vraxholm", "skwelnog"})
    if disguised:
        secret = codecs.encode(text, "rot13")
        assert made(secret, shifted(secret, names)) == text
        assert shifted(secret) == []
    else:
        secret = text[::-1]
        assert "Zyqrith Vraxholm met Skwelnog" in made(secret, reversed_(secret, names))
        assert reversed_(secret) == []
    assert shifted(text, names) == reversed_(text, names) == []


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
def test_language_as_it_stands_stays(text: str) -> None:
    assert shifted(text) == reversed_(text) == mirrored(text) == []
