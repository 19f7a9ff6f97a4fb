"""Turn forget items into prompts with references, and split them into two halves without a common subject.

One half is tuned on; the other is reported. Items about the same person or thing lie near each other as sentence
embeddings, so a whole cluster goes to one half. Pure but for the encoder.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lethe.classifier.artifact import ForgetItem

# Cosine distance; average linkage does not join clusters further apart than this.
CLUSTER_DISTANCE = 0.5
# Items that are clustered, at most: embedding and clustering that many take seconds; tuning uses a few dozen.
MAX_ITEMS = 600
Encode = Callable[[Sequence[str]], NDArray[np.float32]]


@dataclass(frozen=True)
class TuningItem:
    """A prompt about something to forget, and the reference: the answer to forget. group: its cluster's number."""

    prompt: str
    reference: str
    group: int


def tuning_items(forget_items: Sequence[ForgetItem], encode: Encode, seed: int) -> list[TuningItem]:
    """Return prompts with references, at most MAX_ITEMS of them, chosen at random.

    A fact gives its prompt and answer; a document's first half is the prompt for its second. Items without a prompt or
    a reference are left out.
    """
    pairs = [pair for item in forget_items if all(pair := _prompt_and_reference(item))]
    if len(pairs) > MAX_ITEMS:
        pairs = random.Random(seed).sample(pairs, MAX_ITEMS)
    groups = cluster_rows(encode([" ".join(prompt.split()[:80])[:600] for prompt, _ in pairs]))
    return [TuningItem(prompt, reference, group) for (prompt, reference), group in zip(pairs, groups, strict=True)]


def _prompt_and_reference(item: ForgetItem) -> tuple[str, str]:
    if item.text and not item.prompt:
        words = item.text.split()
        return " ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])
    return item.prompt, item.answer


def cluster_rows(vectors: NDArray[np.float32]) -> list[int]:
    """Return a cluster number for each of N unit rows (N, D)."""
    if len(vectors) < 2:
        return [0] * len(vectors)
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    distances = (1 - vectors @ vectors.T).clip(0, 2)
    np.fill_diagonal(distances, 0)
    tree = linkage(squareform(distances, checks=False), "average")
    return [int(label) for label in fcluster(tree, CLUSTER_DISTANCE, "distance")]


def split_halves(items: Sequence[TuningItem], seed: int) -> tuple[list[TuningItem], list[TuningItem]]:
    """Split whole groups into two halves of about the same size, each in random order.

    If all items are one group, single items are distributed. The same seed gives the same halves.
    """
    rng = random.Random(seed)
    groups: dict[int, list[TuningItem]] = {}
    for item in items:
        groups.setdefault(item.group, []).append(item)
    blocks = list(groups.values()) if len(groups) > 1 else [[item] for item in items]
    rng.shuffle(blocks)
    halves: tuple[list[TuningItem], list[TuningItem]] = ([], [])
    # The largest groups first: a large group at the end would unbalance the halves.
    for block in sorted(blocks, key=len, reverse=True):
        min(halves, key=len).extend(block)
    for half in halves:
        rng.shuffle(half)
    return halves
