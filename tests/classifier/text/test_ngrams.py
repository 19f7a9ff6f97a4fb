from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from lethe.classifier.text import ngrams

TEXTS = ["What was the first book?", "", "ÉTÉ été", "\ud800 \ud800x", "ab", "a " * 500]


@pytest.mark.parametrize("rows", [ngrams.word_rows, ngrams.character_rows])
def test_rows_of_a_list_are_the_rows_of_its_texts(rows: object, rng: np.random.Generator) -> None:
    assert callable(rows)
    weights = rng.normal(size=ngrams.BUCKETS).astype(np.float32)
    together = rows(TEXTS).dot(weights)
    assert together.tolist() == [rows([text]).dot(weights)[0] for text in TEXTS]
    assert rows([]).dot(weights).shape == (0,)


def test_rows_have_unit_length_and_ignore_case() -> None:
    rows = ngrams.word_rows(["One Two three", "one two THREE"])
    first, second = np.split(rows.values, [rows.starts[1]])
    assert np.isclose((first**2).sum(), 1)
    assert first.tolist() == second.tolist()


def test_hashes_are_the_same_in_another_process() -> None:
    code = (
        "from lethe.classifier.text import ngrams\n"
        "r = [f(['Vardholm ist weit', 'x']) for f in (ngrams.word_rows, ngrams.character_rows)]\n"
        "print([x.buckets.tolist() for x in r])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_rows_of_a_range_are_the_rows_of_its_text(rng: np.random.Generator) -> None:
    units = "What was the first-ever book of É. Vardholm  -- and\x00 why ?! one two one two".split(" ")
    document = ngrams.NgramDocument(units)
    weights = rng.normal(size=(2 * ngrams.BUCKETS, 3)).astype(np.float16)
    ranges = [(a, b) for a in range(len(units) + 1) for b in range(a, len(units) + 1)]
    first, last = (np.array(ends) for ends in zip(*ranges, strict=True))
    texts = [" ".join(units[a:b]) for a, b in ranges]
    joint = document.joint_rows(first, last).dot(weights)
    words, characters = ngrams.word_rows(texts), ngrams.character_rows(texts)
    assert joint[::2].tolist() == words.dot(weights[: ngrams.BUCKETS]).tolist()
    assert joint[1::2].tolist() == characters.dot(weights[ngrams.BUCKETS :]).tolist()
    assert document.word_rows(first, last).buckets.tolist() == words.buckets.tolist()
    row, bucket = document.distinct_words(first, last)
    expected = [
        (i, b) for i, text in enumerate(texts) for b in sorted({*map(ngrams.word_bucket, ngrams.split_words(text))})
    ]
    assert list(zip(row.tolist(), bucket.tolist(), strict=True)) == expected


def test_batches_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"row {i} of {'many ' * (i % 7)}" for i in range(300)]
    whole = ngrams.character_rows(texts)
    monkeypatch.setattr(ngrams, "BATCH_NGRAMS", 500)
    batched = ngrams.character_rows(texts)
    assert batched.starts.tolist() == whole.starts.tolist()
    assert batched.buckets.tolist() == whole.buckets.tolist() and batched.values.tolist() == whole.values.tolist()
