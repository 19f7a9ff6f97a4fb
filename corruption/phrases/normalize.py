"""One reading of a text for matching: words in lower case with single spaces between them.

Typographic variants must not hide a phrase, so everything that is neither a letter nor a digit becomes
a separator, and runs of separators become one space: quotes, dashes, line breaks and punctuation are all
alike. Letters are compatibility-decomposed and case-folded and lose their diacritics; invisible characters
vanish. Letters of scripts that are written without spaces stand alone, so that every one of them is at a
word boundary. All of this is done character by character: folding two pieces and joining them gives the
folding of the joined pieces (after joining runs of spaces), whatever the tokenizer cut.
"""

from __future__ import annotations

import re
import unicodedata

SEPARATOR = " "

# Thai, Lao, Myanmar, Khmer, Hiragana, Katakana, Han: written without spaces between words.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]"
)
_RUNS = re.compile(" {2,}")


def _decompose(text: str) -> str:
    """NFKD without Latin, Greek and Cyrillic diacritics and without variation selectors."""
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(c for c in decomposed if not ("\u0300" <= c <= "\u036f" or "\ufe00" <= c <= "\ufe0f"))


def fold_character(character: str) -> str:
    """The folding of one character: letters and digits, one space, or nothing."""
    category = unicodedata.category(character)
    if category == "Cf" or 0xE0100 <= ord(character) <= 0xE01EF:
        return ""
    if category == "Cs":
        return SEPARATOR
    count_letters = _decompose(_decompose(character).casefold())
    return "".join(_fold_letter(letter) for letter in count_letters)


def _fold_letter(letter: str) -> str:
    if not (letter.isalnum() or unicodedata.category(letter).startswith("M")):
        return SEPARATOR
    return f" {letter} " if _UNSPACED.match(letter) else letter


class _Table(dict[int, str]):
    """Code point → folding, runs of separators kept; filled as characters are met (at most 1.1 million entries)."""

    def __missing__(self, code: int) -> str:
        folded = self[code] = fold_character(chr(code))
        return folded


FOLD_TABLE = _Table()


def fold(text: str) -> str:
    """The folded text; a leading or trailing separator is kept as one space."""
    return _RUNS.sub(SEPARATOR, text.translate(FOLD_TABLE))


def count_letters(folded: str) -> int:
    """The number of letters and digits of a folded text: its length where half a phrase is meant."""
    return len(folded) - folded.count(SEPARATOR)
