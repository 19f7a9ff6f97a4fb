"""Whole texts in encodings that use most printable characters: ROT47, base58 and base85.

One function an encoding; each returns edits, and keeps a result only if it is text. Knows no view. Work is linear in
the text's length.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator

from lethe.classifier.text import language_model
from lethe.classifier.text.confusables import TextEdit
from lethe.classifier.text.encodings import text_of_bytes

# Characters of a run in base58 and base85. Chosen: shorter runs hold no question; longer base58 takes too much
# arithmetic, since its work grows with the square of the length.
MIN_ENCODED_CHARACTERS, MAX_BASE58_CHARACTERS = 15, 4096
# Share of a word's characters that must be ROT47 of lower-case letters. Chosen: capitals and punctuation are the rest.
MIN_ROT47_SHARE = 0.6
# Words and characters in a row from which on they count as ROT47. Chosen: fewer are numbers and abbreviations.
MIN_ROT47_WORDS, MIN_ROT47_CHARACTERS = 3, 10
# Share of the decoded letters that must belong to known words. Chosen as for the letter ciphers.
MIN_KNOWN_SHARE = 0.3

# ROT47 moves the characters from "!" to "~" by 47 places.
_ROT47 = {code: 33 + (code - 33 + 47) % 94 for code in range(33, 127)}
# What ROT47 makes of the lower-case letters: the characters from "2" to "K".
_ROT47_LETTER = re.compile("[2-K]")
_BASE58_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_BASE58_DIGITS = {character: value for value, character in enumerate(_BASE58_ALPHABET)}
_BASE58 = re.compile(
    rf"(?<![A-Za-z0-9])[{_BASE58_ALPHABET}]{{{MIN_ENCODED_CHARACTERS},{MAX_BASE58_CHARACTERS}}}+(?![A-Za-z0-9])"
)
_ADOBE85 = re.compile(r"<~([!-uz\s]{5,}?)~>")
_LONG_RUN = re.compile(rf"[!-~]{{{MIN_ENCODED_CHARACTERS},}}")
_QUOTES = "\"'`“”‘’"


def decode_rot47(text: str, vocabulary: frozenset[str] = frozenset()) -> list[TextEdit]:
    """Decode runs of words under ROT47. vocabulary: known words besides the common ones, lower case."""
    edits: list[TextEdit] = []
    for start, end in _rot47_spans(text):
        plain = text[start:end].translate(_ROT47)
        if language_model.known_letter_share(re.findall("[A-Za-z]+", plain), vocabulary) >= MIN_KNOWN_SHARE:
            edits.append((start, end, plain))
    return edits


def _rot47_spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield runs of neighbouring words that may be under ROT47."""
    run: list[tuple[int, int]] = []
    characters = 0
    for match in re.finditer(r"\S+|\Z", text):
        found = len(_ROT47_LETTER.findall(match[0]))
        if found and found >= MIN_ROT47_SHARE * len(match[0]):
            run.append(match.span())
            characters += found
            continue
        if len(run) >= MIN_ROT47_WORDS and characters >= MIN_ROT47_CHARACTERS:
            yield run[0][0], run[-1][1]
        run, characters = [], 0


def decode_base58(text: str) -> list[TextEdit]:
    """Decode runs in base58, with the alphabet of Bitcoin."""
    edits: list[TextEdit] = []
    for match in _BASE58.finditer(text):
        number = 0
        for character in match[0]:
            number = number * 58 + _BASE58_DIGITS[character]
        if plain := text_of_bytes(number.to_bytes((number.bit_length() + 7) // 8, "big")):
            edits.append((*match.span(), plain))
    return edits


def decode_base85(text: str) -> list[TextEdit]:
    """Decode runs in base85: Adobe's and Ascii85, and the alphabet of RFC 1924 that git and Python use."""
    edits = [
        (*match.span(), plain)
        for match in _ADOBE85.finditer(text)
        if (plain := _decode_bytes(base64.a85decode, match[1]))
    ]
    for match in _LONG_RUN.finditer(text) if not edits else ():
        if match[0].isalnum():
            continue
        for start, end in _without_quotes(match[0]):
            run = match[0][start:end]
            if plain := _decode_bytes(base64.b85decode, run) or _decode_bytes(base64.a85decode, run):
                edits.append((match.start() + start, match.start() + end, plain))
                break
    return edits


def _without_quotes(run: str) -> Iterator[tuple[int, int]]:
    """Yield the span of a run, and of what is left without quotes, brackets and a full stop around it."""
    yield 0, len(run)
    inner = run.strip(_QUOTES + "().,:?!")
    if len(inner) < len(run) and len(inner) >= MIN_ENCODED_CHARACTERS:
        start = run.index(inner)
        yield start, start + len(inner)


def _decode_bytes(decode: Callable[[bytes], bytes], run: str) -> str:
    try:
        return text_of_bytes(decode(run.encode("ascii")))
    except ValueError:
        return ""
