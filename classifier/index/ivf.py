"""Approximate search over the index rows of a large artifact, where scoring all of them would take too long.

Two sources of candidates are joined: the cells around a query in an inverted file (IVF; Jégou, Douze and Schmid,
"Product quantization for nearest neighbor search", 2011), whose rows are stored as 8-bit integers, and the inverted
index of rare words in `similarity.py`. The candidates are then scored exactly, by the code that scores every row of a
small artifact. A row that both sources overlook is a missed detection, never a false alarm;
`benchmarks/many_prompts.py` measures how often that happens. Knows no threshold.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lethe.classifier.index.similarity import HUBNESS_WEIGHT, ForgetTextMatcher, TextWords, run_edges

# Index rows above which a fit arranges them in cells. Chosen: scoring that many takes about as long as one encoding.
MAX_ROWS_WITHOUT_CELLS = 1 << 14
# Mean index rows of a cell. Chosen: about the square root of the number of rows at 65,000 rows.
CELL_ROWS = 256
# Cells that are searched for a query. Chosen with MAX_CANDIDATES for the recall that benchmarks/many_prompts.py prints.
PROBED_CELLS = 48
# Candidates that each source keeps for a query.
MAX_CANDIDATES = 64
# Rounds of k-means. Chosen: more hardly move the centres.
KMEANS_ROUNDS = 8
# Index rows a cell that k-means is run on; a random sample of the rest stands for all.
SAMPLE_ROWS = 64
# The largest 8-bit integer, to which the largest coordinate is scaled.
MAX_INT8 = 127
# Index rows that are converted to float32 at once: bounds memory to some MB.
BLOCK_ROWS = 1 << 12

Integers = NDArray[np.int64]
Floats = NDArray[np.float32]


def arrange_in_cells(
    vectors: NDArray[np.floating], rng: np.random.Generator
) -> tuple[Integers, Integers, NDArray[np.float16]]:
    """Cluster unit rows (R, D) into cells by k-means. Imports scipy.

    Returns (R,) an order that puts the rows of each cell side by side, (C + 1,) where each cell begins in that order,
    and (C, D) the cells' centres.
    """
    from scipy.cluster.vq import kmeans2

    count = max(len(vectors) // CELL_ROWS, 1)
    sample = rng.choice(len(vectors), min(SAMPLE_ROWS * count, len(vectors)), replace=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about empty cells, which are removed below
        float_centres, _ = kmeans2(
            vectors[np.sort(sample)].astype(np.float32), count, iter=KMEANS_ROUNDS, minit="points", seed=rng
        )
    centres = float_centres.astype(np.float16)
    rounded = centres.astype(np.float32)
    half_squares = (rounded * rounded).sum(axis=1) / 2
    cell_of_row = np.empty(len(vectors), dtype=np.int64)
    for block, out in zip(_blocks(vectors), _blocks(cell_of_row), strict=True):
        out[:] = (block @ rounded.T - half_squares).argmax(axis=1)
    # Equal rows make equal centres, one of which gets all rows. The empty ones would be probed in its place.
    used, cell_of_row = np.unique(cell_of_row, return_inverse=True)
    starts = np.concatenate([[0], np.cumsum(np.bincount(cell_of_row))]).astype(np.int64)
    return np.argsort(cell_of_row, kind="stable"), starts, centres[used]


class CellIndex:
    """The index rows of a large artifact, arranged in cells for search. Thread-safe."""

    def __init__(
        self, arrays: Mapping[str, NDArray[Any]], matcher: ForgetTextMatcher, removed: NDArray[np.bool_]
    ) -> None:
        """matcher: matches the same index rows. removed: (R,) which index rows belong to removed forget items."""
        self._starts: Integers = arrays["cell_starts"]
        self._centres: Floats = arrays["cell_centres"].astype(np.float32)
        self._half_squares = (self._centres * self._centres).sum(axis=1) / 2
        self._matcher = matcher
        self._hubness_term = (HUBNESS_WEIGHT * arrays["targets_hubness"]).astype(np.float32)
        self._remaining = ~removed if removed.any() else None
        index = arrays["index"]
        self._step = float(max(np.abs(block).max() for block in _blocks(index))) / MAX_INT8
        self._rows = np.empty(index.shape, dtype=np.int8)
        for block, out in zip(_blocks(index), _blocks(self._rows), strict=True):
            np.rint(block / self._step, out=block)
            out[:] = block

    def candidates(self, vectors: Floats, words: TextWords) -> Integers:
        """Return (K,) the numbers, rising, of the index rows that may match any of N queries.

        vectors: (N, D) the queries' embeddings. words: their distinct hashed words.
        """
        by_words = self._matcher.forget_texts_sharing_words(words, len(vectors), MAX_CANDIDATES)
        return np.unique(np.concatenate([self._nearest_in_cells(vectors), by_words]))

    def _nearest_in_cells(self, vectors: Floats) -> Integers:
        """Return the index rows with the highest cosine minus hubness term in each query's nearest cells."""
        count = min(PROBED_CELLS, len(self._centres))
        distance = self._half_squares - vectors @ self._centres.T
        probed = np.argpartition(distance, count - 1, axis=1)[:, :count]
        # Cell by cell, so that a cell that several queries probe is converted once.
        query = np.repeat(np.arange(len(vectors)), count)
        order = np.argsort(probed, axis=None, kind="stable")
        query, cell = query[order], probed.ravel()[order]
        scaled = vectors * np.float32(self._step)
        scores: list[list[tuple[int, Floats]]] = [[] for _ in vectors]
        for first, last in pairwise(run_edges(cell).tolist()):
            cell_start, cell_end = self._starts[cell[first] : cell[first] + 2].tolist()
            # A cell may be much larger than the mean, if many rows are equal.
            for start in range(cell_start, cell_end, BLOCK_ROWS):
                end = min(start + BLOCK_ROWS, cell_end)
                block = self._rows[start:end].astype(np.float32)
                # One by one: for small matrix products, BLAS starts threads that cost more than the product.
                for number in query[first:last].tolist():
                    scores[number].append((start, block @ scaled[number] - self._hubness_term[start:end]))
        candidates = []
        for parts in scores:
            score = np.concatenate([score for _, score in parts])
            rows = np.concatenate([np.arange(start, start + len(score)) for start, score in parts])
            candidates.append(_highest(rows, score))
            if self._remaining is not None:
                remaining = self._remaining[rows]
                candidates.append(_highest(rows[remaining], score[remaining]))
        return np.concatenate(candidates)


def _highest(numbers: Integers, scores: Floats) -> Integers:
    """Return the numbers of the MAX_CANDIDATES highest scores, in any order."""
    if len(scores) <= MAX_CANDIDATES:
        return numbers
    return numbers[np.argpartition(-scores, MAX_CANDIDATES - 1)[:MAX_CANDIDATES]]


def _blocks(index: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield BLOCK_ROWS rows at a time; float16 as float32, which most processors compute with faster."""
    for start in range(0, len(index), BLOCK_ROWS):
        block = index[start : start + BLOCK_ROWS]
        yield block.astype(np.float32) if block.dtype == np.float16 else block
