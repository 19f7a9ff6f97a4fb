"""Text normalised for matching ("folded"): words in lower case, separated by single spaces.

Typographic variants must not hide a phrase. So everything that is neither a letter nor a digit becomes a separator,
and several separators become one space: quotes, dashes, line breaks and punctuation make no difference. Letters are
compatibility-decomposed (NFKD) and case-folded, and lose their diacritics. Invisible characters are removed. In
scripts that are written without spaces, each letter is a word of its own, so that a phrase may start at any of them.

Folding works character by character: folding two pieces and joining the results gives the folding of the joined
pieces (after merging spaces), wherever a tokenizer split them.
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
_SEVERAL_SEPARATORS = re.compile(" {2,}")


def _decompose(text: str) -> str:
    """Return the NFKD form without Latin, Greek and Cyrillic diacritics and without variation selectors."""
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(c for c in decomposed if not ("\u0300" <= c <= "\u036f" or "\ufe00" <= c <= "\ufe0f"))


def fold_character(character: str) -> str:
    """Return the folding of one character: letters and digits, one space, or nothing."""
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
    """Code point → folding, for `str.translate`; filled on first use, with at most 1.1 million entries."""

    def __missing__(self, code: int) -> str:
        folded = self[code] = fold_character(chr(code))
        return folded


FOLD_TABLE = _Table()


def fold(text: str) -> str:
    """Return the folded text. A leading or trailing separator remains as one space."""
    return _SEVERAL_SEPARATORS.sub(SEPARATOR, text.translate(FOLD_TABLE))


def count_letters(folded: str) -> int:
    """Return the number of letters and digits of a folded text. "Half a phrase" means half of these."""
    return len(folded) - folded.count(SEPARATOR)
