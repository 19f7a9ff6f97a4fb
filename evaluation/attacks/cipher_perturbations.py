"""Perturbations that write a whole text in a cipher or an alphabet that capable models read without being told which.

Pig latin, spelling alphabets, ROT47, base58, base85, braille. Each is a pure function (text, rng) → text. Knows no
classifier. Source: garak's `encoding` probes (arXiv:2406.11036), beside those of `encoding_perturbations.py`.
"""

from __future__ import annotations

import base64
import re
from random import Random

from lethe.evaluation.attacks.unicode_perturbations import Perturbation

_WORD = re.compile(r"[A-Za-z]+")
_ONSET = re.compile(r"(?:[^aeiouyAEIOUY]*[qQ][uU]|[yY]?[^aeiouyAEIOUY]*)")
_NATO = dict(
    zip(
        "abcdefghijklmnopqrstuvwxyz",
        (
            "Alfa Bravo Charlie Delta Echo Foxtrot Golf Hotel India Juliett Kilo Lima Mike November Oscar Papa Quebec "
            "Romeo Sierra Tango Uniform Victor Whiskey X-ray Yankee Zulu"
        ).split(),
        strict=True,
    )
)
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
# The dots (as bits) of the letters a to z in six-dot braille.
_BRAILLE = dict(
    zip("abcdefghijklmnopqrstuvwxyz", "⠁⠃⠉⠙⠑⠋⠛⠓⠊⠚⠅⠇⠍⠝⠕⠏⠟⠗⠎⠞⠥⠧⠺⠭⠽⠵", strict=True),
)


def pig_latin(text: str, rng: Random) -> str:
    """Pig latin: first consonants of each word at its end, with "ay"."""
    ending = rng.choice(("way", "yay", "ay"))

    def translate(match: re.Match[str]) -> str:
        word = match[0]
        onset = _ONSET.match(word)
        start = onset[0] if onset else ""
        if not start or start == word:
            return word + ending
        moved = word[len(start) :] + start.lower() + "ay"
        return moved[0].upper() + moved[1:] if word[0].isupper() else moved

    return _WORD.sub(translate, text)


def nato_alphabet(text: str, rng: Random) -> str:
    """Letters as the words of the NATO spelling alphabet."""
    between = rng.choice((" / ", ". ", "\n", " | "))
    words = ([_NATO[c] for c in word.lower() if c in _NATO] for word in text.split())
    return between.join(" ".join(word) for word in words if word) or text


def rot47(text: str, rng: Random) -> str:
    """ROT47: printable ASCII characters moved by 47 places."""
    return "".join(chr(33 + (ord(c) - 33 + 47) % 94) if "!" <= c <= "~" else c for c in text)


def base58(text: str, rng: Random) -> str:
    """Base58, with the alphabet of Bitcoin."""
    data = text.encode("utf-8", "replace")
    number, digits = int.from_bytes(data, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        digits = _BASE58[digit] + digits
    return _BASE58[0] * (len(data) - len(data.lstrip(b"\0"))) + digits


def base85(text: str, rng: Random) -> str:
    """Base85, in one of the common alphabets."""
    data = text.encode("utf-8", "replace")
    return rng.choice((base64.b85encode, base64.a85encode, lambda d: base64.a85encode(d, adobe=True)))(data).decode()


def braille(text: str, rng: Random) -> str:
    """Braille, one cell a letter."""
    return "".join(_BRAILLE.get(c, c) for c in text.lower())


CIPHERS: dict[str, Perturbation] = {
    "pig-latin": pig_latin,
    "nato-alphabet": nato_alphabet,
    "rot47": rot47,
    "base58": base58,
    "base85": base85,
    "braille": braille,
}
