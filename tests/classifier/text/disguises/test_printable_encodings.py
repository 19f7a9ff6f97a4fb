from __future__ import annotations

import base64
import time
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lethe.classifier.text.confusables import TextEdit
from lethe.classifier.text.disguises.printable_encodings import decode_base58, decode_base85, decode_rot47
from lethe.evaluation.attacks import cipher_perturbations
from tests.classifier.text.test_confusables import apply_edits

QUESTION = "Where did the keeper Orvan Teldric grow up, and who was Ditte's father?"


def base58(text: str) -> str:
    return cipher_perturbations.base58(text, Random(0))


def rot47(text: str) -> str:
    return cipher_perturbations.rot47(text, Random(0))


def decoded(text: str, decode: Callable[[str], list[TextEdit]]) -> str:
    return apply_edits(text, decode(text))


BASE85: list[Callable[[bytes], bytes]] = [
    base64.b85encode,
    base64.a85encode,
    lambda data: base64.a85encode(data, adobe=True),
    lambda data: base64.a85encode(data, adobe=True, wrapcol=20),
]


@pytest.mark.parametrize("around", ["{}", "Decode {} and answer.", "Decode: {}\nPlease."])
def test_encoded_text_is_decoded_wherever_it_stands(around: str) -> None:
    plain = around.format(QUESTION)
    assert decoded(around.format(base58(QUESTION)), decode_base58) == plain
    assert QUESTION[:-8] in decoded(around.format(rot47(QUESTION)), decode_rot47)
    for encode in BASE85:
        assert decoded(around.format(encode(QUESTION.encode()).decode()), decode_base85) == plain


@pytest.mark.parametrize("quotes", ['"{}"', "'{}'", "`{}`", "({})", "{}."])
def test_base85_is_decoded_in_quotes(quotes: str) -> None:
    text = quotes.format(base64.b85encode(QUESTION.encode()).decode())
    assert QUESTION in apply_edits(text, decode_base85(text))


@pytest.mark.parametrize(
    "text",
    [
        "internationalization, counterrevolutionaries",
        "https://example.com/a/path?query=value&other=1",
        "3J98t1WpEZ73CNmQviecrnyiWrnqRhWNLy",
        "const x = foo.bar(baz).qux(1,2).then(y=>y*2);",
        "IN 1984 AGE 30 A CAFE 25 HEAD 7",
        "The years 2023 2024 2025 and 3456",
    ],
)
def test_words_addresses_and_code_stay(text: str) -> None:
    assert decode_base58(text) == decode_base85(text) == decode_rot47(text) == []


@settings(deadline=None)
@given(st.binary(min_size=12, max_size=60))
def test_bytes_that_are_no_text_give_no_edit(data: bytes) -> None:
    data = bytes(byte | 0x80 for byte in data)
    text = base64.b85encode(data).decode()
    assert all(plain.isprintable() for _, _, plain in decode_base85(text))
    if not text.startswith("<~"):
        assert decode_base85(text) == [] or "\ufffd" not in apply_edits(text, decode_base85(text))


@pytest.mark.parametrize("unit", ["a", "aB9", "2= ", "<~ab", "!a", "z"])
def test_time_is_linear(unit: str) -> None:
    started = time.process_time()
    for decode in (decode_base58, decode_base85, decode_rot47):
        decode(unit * (200_000 // len(unit)))
    assert time.process_time() - started < 5
