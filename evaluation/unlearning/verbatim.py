"""The longest run of tokens that an answer copies from a protected text.

Independent of the guard's own code (`corruption/decoding/copy_limit.py`): it sees the answer's text only, tokenizes
it again with the model's tokenizer, and searches for runs of tokens in the protected text.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

# Tokens without letters or digits that count between two tokens with some, so that a row of asterisks is no copy.
MAX_BLANK_TOKENS = 3


def longest_copied_run(answer: str, text: str, tokenizer: Any) -> int:
    """Return the length, in tokens of `answer`, of the longest run of tokens that also occurs in `text`.

    Only letters and digits are compared, case-folded and NFKD-normalised. A run begins and ends with a token that has
    some; between two of these, at most MAX_BLANK_TOKENS tokens without any count. tokenizer: a `tokenizers.Tokenizer`.
    """
    text_letters, encoding = _letters(text), tokenizer.encode(answer, add_special_tokens=False)
    token_letters = [_letters(answer[start:end]) for start, end in encoding.offsets]
    begin, longest = 0, 0
    for end in range(1, len(token_letters) + 1):
        while "".join(token_letters[begin:end]) not in text_letters:
            begin += 1
        longest = max(longest, _run_length(token_letters[begin:end]))
    return longest


def copied_runs(
    answers: Mapping[str, Sequence[str]], documents: Sequence[str], model_dir: Path
) -> dict[str, list[int]]:
    """Return system → longest copied run of each answer, in tokens of the model in `model_dir`.

    answers: system → one answer per document, in the order of the documents.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    return {
        system: [longest_copied_run(text, document, tokenizer) for text, document in zip(texts, documents, strict=True)]
        for system, texts in answers.items()
    }


def _run_length(token_letters: Sequence[str]) -> int:
    positions = [i for i, letters in enumerate(token_letters) if letters]
    gaps = sum(min(after - before - 1, MAX_BLANK_TOKENS) for before, after in pairwise(positions))
    return len(positions) + gaps


def _letters(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKD", text).casefold() if c.isalnum())
