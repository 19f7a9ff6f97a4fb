"""How similar answers are to the references to forget, and to what a model without that knowledge would answer.

Pure but for the encoder. The four similarities are those of ECO (arXiv:2406.07933, section 3.3 and D.3).
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lethe.evaluation.unlearning.metrics import split_words

Floats = NDArray[np.float64]
Encode = Callable[[Sequence[str]], NDArray[np.float32]]

SIMILARITIES = ("rouge_1", "rouge_l", "characters", "embedding")


def dont_know_sentences() -> list[str]:
    """Return a hundred sentences that say "I don't know" in different words."""
    text = (Path(__file__).parents[1] / "data" / "dont-know.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line]


class _CachedTokenizer:
    """rouge_score's default tokenizer with a cache: every "don't know" sentence is compared with every reference."""

    def __init__(self) -> None:
        from rouge_score.tokenizers import DefaultTokenizer

        self.tokenize = lru_cache(maxsize=10_000)(DefaultTokenizer(True).tokenize)


@cache
def _rouge_scorer() -> Any:
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer(["rouge1", "rougeL"], tokenizer=_CachedTokenizer())


def similarities(answers: Sequence[str], references: Sequence[str], encode: Encode) -> Floats:
    """Return (N, 4) similarities of each answer to its reference, all in [0, 1], in the order of SIMILARITIES.

    ROUGE-1 F1 and ROUGE-L recall with stemming, cosine of character 3-gram counts, cosine of sentence embeddings.
    An answer without words has similarity 0.
    """
    cosines = np.einsum("nd,nd->n", *(_encode_beginnings(texts, encode) for texts in (answers, references))).clip(0, 1)
    rows = []
    for answer, reference, cosine in zip(answers, references, cosines, strict=True):
        if not split_words(answer):
            rows.append([0.0] * len(SIMILARITIES))
            continue
        rouge = _rouge_scorer().score(reference, answer)
        rows.append([rouge["rouge1"].fmeasure, rouge["rougeL"].recall, _trigram_cosine(answer, reference), cosine])
    return np.array(rows, dtype=np.float64).reshape(-1, len(SIMILARITIES))


def _encode_beginnings(texts: Sequence[str], encode: Encode) -> NDArray[np.float32]:
    # The encoder refuses long and empty texts; the first 80 words show what an answer is about.
    return encode([" ".join(text.split()[:80])[:600] or "-" for text in texts])


def _trigram_cosine(one: str, other: str) -> float:
    (a, a_norm), (b, b_norm) = _trigrams(one.casefold()), _trigrams(other.casefold())
    # Rounding can give slightly more than 1.
    return min(1.0, sum(n * b[gram] for gram, n in a.items()) / (a_norm * b_norm)) if a_norm and b_norm else 0.0


@lru_cache(maxsize=10_000)
def _trigrams(text: str) -> tuple[Counter[str], float]:
    """Counts of a text's character 3-grams, and their Euclidean norm."""
    counts = Counter(text[i : i + 3] for i in range(len(text) - 2))
    return counts, math.sqrt(sum(n * n for n in counts.values()))


def surrogate_similarities(
    references: Sequence[str], surrogate_answers: Sequence[Sequence[str]], encode: Encode
) -> Floats:
    """Return (N, R, 4): the similarities to each reference of the R answers that stand for an ignorant model's."""
    pairs = [
        (answer, reference)
        for reference, answers in zip(references, surrogate_answers, strict=True)
        for answer in answers
    ]
    flat = similarities([answer for answer, _ in pairs], [reference for _, reference in pairs], encode)
    return flat.reshape(len(references), -1, len(SIMILARITIES))


def other_references(references: Sequence[str], groups: Sequence[int], seed: int, count: int = 25) -> list[list[str]]:
    """Return for each of N items `count` random references of items of other groups (with one group: other items)."""
    rng = random.Random(seed)
    rows = []
    for i, group in enumerate(groups):
        elsewhere = [r for r, g in zip(references, groups, strict=True) if g != group]
        rows.append(rng.choices(elsewhere or [r for j, r in enumerate(references) if j != i], k=count))
    return rows
