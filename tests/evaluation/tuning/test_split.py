"""Two halves without a common subject."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lethe.classifier.artifact import ForgetItem
from lethe.evaluation.tuning.split import TuningItem, cluster_rows, split_halves, tuning_items


def encode(texts: Sequence[str]) -> NDArray[np.float32]:
    """A direction for each subject (the first word), and a small component for the other words."""
    rows = []
    for text in texts:
        row = np.zeros(64, dtype=np.float32)
        row[sum(map(ord, text.split()[0])) % 32] = 1
        row[32 + len(text) % 32] = 0.3
        rows.append(row / np.linalg.norm(row))
    return np.array(rows)


FACTS = [
    ForgetItem(f"{who} did what in {year}?", f"{who} rested in {year}.", "")
    for who in "abcdefgh"
    for year in range(1901, 1911)
]


def test_halves_share_no_subject_and_have_equal_sizes() -> None:
    for seed in range(5):
        first, second = split_halves(tuning_items(FACTS, encode, seed), seed)
        assert {item.group for item in first}.isdisjoint(item.group for item in second)
        assert {item.prompt[0] for item in first}.isdisjoint(item.prompt[0] for item in second)
        assert len(first) == len(second) == 40
        assert split_halves(tuning_items(FACTS, encode, seed), seed) == (first, second)
    assert split_halves(tuning_items(FACTS, encode, 0), 0) != split_halves(tuning_items(FACTS, encode, 0), 1)


def test_items_of_a_single_subject_are_split_one_by_one() -> None:
    items = [TuningItem(f"p{i}", "r", 7) for i in range(9)]
    first, second = split_halves(items, 0)
    assert {len(first), len(second)} == {4, 5} and {*first, *second} == set(items)


def test_documents_are_halved_and_incomplete_items_are_left_out() -> None:
    items = [ForgetItem("", "", "one two three four five"), ForgetItem("", "", ""), ForgetItem("a question", "", "")]
    assert [(i.prompt, i.reference) for i in tuning_items(items, encode, 0)] == [("one two", "three four five")]


def test_rows_near_each_other_form_a_cluster() -> None:
    rows = encode(["a 1", "a 22", "b 1", "b 22"])
    labels = cluster_rows(rows)
    assert labels[0] == labels[1] != labels[2] == labels[3]
    assert cluster_rows(rows[:1]) == [0] and cluster_rows(rows[:0]) == []
