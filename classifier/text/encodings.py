"""Text in an encoding that a language model reads as well: find it, decode it, keep it only if text comes out.

One function an encoding; each returns edits. Bytes that aren't text (pictures, hashes, keys) give no edit. Work is
linear in the text's length. Knows no view.
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
from lethe.classifier.text.confusables import TextEdit

# Decoded bytes or characters below which a result is dropped. Chosen: shorter ones look like text by chance.
MIN_DECODED_BYTES = 6
# Share of the decoded bytes that must be valid UTF-8, from their beginning on. Chosen: allows for a damaged end.
MIN_TEXT_SHARE = 0.75
# Characters from which on text may consist of rare characters alone. Chosen: bytes become one or the other rare
# character by chance, but hardly this many in a row.
MIN_RARE_CHARACTERS = 18
# Characters of a base64 run from which on it is also tried reversed, under rot13 and from its later characters.
# Chosen: each further attempt on a short run is another chance for an ordinary word to decode.
MIN_LONG_RUN = 24
# Characters from which on text may have a sign between all letters. Chosen: random bytes don't look so at this length.
MIN_SIGNS_LENGTH = 24
# Unicode categories that count for nothing when text is recognised: format characters and marks.
_INVISIBLE_CATEGORIES = frozenset({"Cf", "Mn", "Me"})

_URL = re.compile(r"(?:%[0-9A-Fa-f]{2})+")
_QUERY_PLUS = re.compile(r"(?<=\w)\+(?=\w)")
_QUOTED = re.compile(r"(?:=[0-9A-F]{2}){2,}|=\r?\n|=[2-7][0-9A-F](?![0-9A-F])")
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});?")
_ESCAPE = re.compile(
    r"(?:\\u\{[0-9A-Fa-f]{1,6}\}|\\u[0-9A-Fa-f]{4}|\\U[0-9A-Fa-f]{8}|U\+[0-9A-Fa-f]{4,6}[ ,]?)+"
    r"|(?:\\x[0-9A-Fa-f]{2})+|(?:\\[0-3][0-7]{2})+"
)
_ESCAPE_NUMBER = re.compile(r"[0-9A-Fa-f]+")
_BASE64_TOKEN = re.compile(r"(?<![A-Za-z0-9+/_\-=])={0,2}[A-Za-z0-9+/_\-]{4,}(?:={1,2}|(?![A-Za-z0-9+/_\-=]))")
_BASE64_SIGN = re.compile(r"[a-z][A-Z]|[A-Za-z]{2}[0-9]|[0-9][A-Za-z]|[+/=]|[A-Z]{2}[a-z]|.{24}")
_BASE32 = re.compile(r"(?<![A-Za-z0-9])[A-Z2-7]{16,}={0,6}")
_HEX = re.compile(
    r"(?<![0-9A-Za-z])(?:(?:0[xX])?[0-9A-Fa-f]{2}(?:[\s,:;\-]{0,2})){5,}(?![0-9A-Za-z])|(?<=0x)(?:[0-9A-Fa-f]{2}){5,}"
)
_BINARY = re.compile(r"(?<![01])(?:[01]{7,8}[\s,]{0,2}){4,}(?![01])")
_NUMBER_LIST = re.compile(r"(?<![0-9])[0-9]{1,3}(?:[\s,;.|/\-]{1,3}[0-9]{1,3}){4,}(?![0-9])")
_MORSE = re.compile(r"(?<![^\s/|\"'(:])[.\-·•−–—_]{1,6}(?:[ /|\n]{1,5}[.\-·•−–—_]{1,6}){4,}(?![^\s/|\"'),;])")
_MORSE_CODE = {
    ".-": "a", "-...": "b", "-.-.": "c", "-..": "d", ".": "e", "..-.": "f", "--.": "g", "....": "h", "..": "i",
    ".---": "j", "-.-": "k", ".-..": "l", "--": "m", "-.": "n", "---": "o", ".--.": "p", "--.-": "q", ".-.": "r",
    "...": "s", "-": "t", "..-": "u", "...-": "v", ".--": "w", "-..-": "x", "-.--": "y", "--..": "z",
    "-----": "0", ".----": "1", "..---": "2", "...--": "3", "....-": "4", ".....": "5", "-....": "6", "--...": "7",
    "---..": "8", "----.": "9", ".-.-.-": ".", "--..--": ",", "..--..": "?", ".----.": "'", "-..-.": "/",
    "-....-": "-", "---...": ":", "-.-.--": "!", ".-..-.": '"', "-.--.": "(", "-.--.-": ")", "..--.-": "_",
}  # fmt: skip
_DOTS_AND_DASHES = str.maketrans("·•−–—_", "..----")


def decode_url(text: str) -> list[TextEdit]:
    """Decode %XX, and plus signs between words of a text that has some %XX."""
    if "%" not in text:
        return []
    decoded = [(*m.span(), _decode_utf8(bytes.fromhex(m[0].replace("%", "")))) for m in _URL.finditer(text)]
    edits = [(a, b, plain) for a, b, plain in decoded if plain]
    return sorted(edits + [(*m.span(), " ") for m in _QUERY_PLUS.finditer(text)]) if edits else []


def decode_quoted_printable(text: str) -> list[TextEdit]:
    """Decode the =XX of mail, where there are at least three, and its soft line breaks."""
    if text.count("=") < 3:
        return []
    edits = [(*m.span(), _decode_utf8(bytes.fromhex(re.sub(r"[=\r\n]", "", m[0])))) for m in _QUOTED.finditer(text)]
    return edits if sum(text.count("=", a, b) for a, b, _ in edits) >= 3 else []


def decode_entities(text: str) -> list[TextEdit]:
    """Decode HTML character references."""
    if "&" not in text:
        return []
    edits = [(*m.span(), html.unescape(m[0])) for m in _ENTITY.finditer(text)]
    return [edit for edit in edits if edit[2] != text[edit[0] : edit[1]]]


def decode_escapes(text: str) -> list[TextEdit]:
    r"""Decode the escapes of programming languages: \uXXXX, \u{X}, \UXXXXXXXX, U+XXXX, \xXX and \OOO."""
    if "\\" not in text and "U+" not in text:
        return []
    edits = [(*m.span(), _decode_escape_run(m[0])) for m in _ESCAPE.finditer(text)]
    return [edit for edit in edits if edit[2]]


def _decode_escape_run(run: str) -> str:
    """Decode neighbouring escapes of one kind."""
    numbers = _ESCAPE_NUMBER.findall(run.replace("U", ""))
    if run.startswith("\\x"):
        return _decode_utf8(bytes.fromhex("".join(numbers)))
    if run.startswith(("\\u", "\\U", "U+")):
        points = [int(number, 16) for number in numbers]
        # Two surrogates are one character.
        units = "".join(chr(p) for p in points if p < 0x110000)
        return units.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return _decode_utf8(bytes(int(number, 8) for number in numbers))


def decode_base64(text: str) -> list[TextEdit]:
    """Decode base64: standard or url-safe, padded or not, in groups or over lines, also reversed or under rot13."""
    return [edit for run in _base64_runs(text) if (edit := _decode_base64_run(text, run))]


def _base64_runs(text: str) -> Iterator[list[tuple[int, int]]]:
    """Yield the spans of neighbouring tokens that look like parts of one encoded text."""
    run: list[tuple[int, int]] = []
    for match in _BASE64_TOKEN.finditer(text):
        start, end = match.span()
        is_near = bool(run) and start - run[-1][1] <= 4 and text[run[-1][1] : start].isspace()
        looks_encoded = bool(_BASE64_SIGN.search(match[0]))
        same_length = is_near and end - start == run[-1][1] - run[-1][0]
        if is_near and (looks_encoded or same_length) and not text[: run[-1][1]].endswith("=", run[0][0]):
            run.append((start, end))
            continue
        if run:
            yield run
        run = [(start, end)] if looks_encoded else []
    if run:
        yield run


def _decode_base64_run(text: str, run: list[tuple[int, int]]) -> TextEdit | None:
    """Return the first of several ways to read a run that gives text, as an edit."""
    encoded = "".join(text[a:b] for a, b in run).strip("=")
    is_long = len(encoded) >= MIN_LONG_RUN
    variants = (encoded, encoded[::-1], codecs.encode(encoded, "rot13")) if is_long else (encoded,)
    for variant in variants:
        if plain := text_of_bytes(_base64_bytes(variant)):
            return run[0][0], run[-1][1], plain
    # A long run may have lost its beginning, or have something before it.
    for offset in range(1, 4) if is_long else ():
        if plain := text_of_bytes(_base64_bytes(encoded[offset:])):
            return run[0][0], run[-1][1], plain
    # The first or the last token may be a word next to the encoded text.
    for part in (run[1:], run[:-1]) if len(run) > 1 else ():
        if plain := text_of_bytes(_base64_bytes("".join(text[a:b] for a, b in part).strip("="))):
            return part[0][0], part[-1][1], plain
    return None


def _base64_bytes(encoded: str) -> bytes:
    encoded = encoded.translate(str.maketrans("-_", "+/")).replace("=", "")
    encoded = encoded[: len(encoded) - (len(encoded) % 4 == 1)]
    return base64.b64decode(encoded + "=" * (-len(encoded) % 4))


def decode_base32(text: str) -> list[TextEdit]:
    """Decode runs of A–Z and 2–7."""
    edits: list[TextEdit] = []
    for match in _BASE32.finditer(text):
        encoded = match[0].rstrip("=")
        encoded = encoded[: len(encoded) - {1: 1, 3: 1, 6: 1}.get(len(encoded) % 8, 0)]
        if plain := text_of_bytes(base64.b32decode(encoded + "=" * (-len(encoded) % 8))):
            edits.append((*match.span(), plain))
    return edits


def decode_hex(text: str) -> list[TextEdit]:
    """Decode pairs of hexadecimal digits, in one run or with blanks, commas, colons, hyphens or 0x between."""
    edits: list[TextEdit] = []
    for match in _HEX.finditer(text):
        digits = re.sub(r"0[xX]|[^0-9A-Fa-f]", "", match[0])
        if plain := text_of_bytes(binascii.unhexlify(digits[: len(digits) // 2 * 2])):
            edits.append((match.start(), match.start() + len(match[0].rstrip()), plain))
    return edits


def decode_binary(text: str) -> list[TextEdit]:
    """Decode groups of eight (or seven) binary digits."""
    edits: list[TextEdit] = []
    for match in _BINARY.finditer(text):
        groups = match[0].replace(",", " ").split()
        if len(groups) == 1:
            groups = [groups[0][i : i + 8] for i in range(0, len(groups[0]), 8)]
        if plain := text_of_bytes(bytes(int(group, 2) for group in groups if len(group) in (7, 8))):
            edits.append((match.start(), match.start() + len(match[0].rstrip()), plain))
    return edits


def decode_numbers(text: str) -> list[TextEdit]:
    """Decode lists of decimal or octal character codes, and of places in the alphabet (1 to 26).

    Among places in the alphabet, 0 or a wider gap parts words.
    """
    edits: list[TextEdit] = []
    for match in _NUMBER_LIST.finditer(text):
        pieces = re.findall(r"[0-9]+|[^0-9]+", match[0])
        values, gaps = pieces[::2], pieces[1::2]
        for plain in _number_candidates(values, gaps):
            if len(plain) >= MIN_DECODED_BYTES and _is_language(plain):
                edits.append((*match.span(), plain))
                break
    return edits


def _number_candidates(values: list[str], gaps: list[str]) -> Iterator[str]:
    """Yield what a list of numbers spells as decimal codes, as octal codes and as places in the alphabet."""
    decimal = [int(value) for value in values]
    if all(9 <= value < 127 for value in decimal):
        yield "".join(map(chr, decimal))
    if all(len(v) >= 2 and set(v) <= set("01234567") and int(v, 8) < 127 for v in values):
        yield "".join(chr(int(value, 8)) for value in values)
    if all(value <= 26 for value in decimal):
        usual_gap = max(set(gaps), key=gaps.count)
        letters = [" " if value == 0 else chr(ord("a") + value - 1) for value in decimal]
        yield "".join(
            letter + (" " if gap != usual_gap else "") for letter, gap in zip(letters, [*gaps, usual_gap], strict=True)
        )


def decode_morse(text: str) -> list[TextEdit]:
    """Decode Morse code: a blank between letters; a stroke, a line break or a wider gap between words."""
    edits: list[TextEdit] = []
    for match in _MORSE.finditer(text):
        words = re.split(r"\s*[/|\n]\s*| {2,}", match[0].translate(_DOTS_AND_DASHES))
        plain = " ".join("".join(_MORSE_CODE.get(letter, "\0") for letter in word.split()) for word in words)
        if plain.count("\0") <= 0.1 * len(plain) and sum(map(str.isalpha, plain)) >= 0.6 * len(plain):
            edits.append((*match.span(), plain.replace("\0", "")))
    return edits


def _decode_utf8(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def text_of_bytes(data: bytes) -> str:
    """Return the text (UTF-8 or UTF-16) that bytes begin with, if it is most of them; "" if they aren't text."""
    if len(data) < MIN_DECODED_BYTES:
        return ""
    if data[1:40:2].count(0) > 0.4 * len(data[:40]):
        text = data[: len(data) // 2 * 2].decode("utf-16-le", "ignore")
        return text if _looks_like_text(text) else ""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < max(MIN_TEXT_SHARE * len(data), MIN_DECODED_BYTES):
            return ""
        text = data[: error.start].decode("utf-8")
    return text if _looks_like_text(text) else ""


def _looks_like_text(text: str) -> bool:
    """Whether decoded characters are printable, mostly letters, and not a handful of rare ones."""
    # The text may have been disguised before it was encoded, with marks and invisible characters.
    visible = "".join(c for c in text if unicodedata.category(c) not in _INVISIBLE_CATEGORIES)
    printable = sum(c.isprintable() or c in "\t\n\r" for c in visible)
    letters = sum(c.isalnum() or c == " " for c in visible)
    ascii_characters = sum(map(str.isascii, text))
    may_be_rare = len(text) >= MIN_RARE_CHARACTERS or ascii_characters >= 0.7 * len(text)
    # A longer text may have a sign after each letter.
    letter_share = 0.6 if len(visible) < MIN_SIGNS_LENGTH else 0.4
    return bool(visible) and printable >= 0.95 * len(visible) and letters >= letter_share * len(visible) and may_be_rare


def _is_language(text: str) -> bool:
    letters = sum(c.isalpha() or c == " " for c in text)
    return letters >= 0.8 * len(text) and language_model.is_readable(text)


# The name that a view gets from an encoding → its decoder, in the order in which they are tried.
ENCODING_DECODERS: dict[str, Callable[[str], list[TextEdit]]] = {
    "escapes": decode_escapes,
    "entities": decode_entities,
    "url": decode_url,
    "quoted-printable": decode_quoted_printable,
    "base64": decode_base64,
    "base32": decode_base32,
    "binary": decode_binary,
    "numbers": decode_numbers,
    "hex": decode_hex,
    "morse": decode_morse,
}
