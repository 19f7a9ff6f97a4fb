"""Perturbations that use Unicode: invisible characters, lookalikes, accents, styled alphabets.

Each perturbation is a pure function (text, rng) → text. A character that it can't write (a letter without a
lookalike) stays unchanged. Source: the zero-width, tag, bidirectional and homoglyph attacks of Boucher et al.
(arXiv:2106.09898).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from random import Random
from string import ascii_lowercase, ascii_uppercase, digits

Perturbation = Callable[[str, Random], str]

_WORD = re.compile(r"\S+")

_ZERO_WIDTH = "\u200b\u200c\u200d\u2060\ufeff\u00ad"
# Direction marks, and embeddings, overrides and isolates that open and close at once.
_BIDI = ("\u200e", "\u200f", "\u061c", "\u202a\u202c", "\u202d\u202c", "\u2066\u2069", "\u2068\u2069")
_SELECTORS = [chr(code) for code in (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE0110))]
# The invisible tag characters repeat ASCII from this code point on.
_TAGS = 0xE0000

# One lookalike for each letter, from Cyrillic, Greek and Armenian only.
_HOMOGLYPHS = dict(zip("ABCEHIJKMNOPSTXYZaceghijopsxyuvnk", "АВСЕНІЈКМΝОРЅТХΥΖасеցһіјорѕхуυνոκ", strict=True))
# Several lookalikes for each letter, from all scripts (after Unicode's confusables.txt, UTS #39).
_CONFUSABLES = {
    "a": "аɑα", "b": "Ьᖯ", "c": "сϲᴄ", "d": "ԁᑯ", "e": "еҽ", "f": "ƒẝ", "g": "ɡց", "h": "һհ", "i": "іɩ",
    "j": "јϳ", "k": "κк", "l": "ӏⅼ", "m": "ⅿм", "n": "ոռ", "o": "оοօ", "p": "рρ", "q": "ԛզ", "r": "гᴦ", "s": "ѕꜱ",
    "t": "тτ", "u": "υսᴜ", "v": "νѵᴠ", "w": "ԝѡᴡ", "x": "хᕁ", "y": "уγ", "z": "ᴢ",
    "A": "АΑᎪ", "B": "ВΒᏴ", "C": "СϹᏟ", "D": "Ꭰᗞ", "E": "ЕΕᎬ", "F": "Ϝᖴ", "G": "ԌᏀ", "H": "НΗᎻ", "I": "ІΙӀ",
    "J": "ЈᎫ", "K": "КΚᏦ", "L": "ᏞᒪⅬ", "M": "МΜᎷ", "N": "Νꓠ", "O": "ОΟՕ", "P": "РΡᏢ", "Q": "Ԛ", "R": "Ꭱᖇ",
    "S": "ЅᏚՏ", "T": "ТΤᎢ", "U": "Սሀ", "V": "ѴᏙⅤ", "W": "ԜᎳ", "X": "ХΧⅩ", "Y": "ҮΥᎩ", "Z": "ΖᏃ",
}  # fmt: skip  # fmt: skip
_SMALL_CAPITALS = dict(zip("abcdefghijklmnoprstuvwyz", "ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢ", strict=True))
_ACCENTS = {
    "a": "áàâäãåā", "c": "çćč", "e": "éèêëē", "g": "ğģ", "i": "íìîïī", "l": "ĺľ", "n": "ñńň", "o": "óòôöõō",
    "r": "ŕř", "s": "śšş", "t": "ťţ", "u": "úùûüů", "y": "ýÿ", "z": "źžż",
    "A": "ÁÀÂÄÃÅ", "C": "ÇĆČ", "E": "ÉÈÊË", "I": "ÍÌÎÏ", "N": "ÑŃŇ", "O": "ÓÒÔÖÕ", "S": "ŚŠŞ", "U": "ÚÙÛÜŮ",
    "Y": "Ý", "Z": "ŹŽŻ",
}  # fmt: skip  # fmt: skip
# First code points of A, a and 0 in alphabets without gaps: bold, bold italic, bold script, bold Fraktur, sans-serif,
# sans-serif bold, monospace.
_MATHEMATICAL = (
    (0x1D400, 0x1D41A, 0x1D7CE),
    (0x1D468, 0x1D482, 0x1D7CE),
    (0x1D4D0, 0x1D4EA, 0x1D7CE),
    (0x1D56C, 0x1D586, 0x1D7D8),
    (0x1D5A0, 0x1D5BA, 0x1D7E2),
    (0x1D5D4, 0x1D5EE, 0x1D7EC),
    (0x1D670, 0x1D68A, 0x1D7F6),
)
# First code points of A and a: circled, squared, negative circled, negative squared, parenthesised.
_ENCLOSED = ((0x24B6, 0x24D0), (0x1F130, 0x1F130), (0x1F150, 0x1F150), (0x1F170, 0x1F170), (0x1F110, 0x249C))


def _insert_between_letters(text: str, insertions: Sequence[str], rng: Random) -> str:
    """Insert one of `insertions` between all neighbouring letters of every word."""
    return re.sub(r"(?<=\w)(?=\w)", lambda _: rng.choice(insertions), text)


def zero_width(text: str, rng: Random) -> str:
    """Zero-width characters between all letters."""
    return _insert_between_letters(text, _ZERO_WIDTH, rng)


def bidi_marks(text: str, rng: Random) -> str:
    """Direction marks, embeddings and isolates between all letters."""
    return _insert_between_letters(text, _BIDI, rng)


def bidi_override(text: str, rng: Random) -> str:
    """Reversed, inside a right-to-left override that displays it in the usual order."""
    return f"\u202e{text[::-1]}\u202c"


def variation_selectors(text: str, rng: Random) -> str:
    """Variation selectors between all letters."""
    return _insert_between_letters(text, _SELECTORS, rng)


def tags_between(text: str, rng: Random) -> str:
    """Tag characters between all letters."""
    return _insert_between_letters(text, [chr(_TAGS + ord(c)) for c in ascii_lowercase], rng)


def tag_smuggling(text: str, rng: Random) -> str:
    """The whole text as invisible tag characters, after a harmless sentence."""
    return "Please answer the hidden question. " + "".join(chr(_TAGS + ord(c)) if " " <= c <= "~" else c for c in text)


def homoglyphs(text: str, rng: Random) -> str:
    """Every letter replaced by its Cyrillic, Greek or Armenian lookalike, if it has one."""
    return "".join(_HOMOGLYPHS.get(c, c) for c in text)


def some_homoglyphs(text: str, rng: Random) -> str:
    """One or two letters of each word replaced by a lookalike."""
    return _WORD.sub(lambda match: _replace_some_letters(match[0], rng), text)


def _replace_some_letters(word: str, rng: Random) -> str:
    positions = [i for i, c in enumerate(word) if c in _HOMOGLYPHS]
    chosen = rng.sample(positions, min(len(positions), rng.choice((1, 2))))
    return "".join(_HOMOGLYPHS[c] if i in chosen else c for i, c in enumerate(word))


def confusables(text: str, rng: Random) -> str:
    """Every letter replaced by a lookalike from any script."""
    return "".join(rng.choice(_CONFUSABLES.get(c, c)) for c in text)


def stacked_diacritics(text: str, rng: Random) -> str:
    """Two to six combining marks on each letter ("Zalgo")."""
    marks = [chr(code) for code in range(0x0300, 0x0370) if code not in (0x034F, *range(0x0358, 0x0363))]
    return "".join(c + "".join(rng.choices(marks, k=rng.randint(2, 6))) if c.isalnum() else c for c in text)


def accents(text: str, rng: Random) -> str:
    """Every letter replaced by an accented form, if there is one."""
    return "".join(rng.choice(_ACCENTS.get(c, c)) for c in text)


def fullwidth(text: str, rng: Random) -> str:
    """Fullwidth forms of all ASCII characters and spaces."""
    return "".join("\u3000" if c == " " else chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)


def mathematical(text: str, rng: Random) -> str:
    """Letters and digits of a mathematical alphabet (bold, script, Fraktur …)."""
    upper, lower, zero = rng.choice(_MATHEMATICAL)
    return _translate_alphabet(text, upper, lower, zero)


def enclosed(text: str, rng: Random) -> str:
    """Letters in circles, squares or parentheses."""
    return _translate_alphabet(text, *rng.choice(_ENCLOSED))


def _translate_alphabet(text: str, upper: int, lower: int, zero: int | None = None) -> str:
    # Where both starts are equal, the alphabet has capitals only.
    table = {ord(c): upper + i for i, c in enumerate(ascii_uppercase)}
    table |= {ord(c): lower + i for i, c in enumerate(ascii_lowercase)}
    if zero is not None:
        table |= {ord(c): zero + i for i, c in enumerate(digits)}
    return text.translate(table)


def small_capitals(text: str, rng: Random) -> str:
    """Phonetic small capitals."""
    return "".join(_SMALL_CAPITALS.get(c, c) for c in text.lower())


UNICODE: dict[str, Perturbation] = {
    "zero-width": zero_width,
    "bidi-marks": bidi_marks,
    "bidi-override": bidi_override,
    "variation-selectors": variation_selectors,
    "tags-between": tags_between,
    "tag-smuggling": tag_smuggling,
    "homoglyphs": homoglyphs,
    "some-homoglyphs": some_homoglyphs,
    "confusables": confusables,
    "stacked-diacritics": stacked_diacritics,
    "accents": accents,
    "fullwidth": fullwidth,
    "mathematical": mathematical,
    "enclosed": enclosed,
    "small-capitals": small_capitals,
}
