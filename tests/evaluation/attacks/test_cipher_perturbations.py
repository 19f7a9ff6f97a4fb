from __future__ import annotations

import base64
from random import Random

import pytest

from lethe.evaluation.attacks.cipher_perturbations import CIPHERS

TEXT = "Where was the lighthouse keeper Orvan Teldric born?"


def cipher(name: str, text: str, seed: int = 0) -> str:
    return CIPHERS[name](text, Random(seed))


@pytest.mark.parametrize("name", CIPHERS)
def test_no_word_of_the_text_is_left(name: str) -> None:
    assert not {"keeper", "Orvan", "Teldric"} & set(cipher(name, TEXT).split())


def test_known_examples() -> None:
    assert cipher("rot47", "Hello, World!") == "w6==@[ (@C=5P"
    assert cipher("rot47", cipher("rot47", TEXT)) == TEXT
    assert cipher("base58", "Hello World!") == "2NEpo7TZRRrLZSi2U"
    assert cipher("braille", "abc xyz") == "⠁⠃⠉ ⠭⠽⠵"
    assert cipher("nato-alphabet", "ab").startswith("Alfa Bravo")
    assert cipher("pig-latin", "The string quiet apple", 2).split()[:3] == ["Ethay", "ingstray", "ietquay"]
    decoders = (base64.b85decode, base64.a85decode, lambda data: base64.a85decode(data, adobe=True))
    encoded = [cipher("base85", TEXT, seed).encode() for seed in range(9)]
    assert {decode(data) for data in encoded for decode in decoders if _decodes(decode, data)} >= {TEXT.encode()}


def _decodes(decode, data: bytes) -> bool:  # type: ignore[no-untyped-def]
    try:
        return bool(decode(data))
    except ValueError:
        return False
