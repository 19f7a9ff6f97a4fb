"""Decoys: of the same kind, keyed, and the same for each occurrence of a word."""

from __future__ import annotations

import pytest

from lethe.corruption.embeddings.decoy import CANDIDATES, DecoyVocabulary, token_kind
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
def test_the_kind_of_a_token(piece: str, expected: tuple[bool, str, str] | None) -> None:
    assert token_kind(piece) == expected


def decoys_of(prompts: PromptTokenizer) -> DecoyVocabulary:
    return DecoyVocabulary(prompts.pieces(range(prompts.size)), prompts.model_tokenizer.special_ids())


def swap(decoys: DecoyVocabulary, ids: list[int], chosen: list[bool] | None = None, policy: str = "p") -> list[int]:
    return decoys.replace(ids, chosen or [True] * len(ids), secret=SECRET, policy=policy)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_decoys_keep_number_and_kind_of_tokens(model_folder: ModelFolder, tokenizer: str) -> None:
    prompts = PromptTokenizer(model_folder("marks", tokenizer))
    ids = list(prompts.completion("Who is Ann Bold, born in 1956? Анна.", add_special_tokens=False)[0].ids)
    out = swap(decoys_of(prompts), ids)
    assert [token_kind(p) for p in prompts.pieces(out)] == [token_kind(p) for p in prompts.pieces(ids)]
    for before, after, piece in zip(ids, out, prompts.pieces(ids), strict=True):
        # These are the only tokens of their kind.
        assert (before == after) == (token_kind(piece) is None) or piece in {" Анна", "1956", " 1956"}
    assert sum(a != b for a, b in zip(ids, out, strict=True)) > len(ids) // 2


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_each_occurrence_of_a_word_gets_the_same_decoy(model_folder: ModelFolder, tokenizer: str) -> None:
    prompts = PromptTokenizer(model_folder("marks", tokenizer))
    decoys = decoys_of(prompts)

    def word(prompt: str) -> list[int]:
        span, _ = prompts.completion(prompt, add_special_tokens=False)
        at = prompt.index(" Bold") + 1
        chosen = [a < at + 4 and b > at for a, b in span.offsets]
        out = swap(decoys, list(span.ids), chosen)
        return [token for token, inside in zip(out, chosen, strict=True) if inside]

    assert word("Who is Bold then?") == word("Tell me about Ann Bold and what he wrote.")


def test_a_word_is_replaced_whole_and_alone() -> None:
    pieces = [" Ka", "ra", " Bo", "do", " Li", "mi", ",", "xu"]
    decoys = DecoyVocabulary(pieces, special=())
    out = swap(decoys, [0, 1, 6, 2, 3], [True, False, False, False, False])
    assert out[0] in {2, 4} and out[1] in {3, 5, 7} and out[2:] == [6, 2, 3]


def test_decoys_depend_on_secret_and_policy() -> None:
    pieces = [f" {a}{b}" for a in "ABCDEFGHIJ" for b in "abcdefghij"]
    decoys = DecoyVocabulary(pieces, special=())
    ids = list(range(40))
    one = swap(decoys, ids)
    assert one == swap(DecoyVocabulary(pieces, special=()), ids)
    assert one != swap(decoys, ids, policy="q")
    assert one != decoys.replace(ids, [True] * 40, secret=b"another secret!!", policy="p")


def test_a_decoy_never_has_the_same_text() -> None:
    decoys = DecoyVocabulary([" Bo", " Bo", " Li"], special=())
    assert all(swap(decoys, [0], policy=str(n)) == [2] for n in range(20))


def test_special_tokens_are_neither_replaced_nor_used() -> None:
    decoys = DecoyVocabulary([" Bo", " Li", " Xu"], special={1, 2})
    assert swap(decoys, [0, 1]) == [0, 1]


def test_the_only_token_of_its_kind_stays() -> None:
    assert swap(DecoyVocabulary(["42", " Li"], special=()), [0]) == [0]


def test_decoys_have_nearby_ids() -> None:
    decoys = DecoyVocabulary(
        [f" T{'a' * (n % 7)}{n:05d}".translate(str.maketrans("0123456789", "abcdefghij")) for n in range(4000)],
        (),
    )
    for token in (0, 1999, 3999):
        for n in range(30):
            assert abs(swap(decoys, [token], policy=str(n))[0] - token) <= CANDIDATES


def test_each_token_of_a_long_word_gets_its_own_draw() -> None:
    pieces = [" St", *(a + b for a in "abcdefghij" for b in "klmnopqrst")]
    out = swap(DecoyVocabulary(pieces, ()), [0, *range(1, 31)])
    assert len(set(out[1:])) > 15 and all(a != b for a, b in zip(out[1:], range(1, 31), strict=True))
