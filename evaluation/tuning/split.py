"""An artifact's forget items as prompts with references, in two halves that share no subject. Pure.

What is tuned on one half is reported on the other. Items about the same person or thing lie near each other as
sentence embeddings, so whole clusters go to one half.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lethe.classifier.artifact import ForgetItem

# Average linkage: rows further apart than this (cosine distance) are about different things.
APART = 0.5
# Embedding and clustering take seconds for so many; tuning asks a few dozen of them.
MOST_ITEMS = 600
Encode = Callable[[Sequence[str]], NDArray[np.float32]]


@dataclass(frozen=True)
class Item:
    """A prompt that asks for something forgotten, and what is to be forgotten about it. group: its cluster."""

    prompt: str
    reference: str
    group: int


def items(given: Sequence[ForgetItem], encode: Encode, seed: int) -> list[Item]:
    """An artifact's items, at most MOST_ITEMS of them by lot: facts as they are, a document's first half as the prompt
    for its second. Those without a prompt or a reference are left out."""
    pairs = [pair for item in given if all(pair := _parts(item))]
    if len(pairs) > MOST_ITEMS:
        pairs = random.Random(seed).sample(pairs, MOST_ITEMS)
    groups = clusters(encode([" ".join(prompt.split()[:80])[:600] for prompt, _ in pairs]))
    return [Item(prompt, reference, group) for (prompt, reference), group in zip(pairs, groups, strict=True)]


def _parts(item: ForgetItem) -> tuple[str, str]:
    if item.text and not item.prompt:
        found = item.text.split()
        return " ".join(found[: len(found) // 2]), " ".join(found[len(found) // 2 :])
    return item.prompt, item.answer


def clusters(vectors: NDArray[np.float32]) -> list[int]:
    """A cluster number for each of N unit rows (N, D)."""
    if len(vectors) < 2:
        return [0] * len(vectors)
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    distances = (1 - vectors @ vectors.T).clip(0, 2)
    np.fill_diagonal(distances, 0)
    tree = linkage(squareform(distances, checks=False), "average")
    return [int(label) for label in fcluster(tree, APART, "distance")]


def halves(given: Sequence[Item], seed: int) -> tuple[list[Item], list[Item]]:
    """Whole groups into two halves of about the same size, each in random order.

    Where all items are one group, the items themselves are dealt out. The same seed gives the same halves.
    """
    rng = random.Random(seed)
    grouped: dict[int, list[Item]] = {}
    for item in given:
        grouped.setdefault(item.group, []).append(item)
    blocks = list(grouped.values()) if len(grouped) > 1 else [[item] for item in given]
    rng.shuffle(blocks)
    made: tuple[list[Item], list[Item]] = ([], [])
    # The largest first, so that no big cluster is left for the end, when it could only unbalance the halves.
    for block in sorted(blocks, key=len, reverse=True):
        min(made, key=len).extend(block)
    for half in made:
        rng.shuffle(half)
    return made
