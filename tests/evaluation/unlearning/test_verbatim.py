"""The longest copied run, against runs counted by hand."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from lethe.evaluation.unlearning.verbatim import longest_copied_run

TEXT = "'Oh dear! Oh dear!\nI shall be late!' (when she thought it over afterwards)"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A tokenizer whose tokens are words and punctuation marks."""
    word_tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    word_tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return word_tokenizer


@pytest.mark.parametrize(
    ("answer", "length"),
    [
        ("", 0),
        ("Nothing of it", 1),
        ("I shall be late", 4),
        ("so I SHALL  be\nlate, then", 4),
        ("oh dear I shall be early", 5),
        ("oh-dear i shall", 5),
        ("he was late when he thought it over", 4),
        ("I shall not be late; when she", 5),
        ("Ｉ ｓｈａｌｌ be", 3),
        ("!!! ?? ...", 0),
        ("dearoh dearI", 2),
        ("shall * * * * * * be late", 6),
    ],
)
def test_runs_count_tokens_of_the_normalised_text(answer: str, length: int, tokenizer: Tokenizer) -> None:
    assert longest_copied_run(answer, TEXT, tokenizer) == length
