"""Two halves that share no subject."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lethe.classifier.artifact import ForgetItem
from lethe.evaluation.tuning.split import Item, clusters, halves, items


def encode(texts: Sequence[str]) -> NDArray[np.float32]:
    """A direction for each subject (the first word), and a little for the rest."""
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


def test_halves_share_no_subject_and_are_of_a_size() -> None:
    for seed in range(5):
        one, other = halves(items(FACTS, encode, seed), seed)
        assert {item.group for item in one}.isdisjoint(item.group for item in other)
        assert {item.prompt[0] for item in one}.isdisjoint(item.prompt[0] for item in other)
        assert len(one) == len(other) == 40
        assert halves(items(FACTS, encode, seed), seed) == (one, other)
    assert halves(items(FACTS, encode, 0), 0) != halves(items(FACTS, encode, 0), 1)


def test_one_subject_is_dealt_out_item_by_item() -> None:
    given = [Item(f"p{i}", "r", 7) for i in range(9)]
    one, other = halves(given, 0)
    assert {len(one), len(other)} == {4, 5} and {*one, *other} == set(given)


def test_documents_ask_for_their_second_half_and_removed_items_are_left_out() -> None:
    given = [ForgetItem("", "", "one two three four five"), ForgetItem("", "", ""), ForgetItem("a question", "", "")]
    assert [(i.prompt, i.reference) for i in items(given, encode, 0)] == [("one two", "three four five")]


def test_clusters() -> None:
    rows = encode(["a 1", "a 22", "b 1", "b 22"])
    labels = clusters(rows)
    assert labels[0] == labels[1] != labels[2] == labels[3]
    assert clusters(rows[:1]) == [0] and clusters(rows[:0]) == []
