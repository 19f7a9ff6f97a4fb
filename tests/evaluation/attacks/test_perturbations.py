from __future__ import annotations

import base64
import codecs
import html
import re
import unicodedata
from collections.abc import Callable
from random import Random
from urllib.parse import unquote

import pytest

from lethe.evaluation.attacks import perturbations
from lethe.evaluation.attacks.perturbations import DISGUISES

TEXTS = (
    "Which small island did Miriam Hask-Olsen describe in her first 3 novels, and why?",
    "¿Qué escribió José Ñandú sobre Ærø in 1961?",
    "Where was the lighthouse keeper Orvan Teldric born?",
)

INVISIBLE = re.compile("[\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\u00ad\u061c\ufe00-\ufe0f\U000e0000-\U000e01ef]")


def made(name: str, text: str, seed: int = 0) -> str:
    return DISGUISES[name](text, Random(seed))


def without_marks(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))


@pytest.mark.parametrize("name", DISGUISES)
@pytest.mark.parametrize("text", TEXTS)
def test_a_disguise_changes_the_text_and_is_repeatable(name: str, text: str) -> None:
    assert made(name, text) != text
    assert made(name, text) == made(name, text)


@pytest.mark.parametrize("name", DISGUISES)
@pytest.mark.parametrize("text", ["1 + 1 = ?", "a", "?", "日本 語", "Hi", "\U0001f600 \ud83d", "x " * 300, "I am it."])
def test_a_disguise_takes_any_text(name: str, text: str) -> None:
    assert made(name, text)


INVERSES: dict[str, Callable[[str], str]] = {
    "zero-width": lambda t: INVISIBLE.sub("", t),
    "bidi-marks": lambda t: INVISIBLE.sub("", t),
    "variation-selectors": lambda t: INVISIBLE.sub("", t),
    "tags-between": lambda t: INVISIBLE.sub("", t),
    "bidi-override": lambda t: INVISIBLE.sub("", t)[::-1],
    "tag-smuggling": lambda t: "".join(
        chr(ord(c) - 0xE0000) if 0xE0020 <= ord(c) < 0xE007F else c for c in t.partition(". ")[2]
    ),
    "fullwidth": lambda t: unicodedata.normalize("NFKC", t),
    "mathematical": lambda t: unicodedata.normalize("NFKC", t),
    "base64": lambda t: base64.b64decode(t, validate=True).decode(),
    "base64-url-safe": lambda t: base64.urlsafe_b64decode(t + "=" * (-len(t) % 4)).decode(),
    "base64-lines": lambda t: base64.b64decode(t).decode(),
    "base64-nested": lambda t: base64.b64decode(base64.b64decode(t)).decode(),
    "hex": lambda t: bytes.fromhex(t).decode(),
    "hex-apart": lambda t: bytes.fromhex(re.sub(r"0x|\\x|:| ", "", t)).decode(),
    "url-encoding": unquote,
    "url-encoding-as-usual": unquote,
    "html-entities": html.unescape,
    "unicode-escapes": lambda t: (
        t.encode("ascii").decode("unicode_escape").encode("utf-16", "surrogatepass").decode("utf-16")
    ),
    "rot13": lambda t: codecs.decode(t, "rot13"),
    "reversed-characters": lambda t: t[::-1],
    "reversed-letters": lambda t: " ".join(word[::-1] for word in t.split()),
    "reversed-words": lambda t: " ".join(reversed(t.split())),
    "html-in-words": lambda t: re.sub(r"<!-- -->|<[^>]*>|\u200b", "", t),
    "special-tokens-in-words": lambda t: re.sub(r"<\|\w+\|>|</?\w+>|\[INST\]", "", t),
    "spaced": lambda t: " ".join(word.replace(" ", "") for word in t.split("   ")),
    "markdown-in-words": lambda t: re.sub(r"[*_~`]", "", t),
}


@pytest.mark.parametrize("name", INVERSES)
@pytest.mark.parametrize("text", TEXTS[::2])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_is_invertible_comes_back(name: str, text: str, seed: int) -> None:
    assert INVERSES[name](made(name, text, seed)) == text


@pytest.mark.parametrize("sign", ["dotted", "hyphenated", "separated"])
def test_letters_apart_come_back_without_the_signs(sign: str) -> None:
    text = "Where was Orvan Teldric born"
    assert re.sub(r"[^\w ]|_", "", made(sign, text)) == text


@pytest.mark.parametrize("name", ["base64", "hex", "rot13", "reversed"])
def test_an_encoding_in_a_sentence_stands_in_it_whole(name: str) -> None:
    plain = {"reversed": "reversed-characters"}.get(name, name)
    assert made(plain, TEXTS[0]) in made(f"{name}-in-sentence", TEXTS[0])


@pytest.mark.parametrize("name", ["homoglyphs", "confusables", "some-homoglyphs", "accents", "small-capitals"])
def test_lookalikes_keep_the_length_and_leave_no_ascii_word(name: str) -> None:
    changed = made(name, TEXTS[2])
    assert len(changed) == len(TEXTS[2])
    assert sum(c.isascii() and c.isalpha() for c in changed) < sum(c.isalpha() for c in TEXTS[2])
    if name == "accents":
        assert without_marks(changed) == TEXTS[2]


def test_stacked_marks_fall_away_when_decomposed() -> None:
    assert without_marks(made("stacked-diacritics", TEXTS[2])) == TEXTS[2]


def test_typos_leave_short_words_and_most_letters() -> None:
    for seed in range(30):
        changed = made("typos", TEXTS[2], seed)
        assert changed != TEXTS[2] and abs(len(changed) - len(TEXTS[2])) < 8
        assert "was the" in changed


def test_truncation_and_keywords_only_leave_out() -> None:
    assert TEXTS[2].startswith(made("truncation", TEXTS[2]))
    assert made("keywords", TEXTS[2]) == "lighthouse keeper Orvan Teldric born"


def test_every_lookalike_is_one_character_that_is_not_its_letter() -> None:
    tables = (
        perturbations._HOMOGLYPHS,
        perturbations._CONFUSABLES,
        perturbations._SMALL_CAPITALS,
        perturbations._ACCENTS,
    )
    for table in tables:
        for letter, looks in table.items():
            assert letter not in looks and all(not c.isascii() for c in looks), letter
