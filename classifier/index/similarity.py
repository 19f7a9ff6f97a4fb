"""How closely a text asks for one forgotten text: cosine, shared rare words, and how ordinary the text is.

Nothing here is trained, so a forgotten text can come and go without any other noticing. `ordinary` is a
forgotten text's mean cosine to its nearest counter-examples: one that resembles what must stay unflagged has
to be matched more closely (hubness; cross-domain similarity local scaling, Conneau et al., arXiv:1710.04087).
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lethe.classifier.text import ngrams
from lethe.classifier.text.ngrams import BUCKETS

WORDS_WEIGHT = 0.15
ORDINARY_WEIGHT = 0.3
NEIGHBOURS = 5
# So many pairs of a row and a target are worked on at once: bounds memory.
AT_ONCE = 1 << 21
# So many entries of the words' lists are read for a row, to find out what it shares at most; and to find some targets.
MOST_LISTED = 1 << 17
MOST_SEARCHED = 1 << 14
# So many texts' words are hashed at once.
TEXTS_AT_ONCE = 1024
# More embeddings than this are compared with counter-examples so many at once.
MANY, ROWS_AT_ONCE = 1 << 15, 256
# Shares of other and of forget texts below the knots of `levels`.
OTHER_SHARES = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 1.0)
FORGET_SHARES = (0.5, 0.75, 1.0)

Vector = NDArray[np.float64]
# (n,) numbers of rows, rising, and (n,) hashed words: the distinct words of each row.
RowWords = tuple[NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True)
class Targets:
    """R forgotten texts: row r has `ordinary[r]`, and the words at starts[r]..starts[r + 1].

    buckets: (n,) hashed distinct words; shares: (n,) float32 how much of the row's rarity each carries, summing
    to 1 for a row that has words.
    """

    ordinary: NDArray[np.float64]
    starts: NDArray[np.int64]
    buckets: NDArray[np.int32]
    shares: NDArray[np.float32]

    @staticmethod
    def of(arrays: Mapping[str, NDArray[Any]], kind: str) -> Targets:
        """Those in an artifact's arrays: of the fit (kind "targets"), or added since ("added")."""
        return Targets(*(arrays[f"{kind}_{name}"] for name in ("ordinary", "starts", "buckets", "shares")))

    def some(self, rows: NDArray[np.int64]) -> Targets:
        """Only those of the given numbers, in that order."""
        lengths = self.starts[rows + 1] - self.starts[rows]
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        at = np.arange(starts[-1]) + np.repeat(self.starts[rows] - starts[:-1], lengths)
        return Targets(self.ordinary[rows], starts, self.buckets[at], self.shares[at])

    def row(self, number: int) -> NDArray[np.int32]:
        """The word buckets of one row."""
        return self.buckets[self.starts[number] : self.starts[number + 1]]

    def shares_of(self, number: int) -> NDArray[np.float32]:
        """What each of those words carries."""
        return self.shares[self.starts[number] : self.starts[number + 1]]


def count_documents(texts: Sequence[str]) -> NDArray[np.uint16]:
    """(BUCKETS,) in how many of the texts each hashed word stands (capped); what rarity is measured by."""
    counts = np.zeros(BUCKETS, dtype=np.int64)
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        counts += np.bincount(row_words(texts[start : start + TEXTS_AT_ONCE])[1], minlength=BUCKETS)
    return np.minimum(counts, np.iinfo(np.uint16).max).astype(np.uint16)


def rarity(documents: NDArray[np.uint16]) -> Vector:
    """(BUCKETS,) positive: how rare each hashed word is, on a scale that sets of any size share."""
    return np.asarray(np.log((1 + float(documents.max())) / (1.0 + documents.astype(np.float64))) + 0.1)


def ordinary(vectors: NDArray[np.floating], counter: NDArray[np.float16]) -> Vector:
    """(R,) mean cosine of each unit row (R, D) to the nearest of `counter` (Q, D). Raises ValueError for Q = 0."""
    if not len(counter):
        raise ValueError("no counter-examples")
    against = counter.astype(np.float32)
    most = min(NEIGHBOURS, len(against))
    if len(vectors) <= MANY:
        # One by one: what a row gives must not depend on the others, to the bit.
        return np.array([float(np.partition(against @ vector, -most)[-most:].mean()) for vector in vectors])
    out = np.empty(len(vectors))
    for start in range(0, len(vectors), ROWS_AT_ONCE):
        cosines = vectors[start : start + ROWS_AT_ONCE].astype(np.float32) @ against.T
        out[start : start + ROWS_AT_ONCE] = np.partition(cosines, -most, axis=1)[:, -most:].mean(axis=1)
    return out


def targets(
    texts: Sequence[str], vectors: NDArray[np.floating], counter: NDArray[np.float16], documents: NDArray[np.uint16]
) -> Targets:
    """The forgotten `texts` with their unit `vectors` (R, D), prepared against `counter` (Q, D) unit rows.

    documents: see `count_documents`. Each row depends on its own text alone. Raises ValueError when there are
    no counter-examples.
    """
    found = list(_buckets(texts))
    rare = rarity(documents)
    shares = [rare[buckets] / max(rare[buckets].sum(), 1e-9) for buckets in found]
    starts = np.concatenate([[0], np.cumsum([len(buckets) for buckets in found])]).astype(np.int64)
    return Targets(
        ordinary(vectors, counter),
        starts,
        np.concatenate(found).astype(np.int32),
        np.concatenate(shares).astype(np.float32),
    )


class Matcher:
    """Targets, ready to match rows. What one target scores does not depend on the others, to the bit."""

    def __init__(self, wanted: Targets, *, least: float = 0.0) -> None:
        """least: words that carry less of a target's rarity are left out."""
        self._count = len(wanted.ordinary)
        self._less = ORDINARY_WEIGHT * wanted.ordinary
        # An inverted index: word i of `_words` stands in the targets _row[k], _starts[i] <= k < _starts[i + 1].
        order = np.argsort(wanted.buckets, kind="stable")
        order = order[wanted.shares[order] >= least]
        listed = wanted.buckets[order].astype(np.int64)
        first = np.flatnonzero(np.diff(listed, prepend=-1))
        self._words, self._starts = listed[first], np.append(first, len(listed))
        row = np.repeat(np.arange(self._count, dtype=np.int32), np.diff(wanted.starts))
        self._row = row[order]
        self._shares = wanted.shares[order]

    def best(self, words: RowWords, cosines: NDArray[np.floating]) -> Vector:
        """(N,) how closely each row asks for the target that it asks for most closely, about 0 to 1.

        words: the rows' distinct words; cosines: (N, R).
        """
        out = np.zeros(len(cosines))
        for part, rows in _parts(words, len(cosines), self._count):
            overlap = self._overlap(part, rows.stop - rows.start)
            out[rows] = (cosines[rows] + WORDS_WEIGHT * overlap - self._less).max(axis=1)
        return out

    def most_shared(self, words: RowWords, count: int) -> Vector:
        """(N,) the largest share of a target's rare words that stands in each of `count` rows.

        Infinity where that would take too long to tell: some of the words stand in very many targets.
        """
        if count * max(self._count, len(self._row)) <= MOST_LISTED:
            return np.asarray(self._overlap(words, count).max(axis=1, initial=0))
        row, wanted = words
        first, lengths = self._found(wanted)
        out = np.zeros(count)
        listed = np.bincount(row, weights=lengths, minlength=count)
        if listed.max(initial=0) > MOST_LISTED:
            out[listed > MOST_LISTED] = np.inf
            few = listed[row] <= MOST_LISTED
            row, first, lengths = row[few], first[few], lengths[few]
        # Some rows at a time, for bounded memory.
        before = np.cumsum(listed) // AT_ONCE
        for a, b in itertools.pairwise(np.unique(np.searchsorted(row, run_edges(before))).tolist()):
            cell, share = self._shared(row[a:b], first[a:b], lengths[a:b])
            order = np.argsort(cell, kind="stable")
            cell = cell[order]
            new = np.flatnonzero(np.diff(cell, prepend=-1))
            if len(new):
                np.maximum.at(out, cell[new] // self._count, np.add.reduceat(share[order], new))
        return out

    def sharing(self, words: RowWords, count: int, most: int) -> NDArray[np.int64]:
        """The targets that share most with any of `count` rows, up to `most` for each, going by their rarest words."""
        row, wanted = words
        first, lengths = self._found(wanted)
        # Row by row, a row's rarest words first, as long as their lists are short together.
        order = np.lexsort([lengths, row])
        row, first, lengths = row[order], first[order], lengths[order]
        before = np.cumsum(lengths) - lengths
        starts = np.searchsorted(row, np.arange(count))
        used = np.append(before, 0)[starts][row] if len(row) else before
        rare = before + lengths - used <= MOST_SEARCHED
        cell, share = self._shared(row[rare], first[rare], lengths[rare])
        found, place = np.unique(cell, return_inverse=True)
        total = np.bincount(place, weights=share, minlength=len(found))
        kept = [np.zeros(0, dtype=np.int64)]
        edges = np.searchsorted(found, np.arange(count + 1) * self._count)
        for start, end in itertools.pairwise(edges.tolist()):
            of_row = slice(start, end)
            target = found[of_row] % self._count
            kept.append(target if end - start <= most else target[np.argpartition(-total[of_row], most - 1)[:most]])
        return np.concatenate(kept)

    def _overlap(self, words: RowWords, count: int) -> Vector:
        """(N, R) the share of each target's rare words that stands in each of the N rows."""
        row, wanted = words
        cell, share = self._shared(row, *self._found(wanted))
        shared = np.bincount(cell, weights=share, minlength=count * self._count)
        return np.asarray(shared.reshape(count, self._count), dtype=np.float64)

    def _shared(
        self, row: NDArray[np.int64], first: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], Vector]:
        """For every word that a row and a target share: row * R + target, and what it carries.

        first, lengths: where the list of each row's word is; see `_found`.
        """
        # All positions first..first + length of every word, as one array.
        total = np.cumsum(lengths)
        at = np.arange(total[-1] if len(total) else 0) + np.repeat(first - total + lengths, lengths)
        return np.repeat(row, lengths) * self._count + self._row[at], self._shares[at].astype(np.float64)

    def _found(self, wanted: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where each word's list begins in the inverted index, and how long it is."""
        if not len(self._words):
            return np.zeros(len(wanted), dtype=np.int64), np.zeros(len(wanted), dtype=np.int64)
        at = np.minimum(np.searchsorted(self._words, wanted), len(self._words) - 1)
        lengths = np.where(self._words[at] == wanted, self._starts[at + 1] - self._starts[at], 0)
        return self._starts[at], lengths


def run_edges(values: NDArray[Any]) -> NDArray[np.int64]:
    """Where runs of equal values begin, and where the last one ends."""
    return np.append(np.flatnonzero(np.diff(values, prepend=-1)), len(values))


def row_words(texts: Sequence[str]) -> RowWords:
    """The distinct hashed words of texts."""
    numbers = np.arange(len(texts) + 1)
    return ngrams.Document(texts).distinct(numbers[:-1], numbers[1:])


def known_words(texts: Sequence[str], vocabulary: Collection[str]) -> RowWords:
    """As `row_words`, without words that aren't in the `vocabulary`: many targets have a word with any other's hash."""
    found = [
        sorted({ngrams.word_bucket(word) for word in ngrams.words(text) if word in vocabulary or not word.isascii()})
        for text in texts
    ]
    row = np.repeat(np.arange(len(texts)), [len(buckets) for buckets in found])
    return row, np.array([bucket for buckets in found for bucket in buckets], dtype=np.int64)


def some_words(words: RowWords, rows: slice) -> RowWords:
    """The words of the rows from `rows.start` to `rows.stop`, which count from 0 then."""
    row, wanted = words
    at = slice(*np.searchsorted(row, [rows.start, rows.stop]))
    return row[at] - rows.start, wanted[at]


def _parts(words: RowWords, count: int, targets: int) -> Iterator[tuple[RowWords, slice]]:
    """Some rows at a time, for bounded memory."""
    step = max(AT_ONCE // max(targets, 1), 1)
    for start in range(0, count, step):
        rows = slice(start, min(start + step, count))
        yield some_words(words, rows), rows


def _buckets(texts: Sequence[str]) -> Iterator[NDArray[np.int64]]:
    """Of each text, its sorted distinct hashed words."""
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        part = texts[start : start + TEXTS_AT_ONCE]
        row, found = row_words(part)
        yield from np.split(found, np.searchsorted(row, np.arange(1, len(part))))


@dataclass(frozen=True)
class Levels:
    """Which probability a match is worth: a rising line through knots, match scores (K,) to logits (K,)."""

    matches: NDArray[np.float64]
    logits: NDArray[np.float64]

    def probability(self, match: Vector) -> Vector:
        """Elementwise, between 0 and 1; beyond the knots the line goes on as steeply as it runs on the whole."""
        slope = (self.logits[-1] - self.logits[0]) / (self.matches[-1] - self.matches[0])
        beyond = np.minimum(match - self.matches[0], 0) + np.maximum(match - self.matches[-1], 0)
        return np.asarray(1 / (1 + np.exp(-np.interp(match, self.matches, self.logits) - slope * beyond)))


def levels(other: tuple[Vector, Vector], forget: tuple[Vector, Vector]) -> Levels:
    """Knots at which a match is worth what the fitted models give texts of the same standing.

    other, forget: match scores and logits, (n,) each, of texts by the two scores. A threshold then flags as many
    other texts by either score; above them, forget texts of the same rank are worth the same. Rewordings made by
    rule match less closely than people's, so their lower half would set the matches' level too low.
    """
    x = [np.quantile(other[0], OTHER_SHARES), np.quantile(forget[0], FORGET_SHARES)]
    y = [np.quantile(other[1], OTHER_SHARES), np.quantile(forget[1], FORGET_SHARES)]
    # Equal scores give equal knots; the smallest steps keep both rising.
    steps = np.arange(len(OTHER_SHARES) + len(FORGET_SHARES)) * 1e-6
    return Levels(*(np.maximum.accumulate(np.concatenate(part)) + steps for part in (x, y)))
