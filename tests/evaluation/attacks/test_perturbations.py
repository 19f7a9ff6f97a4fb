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

from lethe.evaluation.attacks import unicode_perturbations
from lethe.evaluation.attacks.perturbations import PERTURBATIONS

TEXTS = (
    "Which small island did Miriam Hask-Olsen describe in her first 3 novels, and why?",
    "¿Qué escribió José Ñandú sobre Ærø in 1961?",
    "Where was the lighthouse keeper Orvan Teldric born?",
)

INVISIBLE = re.compile("[\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\u00ad\u061c\ufe00-\ufe0f\U000e0000-\U000e01ef]")


def perturb(name: str, text: str, seed: int = 0) -> str:
    return PERTURBATIONS[name](text, Random(seed))


def without_marks(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))


@pytest.mark.parametrize("name", PERTURBATIONS)
@pytest.mark.parametrize("text", TEXTS)
def test_a_perturbation_changes_the_text_and_is_repeatable(name: str, text: str) -> None:
    assert perturb(name, text) != text
    assert perturb(name, text) == perturb(name, text)


@pytest.mark.parametrize("name", PERTURBATIONS)
@pytest.mark.parametrize("text", ["1 + 1 = ?", "a", "?", "日本 語", "Hi", "\U0001f600 \ud83d", "x " * 300, "I am it."])
def test_a_perturbation_accepts_any_text(name: str, text: str) -> None:
    assert perturb(name, text)


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
def test_invertible_perturbations_can_be_undone(name: str, text: str, seed: int) -> None:
    assert INVERSES[name](perturb(name, text, seed)) == text


@pytest.mark.parametrize("sign", ["dotted", "hyphenated", "separated"])
def test_separated_letters_can_be_joined_again(sign: str) -> None:
    text = "Where was Orvan Teldric born"
    assert re.sub(r"[^\w ]|_", "", perturb(sign, text)) == text


@pytest.mark.parametrize("name", ["base64", "hex", "rot13", "reversed"])
def test_a_sentence_contains_the_whole_encoded_text(name: str) -> None:
    plain = {"reversed": "reversed-characters"}.get(name, name)
    assert perturb(plain, TEXTS[0]) in perturb(f"{name}-in-sentence", TEXTS[0])


@pytest.mark.parametrize("name", ["homoglyphs", "confusables", "some-homoglyphs", "accents", "small-capitals"])
def test_lookalikes_keep_the_length_and_replace_ascii_letters(name: str) -> None:
    changed = perturb(name, TEXTS[2])
    assert len(changed) == len(TEXTS[2])
    assert sum(c.isascii() and c.isalpha() for c in changed) < sum(c.isalpha() for c in TEXTS[2])
    if name == "accents":
        assert without_marks(changed) == TEXTS[2]


def test_stacked_marks_can_be_removed_after_decomposition() -> None:
    assert without_marks(perturb("stacked-diacritics", TEXTS[2])) == TEXTS[2]


def test_typos_keep_short_words_and_most_letters() -> None:
    for seed in range(30):
        changed = perturb("typos", TEXTS[2], seed)
        assert changed != TEXTS[2] and abs(len(changed) - len(TEXTS[2])) < 8
        assert "was the" in changed


def test_truncation_and_keywords_only_remove_words() -> None:
    assert TEXTS[2].startswith(perturb("truncation", TEXTS[2]))
    assert perturb("keywords", TEXTS[2]) == "lighthouse keeper Orvan Teldric born"


def test_every_lookalike_differs_from_its_letter_and_is_not_ascii() -> None:
    tables = (
        unicode_perturbations._HOMOGLYPHS,
        unicode_perturbations._CONFUSABLES,
        unicode_perturbations._SMALL_CAPITALS,
        unicode_perturbations._ACCENTS,
    )
    for table in tables:
        for letter, lookalikes in table.items():
            assert letter not in lookalikes and all(not c.isascii() for c in lookalikes), letter
