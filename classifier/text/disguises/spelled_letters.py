"""Letters written as something else, one by one: words of a spelling alphabet, or cells of braille.

Knows no view; returns edits. Work is linear in the text's length.
"""

from __future__ import annotations

import re

from lethe.classifier.text import language_model
from lethe.classifier.text.confusables import TextEdit

# Words of the alphabet in a row from which on they spell something. Chosen: fewer are ordinary words (hotel, golf).
MIN_SPELLED_LETTERS = 4
# Cells of braille in a row from which on they are read. Chosen: fewer are drawings.
MIN_CELLS = 3
# Letters that were spelled without a sign between the words, from which on they are split into words.
MIN_SPLIT_LETTERS = 12

_SPELLING = {
    word: letter
    for letter, words in {
        "a": "alfa alpha", "b": "bravo", "c": "charlie", "d": "delta", "e": "echo", "f": "foxtrot", "g": "golf",
        "h": "hotel", "i": "india", "j": "juliett juliet", "k": "kilo", "l": "lima", "m": "mike", "n": "november",
        "o": "oscar", "p": "papa", "q": "quebec", "r": "romeo", "s": "sierra", "t": "tango", "u": "uniform",
        "v": "victor", "w": "whiskey whisky", "x": "xray x-ray", "y": "yankee", "z": "zulu",
    }.items()
    for word in words.split()
}  # fmt: skip
_SPELLED_WORD = "(?:" + "|".join(sorted(map(re.escape, _SPELLING), key=len, reverse=True)) + ")"
_SPELLED = re.compile(
    rf"\b{_SPELLED_WORD}(?:(?:[^\w]{{1,4}}|[^\w]{{1,2}}space[^\w]{{1,2}}){_SPELLED_WORD})"
    rf"{{{MIN_SPELLED_LETTERS - 1},}}\b",
    re.IGNORECASE,
)
_SPELLED_LETTER = re.compile(rf"\b{_SPELLED_WORD}\b", re.IGNORECASE)
_BLANK_OR_HYPHEN = frozenset({" ", "-", ", "})

# The cells of the letters a to z, and the signs before digits and capitals.
_CELLS = dict(zip("⠁⠃⠉⠙⠑⠋⠛⠓⠊⠚⠅⠇⠍⠝⠕⠏⠟⠗⠎⠞⠥⠧⠺⠭⠽⠵", "abcdefghijklmnopqrstuvwxyz", strict=True)) | {
    "⠀": " ", "⠂": ",", "⠆": ";", "⠒": ":", "⠲": ".", "⠦": "?", "⠖": "!", "⠄": "'", "⠤": "-", "⠠": "", "⠨": "",
}  # fmt: skip
_DIGIT_SIGN, _CAPITAL_SIGNS = "⠼", "⠠⠨"
_DIGITS = dict(zip("⠁⠃⠉⠙⠑⠋⠛⠓⠊⠚", "1234567890", strict=True))
_BRAILLE = re.compile(rf"[\u2800-\u28ff](?:[\u2800-\u28ff]|[ \n]{{1,3}}(?=[\u2800-\u28ff])){{{MIN_CELLS - 1},}}")


def decode_spelling_alphabet(text: str, vocabulary: frozenset[str] = frozenset()) -> list[TextEdit]:
    """Decode runs of words of the NATO spelling alphabet. vocabulary: words to split joined letters into."""
    edits: list[TextEdit] = []
    for run in _SPELLED.finditer(text):
        letters = list(_SPELLED_LETTER.finditer(run[0]))
        gaps = [run[0][a.end() : b.start()] for a, b in zip(letters, letters[1:], strict=False)]
        usual = max(set(gaps), key=gaps.count)
        plain = "".join(
            ("" if gap == usual or gap in _BLANK_OR_HYPHEN else " ") + _SPELLING[match[0].lower()]
            for match, gap in zip(letters, [usual, *gaps], strict=True)
        )
        if " " not in plain and len(plain) >= MIN_SPLIT_LETTERS:
            plain = " ".join(language_model.split_into_words(plain, vocabulary))
        edits.append((*run.span(), plain))
    return edits


def decode_braille(text: str) -> list[TextEdit]:
    """Decode braille without contractions."""
    if text.isascii():
        return []
    edits: list[TextEdit] = []
    for run in _BRAILLE.finditer(text):
        plain, is_number = [], False
        for cell in run[0]:
            if cell == _DIGIT_SIGN:
                is_number = True
                continue
            is_number = is_number and cell in _DIGITS
            plain.append(_DIGITS[cell] if is_number else _CELLS.get(cell, cell))
        edits.append((*run.span(), "".join(plain)))
    return edits
