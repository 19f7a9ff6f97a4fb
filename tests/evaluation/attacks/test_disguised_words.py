from __future__ import annotations

from random import Random

import pytest

from lethe.evaluation.attacks.disguised_words import DISGUISED_WORDS

TEXT = "Where was the lighthouse keeper Orvan Teldric born?"


@pytest.mark.parametrize("name", DISGUISED_WORDS)
def test_the_name_is_no_longer_there_and_words_keep_their_first_letter(name: str) -> None:
    text = DISGUISED_WORDS[name](TEXT, Random(1))
    assert "Orvan Teldric" not in text
    assert [word[0] for word in text.split()] == [word[0] for word in TEXT.split()]


@pytest.mark.parametrize("name", ["masked-names", "masked-vowels", "masked-letters", "names-without-vowels"])
def test_only_names_change(name: str) -> None:
    assert DISGUISED_WORDS[name](TEXT, Random(1)).startswith("Where was the lighthouse keeper ")


@pytest.mark.parametrize("name", ["masked-names", "names-without-vowels"])
def test_long_words_change_where_there_is_no_name(name: str) -> None:
    assert DISGUISED_WORDS[name]("who keeps the lighthouse", Random(1)).split()[:1] == ["who"]
    assert "lighthouse" not in DISGUISED_WORDS[name]("who keeps the lighthouse", Random(1))
