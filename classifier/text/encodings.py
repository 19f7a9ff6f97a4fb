"""Text under an encoding that a model reads as well: found, decoded, and kept only if text comes out.

Knows no view; gives edits, one function an encoding. What decodes to bytes that aren't text (pictures, hashes,
keys) gives none. Work is linear in the text's length.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import html
import re
import unicodedata
from collections.abc import Callable, Iterator

from lethe.classifier.text import language_model
from lethe.classifier.text.confusables import Edit

# So few bytes come out as text by chance.
FEWEST_BYTES = 6
# What decodes must be text to this share of its bytes, from its beginning on.
SHARE = 0.75
# Bytes become some rare character or other by chance, but hardly this many.
MANY_BYTES = 18
LONG_RUN = 24
# From this many characters on a sign between all letters is nothing that bytes become by chance.
SIGNS_FROM = 24
_UNSEEN = frozenset({"Cf", "Mn", "Me"})

_URL = re.compile(r"(?:%[0-9A-Fa-f]{2})+")
_QUERY = re.compile(r"(?<=\w)\+(?=\w)")
_QUOTED = re.compile(r"(?:=[0-9A-F]{2}){2,}|=\r?\n|=[2-7][0-9A-F](?![0-9A-F])")
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});?")
_ESCAPE = re.compile(
    r"(?:\\u\{[0-9A-Fa-f]{1,6}\}|\\u[0-9A-Fa-f]{4}|\\U[0-9A-Fa-f]{8}|U\+[0-9A-Fa-f]{4,6}[ ,]?)+"
    r"|(?:\\x[0-9A-Fa-f]{2})+|(?:\\[0-3][0-7]{2})+"
)
_ESCAPED = re.compile(r"[0-9A-Fa-f]+")
_BASE64_TOKEN = re.compile(r"(?<![A-Za-z0-9+/_\-=])={0,2}[A-Za-z0-9+/_\-]{4,}(?:={1,2}|(?![A-Za-z0-9+/_\-=]))")
_BASE64_ODD = re.compile(r"[a-z][A-Z]|[A-Za-z]{2}[0-9]|[0-9][A-Za-z]|[+/=]|[A-Z]{2}[a-z]|.{24}")
_BASE32 = re.compile(r"(?<![A-Za-z0-9])[A-Z2-7]{16,}={0,6}")
_HEX = re.compile(
    r"(?<![0-9A-Za-z])(?:(?:0[xX])?[0-9A-Fa-f]{2}(?:[\s,:;\-]{0,2})){5,}(?![0-9A-Za-z])|(?<=0x)(?:[0-9A-Fa-f]{2}){5,}"
)
_BINARY = re.compile(r"(?<![01])(?:[01]{7,8}[\s,]{0,2}){4,}(?![01])")
_NUMBERS = re.compile(r"(?<![0-9])[0-9]{1,3}(?:[\s,;.|/\-]{1,3}[0-9]{1,3}){4,}(?![0-9])")
_MORSE = re.compile(r"(?<![^\s/|\"'(:])[.\-·•−–—_]{1,6}(?:[ /|\n]{1,5}[.\-·•−–—_]{1,6}){4,}(?![^\s/|\"'),;])")
_MORSE_CODE = {
    ".-": "a", "-...": "b", "-.-.": "c", "-..": "d", ".": "e", "..-.": "f", "--.": "g", "....": "h", "..": "i",
    ".---": "j", "-.-": "k", ".-..": "l", "--": "m", "-.": "n", "---": "o", ".--.": "p", "--.-": "q", ".-.": "r",
    "...": "s", "-": "t", "..-": "u", "...-": "v", ".--": "w", "-..-": "x", "-.--": "y", "--..": "z",
    "-----": "0", ".----": "1", "..---": "2", "...--": "3", "....-": "4", ".....": "5", "-....": "6", "--...": "7",
    "---..": "8", "----.": "9", ".-.-.-": ".", "--..--": ",", "..--..": "?", ".----.": "'", "-..-.": "/",
    "-....-": "-", "---...": ":", "-.-.--": "!", ".-..-.": '"', "-.--.": "(", "-.--.-": ")", "..--.-": "_",
}  # fmt: skip
_DOTS = str.maketrans("·•−–—_", "..----")


def url(text: str) -> list[Edit]:
    """%XX, and plus signs between words where there is such."""
    if "%" not in text:
        return []
    found = [(*m.span(), _utf8(bytes.fromhex(m[0].replace("%", "")))) for m in _URL.finditer(text)]
    edits = [(a, b, plain) for a, b, plain in found if plain]
    return sorted(edits + [(*m.span(), " ") for m in _QUERY.finditer(text)]) if edits else []


def quoted_printable(text: str) -> list[Edit]:
    """=XX of mail, at least three, and its soft line breaks."""
    if text.count("=") < 3:
        return []
    found = [(*m.span(), _utf8(bytes.fromhex(re.sub(r"[=\r\n]", "", m[0])))) for m in _QUOTED.finditer(text)]
    return found if sum(text.count("=", a, b) for a, b, _ in found) >= 3 else []


def entities(text: str) -> list[Edit]:
    """HTML's character references."""
    if "&" not in text:
        return []
    found = [(*m.span(), html.unescape(m[0])) for m in _ENTITY.finditer(text)]
    return [edit for edit in found if edit[2] != text[edit[0] : edit[1]]]


def escapes(text: str) -> list[Edit]:
    r"""\uXXXX, \u{X}, \UXXXXXXXX, U+XXXX, \xXX and \OOO, as programs write them."""
    if "\\" not in text and "U+" not in text:
        return []
    found = [(*m.span(), _unescaped(m[0])) for m in _ESCAPE.finditer(text)]
    return [edit for edit in found if edit[2]]


def _unescaped(run: str) -> str:
    numbers = _ESCAPED.findall(run.replace("U", ""))
    if run.startswith("\\x"):
        return _utf8(bytes.fromhex("".join(numbers)))
    if run.startswith(("\\u", "\\U", "U+")):
        points = [int(number, 16) for number in numbers]
        # Pairs of surrogates are one character.
        units = "".join(chr(p) for p in points if p < 0x110000)
        return units.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return _utf8(bytes(int(number, 8) for number in numbers))


def base_64(text: str) -> list[Edit]:
    """Standard and url-safe, padded or not, in groups or over several lines, also turned round or under rot13."""
    return [edit for run in _base64_runs(text) if (edit := _from_base64(text, run))]


def _base64_runs(text: str) -> Iterator[list[tuple[int, int]]]:
    """Neighbouring tokens that look like parts of one encoded text."""
    run: list[tuple[int, int]] = []
    for match in _BASE64_TOKEN.finditer(text):
        start, end = match.span()
        near = bool(run) and start - run[-1][1] <= 4 and text[run[-1][1] : start].isspace()
        odd = bool(_BASE64_ODD.search(match[0]))
        same = near and end - start == run[-1][1] - run[-1][0]
        if near and (odd or same) and not text[: run[-1][1]].endswith("=", run[0][0]):
            run.append((start, end))
            continue
        if run:
            yield run
        run = [(start, end)] if odd else []
    if run:
        yield run


def _from_base64(text: str, run: list[tuple[int, int]]) -> Edit | None:
    """The longest part of the run, from its beginning or its first parts' ends on, that gives text."""
    written = "".join(text[a:b] for a, b in run).strip("=")
    # Three readings of a short run are three chances for an ordinary word.
    turns = (written, written[::-1], codecs.encode(written, "rot13")) if len(written) >= LONG_RUN else (written,)
    for turned in turns:
        if plain := _bytes_text(_base64_bytes(turned)):
            return run[0][0], run[-1][1], plain
    # A long run may have lost its beginning, or have something before it.
    for cut in range(1, 4) if len(written) >= LONG_RUN else ():
        if plain := _bytes_text(_base64_bytes(written[cut:])):
            return run[0][0], run[-1][1], plain
    # The first or last token may be a word beside it.
    for part in (run[1:], run[:-1]) if len(run) > 1 else ():
        if plain := _bytes_text(_base64_bytes("".join(text[a:b] for a, b in part).strip("="))):
            return part[0][0], part[-1][1], plain
    return None


def _base64_bytes(written: str) -> bytes:
    written = written.translate(str.maketrans("-_", "+/")).replace("=", "")
    written = written[: len(written) - (len(written) % 4 == 1)]
    return base64.b64decode(written + "=" * (-len(written) % 4))


def base_32(text: str) -> list[Edit]:
    """Runs of A-Z and 2-7."""
    edits: list[Edit] = []
    for match in _BASE32.finditer(text):
        written = match[0].rstrip("=")
        written = written[: len(written) - {1: 1, 3: 1, 6: 1}.get(len(written) % 8, 0)]
        if plain := _bytes_text(base64.b32decode(written + "=" * (-len(written) % 8))):
            edits.append((*match.span(), plain))
    return edits


def hexadecimal(text: str) -> list[Edit]:
    """Pairs of hexadecimal digits, in one run or with blanks, commas, colons, hyphens or 0x between."""
    edits: list[Edit] = []
    for match in _HEX.finditer(text):
        digits = re.sub(r"0[xX]|[^0-9A-Fa-f]", "", match[0])
        if plain := _bytes_text(binascii.unhexlify(digits[: len(digits) // 2 * 2])):
            edits.append((match.start(), match.start() + len(match[0].rstrip()), plain))
    return edits


def binary(text: str) -> list[Edit]:
    """Groups of eight (or seven) binary digits."""
    edits: list[Edit] = []
    for match in _BINARY.finditer(text):
        groups = match[0].replace(",", " ").split()
        if len(groups) == 1:
            groups = [groups[0][i : i + 8] for i in range(0, len(groups[0]), 8)]
        if plain := _bytes_text(bytes(int(group, 2) for group in groups if len(group) in (7, 8))):
            edits.append((match.start(), match.start() + len(match[0].rstrip()), plain))
    return edits


def numbers(text: str) -> list[Edit]:
    """Character codes, decimal or octal, and places in the alphabet (1 to 26, 0 or a wider gap between words)."""
    edits: list[Edit] = []
    for match in _NUMBERS.finditer(text):
        found = re.findall(r"[0-9]+|[^0-9]+", match[0])
        values, gaps = found[::2], found[1::2]
        for plain in _spelt_numbers(values, gaps):
            if len(plain) >= FEWEST_BYTES and _is_language(plain):
                edits.append((*match.span(), plain))
                break
    return edits


def _spelt_numbers(values: list[str], gaps: list[str]) -> Iterator[str]:
    decimal = [int(value) for value in values]
    if all(9 <= value < 127 for value in decimal):
        yield "".join(map(chr, decimal))
    if all(len(v) >= 2 and set(v) <= set("01234567") and int(v, 8) < 127 for v in values):
        yield "".join(chr(int(value, 8)) for value in values)
    if all(value <= 26 for value in decimal):
        usual = max(set(gaps), key=gaps.count)
        letters = [" " if value == 0 else chr(ord("a") + value - 1) for value in decimal]
        yield "".join(a + (" " if gap != usual else "") for a, gap in zip(letters, [*gaps, usual], strict=True))


def morse(text: str) -> list[Edit]:
    """Dots and dashes, a blank between letters, a stroke, a line break or a wider gap between words."""
    edits: list[Edit] = []
    for match in _MORSE.finditer(text):
        words = re.split(r"\s*[/|\n]\s*| {2,}", match[0].translate(_DOTS))
        plain = " ".join("".join(_MORSE_CODE.get(letter, "\0") for letter in word.split()) for word in words)
        if plain.count("\0") <= 0.1 * len(plain) and sum(map(str.isalpha, plain)) >= 0.6 * len(plain):
            edits.append((*match.span(), plain.replace("\0", "")))
    return edits


def _utf8(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _bytes_text(data: bytes) -> str:
    """The text that bytes begin with, if it is most of them; "" if they are no text."""
    if len(data) < FEWEST_BYTES:
        return ""
    if data[1:40:2].count(0) > 0.4 * len(data[:40]):
        text = data[: len(data) // 2 * 2].decode("utf-16-le", "ignore")
        return text if _printable(text) else ""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < max(SHARE * len(data), FEWEST_BYTES):
            return ""
        text = data[: error.start].decode("utf-8")
    return text if _printable(text) else ""


def _printable(text: str) -> bool:
    # What was encoded may have been disguised before: marks and what nobody sees count for nothing.
    bare = "".join(c for c in text if unicodedata.category(c) not in _UNSEEN)
    shown = sum(c.isprintable() or c in "\t\n\r" for c in bare)
    letters = sum(c.isalnum() or c == " " for c in bare)
    plain = sum(map(str.isascii, text))
    many = len(text) >= MANY_BYTES or plain >= 0.7 * len(text)
    # Letters with signs between, in a text that is too long to come out so by chance.
    share = 0.6 if len(bare) < SIGNS_FROM else 0.4
    return bool(bare) and shown >= 0.95 * len(bare) and letters >= share * len(bare) and many


def _is_language(text: str) -> bool:
    letters = sum(c.isalpha() or c == " " for c in text)
    return letters >= 0.8 * len(text) and language_model.readable(text)


# By name, in the order in which they are tried.
ENCODINGS: dict[str, Callable[[str], list[Edit]]] = {
    "escapes": escapes,
    "entities": entities,
    "url": url,
    "quoted-printable": quoted_printable,
    "base64": base_64,
    "base32": base_32,
    "binary": binary,
    "numbers": numbers,
    "hex": hexadecimal,
    "morse": morse,
}
