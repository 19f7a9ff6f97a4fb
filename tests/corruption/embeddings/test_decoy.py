"""Decoys: of the same kind, keyed, and the same for a word wherever it stands."""

from __future__ import annotations

import pytest

from lethe.corruption.embeddings.decoy import WINDOW, DecoyVocabulary, token_kind
from lethe.corruption.prompt.prompt_tokenizer import PromptTokenizer
from tests.corruption.conftest import SECRET, ModelFolder

TOKENIZERS = ["byte-level", "sentencepiece"]


@pytest.mark.parametrize(
    ("piece", "expected"),
    [
        (" Ann", (True, "LATIN", "title")),
        ("Ann", (False, "LATIN", "title")),
        ("old", (False, "LATIN", "lower")),
        (" RIVER", (True, "LATIN", "upper")),
        (" A", (True, "LATIN", "initial")),
        (" iPod", (True, "LATIN", "mixed")),
        ("1956", (False, "digits", "4")),
        (" Анна", (True, "CYRILLIC", "title")),
        ("日本", (False, "CJK", "uncased")),
        ("\ufffd", (False, "fragment", "")),
        ("_x1", (False, "mixed", "")),
        (" ,", None),
        ("\n", None),
        ("", None),
    ],
)
def test_kinds(piece: str, expected: tuple[bool, str, str] | None) -> None:
    assert token_kind(piece) == expected


def decoys_of(text: PromptTokenizer) -> DecoyVocabulary:
    return DecoyVocabulary(text.pieces(range(text.size)), text.model_tokenizer.special_ids())


def swap(decoys: DecoyVocabulary, ids: list[int], chosen: list[bool] | None = None, policy: str = "p") -> list[int]:
    return decoys.replace(ids, chosen or [True] * len(ids), secret=SECRET, policy=policy)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_decoys_keep_number_and_kind_of_tokens_and_leave_punctuation(model_folder: ModelFolder, tokenizer: str) -> None:
    text = PromptTokenizer(model_folder("marks", tokenizer))
    ids = list(text.completion("Who is Ann Bold, born in 1956? Анна.", add_special_tokens=False)[0].ids)
    out = swap(decoys_of(text), ids)
    assert [token_kind(p) for p in text.pieces(out)] == [token_kind(p) for p in text.pieces(ids)]
    for before, after, piece in zip(ids, out, text.pieces(ids), strict=True):
        # A kind with one member only has no decoy to offer.
        assert (before == after) == (token_kind(piece) is None) or piece in {" Анна", "1956", " 1956"}
    assert sum(a != b for a, b in zip(ids, out, strict=True)) > len(ids) // 2


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_a_word_meets_the_same_decoy_wherever_it_stands(model_folder: ModelFolder, tokenizer: str) -> None:
    text = PromptTokenizer(model_folder("marks", tokenizer))
    decoys = decoys_of(text)

    def word(prompt: str) -> list[int]:
        span, _ = text.completion(prompt, add_special_tokens=False)
        at = prompt.index(" Bold") + 1
        chosen = [a < at + 4 and b > at for a, b in span.offsets]
        out = swap(decoys, list(span.ids), chosen)
        return [token for token, inside in zip(out, chosen, strict=True) if inside]

    assert word("Who is Bold then?") == word("Tell me about Ann Bold and what he wrote.")


def test_part_of_a_word_takes_the_whole_word_and_nothing_else() -> None:
    pieces = [" Ka", "ra", " Bo", "do", " Li", "mi", ",", "xu"]
    decoys = DecoyVocabulary(pieces, special=())
    out = swap(decoys, [0, 1, 6, 2, 3], [True, False, False, False, False])
    assert out[0] in {2, 4} and out[1] in {3, 5, 7} and out[2:] == [6, 2, 3]


def test_secret_and_policy_choose() -> None:
    pieces = [f" {a}{b}" for a in "ABCDEFGHIJ" for b in "abcdefghij"]
    decoys = DecoyVocabulary(pieces, special=())
    ids = list(range(40))
    one = swap(decoys, ids)
    assert one == swap(DecoyVocabulary(pieces, special=()), ids)
    assert one != swap(decoys, ids, policy="q")
    assert one != decoys.replace(ids, [True] * 40, secret=b"another secret!!", policy="p")


def test_the_same_text_in_another_spelling_is_no_decoy() -> None:
    decoys = DecoyVocabulary([" Bo", " Bo", " Li"], special=())
    assert all(swap(decoys, [0], policy=str(n)) == [2] for n in range(20))


def test_special_tokens_are_neither_replaced_nor_used() -> None:
    decoys = DecoyVocabulary([" Bo", " Li", " Xu"], special={1, 2})
    assert swap(decoys, [0, 1]) == [0, 1]


def test_a_token_alone_of_its_kind_stays() -> None:
    assert swap(DecoyVocabulary(["42", " Li"], special=()), [0]) == [0]


def test_decoys_are_about_as_frequent() -> None:
    decoys = DecoyVocabulary(
        [f" T{'a' * (n % 7)}{n:05d}".translate(str.maketrans("0123456789", "abcdefghij")) for n in range(4000)],
        (),
    )
    for token in (0, 1999, 3999):
        for n in range(30):
            assert abs(swap(decoys, [token], policy=str(n))[0] - token) <= WINDOW


def test_a_word_of_many_tokens_draws_for_each() -> None:
    pieces = [" St", *(a + b for a in "abcdefghij" for b in "klmnopqrst")]
    out = swap(DecoyVocabulary(pieces, ()), [0, *range(1, 31)])
    assert len(set(out[1:])) > 15 and all(a != b for a, b in zip(out[1:], range(1, 31), strict=True))
