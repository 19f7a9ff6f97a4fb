from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from classifier import ngrams

TEXTS = ["What was the first book?", "", "ÉTÉ été", "\ud800 \ud800x", "ab", "a " * 500]


@pytest.mark.parametrize("rows", [ngrams.word_rows, ngrams.character_rows])
def test_rows_of_a_list_are_the_rows_of_its_members(rows: object, rng: np.random.Generator) -> None:
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
        "from classifier import ngrams\n"
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
