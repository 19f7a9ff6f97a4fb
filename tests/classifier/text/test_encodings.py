from __future__ import annotations

import base64
import codecs
from urllib.parse import quote, quote_plus

import numpy as np
import pytest

from lethe.classifier.text.encodings import _MORSE_CODE, ENCODING_DECODERS, decode_base64
from tests.classifier.text.test_confusables import apply_edits

TEXT = "Who is the author of the book about Vardholm?"
BYTES = TEXT.encode()
BASE64 = base64.b64encode(BYTES).decode()
LETTERS = {letter: code for code, letter in _MORSE_CODE.items()}


def pieces(text: str, size: int) -> list[str]:
    return [text[i : i + size] for i in range(0, len(text), size)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("base64", BASE64),
        ("base64", BASE64.rstrip("=")),
        ("base64", base64.urlsafe_b64encode(BYTES).decode()),
        ("base64", "\n".join(pieces(BASE64, 20))),
        ("base64", " ".join(pieces(BASE64, 4))),
        ("base64", " ".join(pieces(BASE64, 7))),
        ("base64", BASE64[::-1]),
        ("base64", codecs.encode(BASE64, "rot13")),
        ("base64", base64.b64encode(TEXT.encode("utf-16-le")).decode()),
        ("base32", base64.b32encode(BYTES).decode()),
        ("hex", BYTES.hex()),
        ("hex", "0x" + BYTES.hex().upper()),
        ("hex", BYTES.hex(" ")),
        ("hex", BYTES.hex(":")),
        ("hex", ", ".join(f"0x{byte:02x}" for byte in BYTES)),
        ("escapes", "".join(f"\\x{byte:02x}" for byte in BYTES)),
        ("escapes", "".join(f"\\u{byte:04x}" for byte in BYTES)),
        ("escapes", "".join(f"\\u{{{byte:x}}}" for byte in BYTES)),
        ("escapes", "".join(f"\\{byte:03o}" for byte in BYTES)),
        ("escapes", " ".join(f"U+{byte:04X}" for byte in BYTES)),
        ("url", quote(TEXT)),
        ("url", quote_plus(TEXT)),
        ("url", "".join(f"%{byte:02x}" for byte in BYTES)),
        ("entities", "".join(f"&#{byte};" for byte in BYTES)),
        ("entities", "".join(f"&#x{byte:x}" for byte in BYTES)),
        ("quoted-printable", "".join(f"={byte:02X}" for byte in BYTES)),
        ("binary", " ".join(f"{byte:08b}" for byte in BYTES)),
        ("binary", "".join(f"{byte:08b}" for byte in BYTES)),
        ("numbers", " ".join(str(byte) for byte in BYTES)),
        ("numbers", ", ".join(f"{byte:o}" for byte in BYTES)),
        ("numbers", " / ".join("-".join(str(ord(c) - 96) for c in w if c.isalpha()) for w in TEXT.lower().split())),
        ("morse", " / ".join(" ".join(LETTERS[c] for c in word) for word in TEXT.lower().split())),
    ],
)
def test_every_encoding_is_decoded(name: str, text: str) -> None:
    for around in ("{}", "Please say what this means: {} and answer."):
        whole = around.format(text)
        plain = apply_edits(whole, ENCODING_DECODERS[name](whole)).casefold()
        assert TEXT.casefold().rstrip("?") in plain


@pytest.mark.parametrize("between", [".", "\u200b", "\u0301", "-"])
def test_text_with_marks_inside_words_is_decoded(between: str) -> None:
    text = " ".join(between.join(word) for word in TEXT.split())
    for name, secret in (("base64", base64.b64encode(text.encode()).decode()), ("hex", text.encode().hex())):
        assert apply_edits(secret, ENCODING_DECODERS[name](secret)) == text


def test_escapes_inside_a_word_are_decoded() -> None:
    assert apply_edits("V\\u0061rdh&ouml;lm", ENCODING_DECODERS["escapes"]("V\\u0061rdh&ouml;lm")) == "Vardh&ouml;lm"
    assert apply_edits("Vardh&ouml;lm", ENCODING_DECODERS["entities"]("Vardh&ouml;lm")) == "Vardhölm"
    assert apply_edits("\\ud83d\\ude00", ENCODING_DECODERS["escapes"]("\\ud83d\\ude00")) == "😀"


def not_encoded() -> list[str]:
    rng = np.random.default_rng(1)
    return [
        "Please compare these characteristics of internationalization, Antidisestablishmentarianism and SQLAlchemy.",
        "commit 3f2a9c8e7b6d5a4f3e2d1c0b9a8f7e6d5c4b3a29, id 123e4567-e89b-12d3-a456-426614174000",
        f"data:image/png;base64,{base64.b64encode(rng.bytes(3000)).decode()}",
        rng.bytes(400).hex(),
        "10 20 30 40 50 60 70 80 90 100 and 3.14159, 2.71828, 1.41421",
        "AT&T says 5 & 6; x=12, y=34; 50% of 100%",
        "-----\n| a | b |\n-----\n... and so on - or not - . . .",
        "The function f(x) = x / 2 in C:\\new\\table",
        "1, 2, 3, 4, 5, 6, 7, 8",
        "Mac 00:1A:2B:3C:4D:5E and port 8080",
    ]


@pytest.mark.parametrize("text", not_encoded(), ids=range(len(not_encoded())))
def test_text_that_is_not_encoded_stays(text: str) -> None:
    assert [name for name, decode in ENCODING_DECODERS.items() if decode(text)] == []


@pytest.mark.parametrize("lost", [1, 2, 3, 5])
def test_base64_without_its_first_characters_is_decoded(lost: int) -> None:
    written = base64.b64encode(b"Tell me who keeps the lamp burning at the far end of the pier.").decode()
    ((_, _, plain),) = decode_base64(f"see {written[lost:]} there")
    assert "the lamp burning" in plain
