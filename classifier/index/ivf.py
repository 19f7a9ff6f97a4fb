"""Which index rows are worth scoring, where there are too many to score all. Knows no threshold and no fusion.

Two sources are joined: the cells of nearest neighbours around a row (an inverted file: Jégou et al., 2011), seen in
eight bits, and the inverted index of rare words. What they find is scored exactly, by the code that scores everything
in small artifacts; what both overlook is a miss of the guard, never a false alarm. `benchmarks/many_prompts.py`
measures how often that happens.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lethe.classifier.index.similarity import ORDINARY_WEIGHT, Matcher, RowWords, run_edges

# A fit of more index rows than this lays them out in cells. All of so many take about as long as an encoder does.
CELLS_FROM = 1 << 14
# Index rows of a cell, on the average.
CELL_ROWS = 256
# So many cells around a row are looked into, and so many index rows are kept of each source.
PROBED = 48
KEPT = 64
# Rounds of k-means, over so many rows for each cell.
ROUNDS = 8
SAMPLED = 64
LEVELS = 127
# Rows that are worked on at once: bounds memory.
BLOCK_ROWS = 1 << 12

Integers = NDArray[np.int64]
Floats = NDArray[np.float32]


def arranged(vectors: NDArray[np.floating], rng: np.random.Generator) -> tuple[Integers, Integers, NDArray[np.float16]]:
    """(R,) an order of unit rows (R, D) that puts neighbours side by side, (C + 1,) where each cell of it starts, and
    (C, D) the cells' centres. Imports scipy."""
    from scipy.cluster.vq import kmeans2

    count = max(len(vectors) // CELL_ROWS, 1)
    few = rng.choice(len(vectors), min(SAMPLED * count, len(vectors)), replace=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of empty cells, which are left out below
        found, _ = kmeans2(vectors[np.sort(few)].astype(np.float32), count, iter=ROUNDS, minit="points", seed=rng)
    centres = found.astype(np.float16)
    against = centres.astype(np.float32)
    square = (against * against).sum(axis=1) / 2
    owner = np.empty(len(vectors), dtype=np.int64)
    for part, out in zip(_blocks(vectors), _blocks(owner), strict=True):
        out[:] = (part @ against.T - square).argmax(axis=1)
    # Equal rows make equal centres, of which one owns them all: the others would be looked into in its place.
    held, owner = np.unique(owner, return_inverse=True)
    starts = np.concatenate([[0], np.cumsum(np.bincount(owner))]).astype(np.int64)
    return np.argsort(owner, kind="stable"), starts, centres[held]


class Search:
    """The index rows of a large artifact, ready to be searched. Safe to call from several threads."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]], matcher: Matcher, removed: NDArray[np.bool_]) -> None:
        """matcher: of the same rows as targets. removed: (R,) rows of items that were taken out."""
        self._starts: Integers = arrays["cell_starts"]
        self._centres: Floats = arrays["cell_centres"].astype(np.float32)
        self._half = (self._centres * self._centres).sum(axis=1) / 2
        self._matcher = matcher
        self._less = (ORDINARY_WEIGHT * arrays["targets_ordinary"]).astype(np.float32)
        self._live = ~removed if removed.any() else None
        index = arrays["index"]
        self._step = float(max(np.abs(part).max() for part in _blocks(index))) / LEVELS
        self._rows = np.empty(index.shape, dtype=np.int8)
        for part, out in zip(_blocks(index), _blocks(self._rows), strict=True):
            np.rint(part / self._step, out=part)
            out[:] = part

    def candidates(self, vectors: Floats, words: RowWords) -> Integers:
        """(K,) rising numbers of the index rows that any of N rows may ask for. vectors: (N, D) their embeddings;
        words: their distinct words."""
        return np.unique(np.concatenate([self._near(vectors), self._matcher.sharing(words, len(vectors), KEPT)]))

    def _near(self, vectors: Floats) -> Integers:
        """Of each row's cells, the index rows that match it best by cosine."""
        most = min(PROBED, len(self._centres))
        distance = self._half - vectors @ self._centres.T
        probed = np.argpartition(distance, most - 1, axis=1)[:, :most]
        # Cell by cell, so that those that several rows look into are read once.
        row = np.repeat(np.arange(len(vectors)), most)
        order = np.argsort(probed, axis=None, kind="stable")
        row, cell = row[order], probed.ravel()[order]
        scaled = vectors * np.float32(self._step)
        found: list[list[tuple[int, Floats]]] = [[] for _ in vectors]
        for first, last in pairwise(run_edges(cell).tolist()):
            begin, until = self._starts[cell[first] : cell[first] + 2].tolist()
            # Of many equal rows a cell may hold any number.
            for start in range(begin, until, BLOCK_ROWS):
                end = min(start + BLOCK_ROWS, until)
                block = self._rows[start:end].astype(np.float32)
                # One by one: for products of small matrices the libraries start threads that cost more than they do.
                for r in row[first:last].tolist():
                    found[r].append((start, block @ scaled[r] - self._less[start:end]))
        kept = []
        for parts in found:
            score = np.concatenate([score for _, score in parts])
            at = np.concatenate([np.arange(start, start + len(score)) for start, score in parts])
            kept.append(_best(at, score))
            if self._live is not None:
                live = self._live[at]
                kept.append(_best(at[live], score[live]))
        return np.concatenate(kept)


def _best(numbers: Integers, scores: Floats) -> Integers:
    """The numbers of the KEPT highest scores."""
    if len(scores) <= KEPT:
        return numbers
    return numbers[np.argpartition(-scores, KEPT - 1)[:KEPT]]


def _blocks(index: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """The rows some at a time; halves as single numbers, since few processors reckon with halves."""
    for start in range(0, len(index), BLOCK_ROWS):
        part = index[start : start + BLOCK_ROWS]
        yield part.astype(np.float32) if part.dtype == np.float16 else part
