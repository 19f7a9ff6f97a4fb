"""How closely a text matches one forget item: cosine, shared rare words, and a correction for hubs.

    match = cosine + WORDS_WEIGHT * (idf share of the item's words in the text) - HUBNESS_WEIGHT * hubness

The idf share of a word is its inverse document frequency divided by the sum over the item's words. Hubness is the
item's mean cosine to its nearest counter-examples: an item that resembles what must stay unflagged has to be matched
more closely (CSLS, cross-domain similarity local scaling; Conneau et al., arXiv:1710.04087). Nothing here is trained,
so adding or removing an item changes no other item's score.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lethe.classifier.text import ngrams
from lethe.classifier.text.ngrams import BUCKETS

# Weight of the shared idf (0 to 1) beside the cosine. Chosen: sharing all rare words counts like 0.15 of cosine.
WORDS_WEIGHT = 0.15
# Weight of the hubness, a mean cosine. Chosen: less than 0.5, CSLS's own weight, since only one side is corrected.
HUBNESS_WEIGHT = 0.3
# Nearest counter-examples whose mean cosine is the hubness. Chosen: fewer than CSLS's 10, since there are fewer rows.
NEIGHBOURS = 5
# Pairs of a text and a forget text that are computed in one batch: 16 MiB of float64.
BATCH_PAIRS = 1 << 21
# Postings (entries of the inverted index) that are read for one text to compute its exact shared idf. Chosen: keeps
# it far cheaper than an encoding; a text with more counts as sharing everything.
MAX_POSTINGS = 1 << 17
# Postings that are read for one text to find candidates, from its rarest word up. Chosen likewise.
MAX_CANDIDATE_POSTINGS = 1 << 14
# Texts whose words are hashed in one batch: bounds memory.
BATCH_TEXTS = 1024
# Embeddings up to which hubness is computed one by one, so that it doesn't depend on the batch, to the bit. Chosen:
# for more, products one by one take too long.
MAX_SINGLE_HUBNESS = 1 << 15
# Embeddings that are compared in one batch beyond that: bounds memory.
HUBNESS_BATCH = 256
# Added to every inverse document frequency, so that the commonest words count a little too.
MIN_IDF = 0.1

Vector = NDArray[np.float64]
# (n,) numbers of texts, rising, and (n,) hashed words: the distinct words of each text.
TextWords = tuple[NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True)
class ForgetTexts:
    """R texts to forget, prepared for matching: index row r has `hubness[r]`, and the words starts[r] to starts[r + 1].

    hubness: (R,). starts: (R + 1,). buckets: (n,) hashed distinct words. idf_share: (n,) each word's share of the
    index row's summed idf; they sum to 1 for an index row that has words. The artifact's arrays have the fields' names,
    after "targets_" (of the fit) or "added_" (added since).
    """

    hubness: NDArray[np.float64]
    starts: NDArray[np.int64]
    buckets: NDArray[np.int32]
    idf_share: NDArray[np.float32]

    @staticmethod
    def from_arrays(arrays: Mapping[str, NDArray[Any]], kind: str) -> ForgetTexts:
        """Read the forget texts from an artifact's arrays. kind: "targets" or "added"."""
        return ForgetTexts(**{field.name: arrays[f"{kind}_{field.name}"] for field in fields(ForgetTexts)})

    def to_arrays(self, kind: str) -> dict[str, NDArray[Any]]:
        """Return the inverse of `from_arrays`."""
        return {f"{kind}_{field.name}": getattr(self, field.name) for field in fields(self)}

    def take(self, rows: NDArray[np.int64]) -> ForgetTexts:
        """Return only the index rows with the given numbers, in that order."""
        lengths = self.starts[rows + 1] - self.starts[rows]
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        at = np.arange(starts[-1]) + np.repeat(self.starts[rows] - starts[:-1], lengths)
        return ForgetTexts(self.hubness[rows], starts, self.buckets[at], self.idf_share[at])

    def words_of(self, row: int) -> NDArray[np.int32]:
        """Return the hashed words of one index row."""
        return self.buckets[self.starts[row] : self.starts[row + 1]]

    def idf_share_of(self, row: int) -> NDArray[np.float32]:
        """Return the idf shares of one index row's words."""
        return self.idf_share[self.starts[row] : self.starts[row + 1]]


def document_frequencies(texts: Sequence[str]) -> NDArray[np.uint16]:
    """Return (BUCKETS,) the number of texts that each hashed word occurs in, capped at 65,535."""
    counts = np.zeros(BUCKETS, dtype=np.int64)
    for start in range(0, len(texts), BATCH_TEXTS):
        counts += np.bincount(hashed_words(texts[start : start + BATCH_TEXTS])[1], minlength=BUCKETS)
    return np.minimum(counts, np.iinfo(np.uint16).max).astype(np.uint16)


def idf(documents: NDArray[np.uint16]) -> Vector:
    """Return (BUCKETS,) each hashed word's inverse document frequency, ln((1 + max df) / (1 + df)) + MIN_IDF.

    documents: (BUCKETS,) document frequencies df. The largest one stands for the number of documents, so that the
    scale is the same for sets of any size.
    """
    return np.asarray(np.log((1 + float(documents.max())) / (1.0 + documents.astype(np.float64))) + MIN_IDF)


def hubness(vectors: NDArray[np.floating], counter: NDArray[np.float16]) -> Vector:
    """Return (R,) each unit row's mean cosine to its NEIGHBOURS nearest counter-examples.

    vectors: (R, D). counter: (Q, D) unit rows. Raises ValueError for Q = 0.
    """
    if not len(counter):
        raise ValueError("no counter-examples")
    counter32 = counter.astype(np.float32)
    count = min(NEIGHBOURS, len(counter32))
    if len(vectors) <= MAX_SINGLE_HUBNESS:
        return np.array([float(np.partition(counter32 @ vector, -count)[-count:].mean()) for vector in vectors])
    out = np.empty(len(vectors))
    for start in range(0, len(vectors), HUBNESS_BATCH):
        cosines = vectors[start : start + HUBNESS_BATCH].astype(np.float32) @ counter32.T
        out[start : start + HUBNESS_BATCH] = np.partition(cosines, -count, axis=1)[:, -count:].mean(axis=1)
    return out


def prepare_forget_texts(
    texts: Sequence[str], vectors: NDArray[np.floating], counter: NDArray[np.float16], documents: NDArray[np.uint16]
) -> ForgetTexts:
    """Prepare the texts to forget, with their unit `vectors` (R, D), against `counter` (Q, D) unit rows.

    documents: see `document_frequencies`. Each index row depends on its own text alone. Raises ValueError for Q = 0.
    """
    buckets_by_text = list(_word_buckets(texts))
    idfs = idf(documents)
    shares = [idfs[buckets] / max(idfs[buckets].sum(), 1e-9) for buckets in buckets_by_text]
    starts = np.concatenate([[0], np.cumsum([len(buckets) for buckets in buckets_by_text])]).astype(np.int64)
    return ForgetTexts(
        hubness(vectors, counter),
        starts,
        np.concatenate(buckets_by_text).astype(np.int32),
        np.concatenate(shares).astype(np.float32),
    )


class ForgetTextMatcher:
    """Forget texts and an inverted index of their words. The score of one doesn't depend on the others, to the bit."""

    def __init__(self, forget_texts: ForgetTexts, *, min_idf_share: float = 0.0) -> None:
        """min_idf_share: words with a smaller idf share in a forget text are left out."""
        self._count = len(forget_texts.hubness)
        self._hubness_term = HUBNESS_WEIGHT * forget_texts.hubness
        # Word i of `_words` occurs in the forget texts _postings[k] with _shares[k], for _starts[i] <= k < _starts[i +
        # 1].
        order = np.argsort(forget_texts.buckets, kind="stable")
        order = order[forget_texts.idf_share[order] >= min_idf_share]
        buckets = forget_texts.buckets[order].astype(np.int64)
        first = np.flatnonzero(np.diff(buckets, prepend=-1))
        self._words, self._starts = buckets[first], np.append(first, len(buckets))
        number = np.repeat(np.arange(self._count, dtype=np.int32), np.diff(forget_texts.starts))
        self._postings = number[order]
        self._shares = forget_texts.idf_share[order]

    def best_similarity(self, words: TextWords, cosines: NDArray[np.floating]) -> Vector:
        """Return (N,) the match score of the forget text that each text matches most closely, about 0 to 1.

        words: the texts' distinct hashed words. cosines: (N, R).
        """
        out = np.zeros(len(cosines))
        for batch, texts in _text_batches(words, len(cosines), self._count):
            shared = self._shared_idf(batch, texts.stop - texts.start)
            out[texts] = (cosines[texts] + WORDS_WEIGHT * shared - self._hubness_term).max(axis=1)
        return out

    def max_shared_idf(self, words: TextWords, count: int) -> Vector:
        """Return (N,) for each of `count` texts the largest shared idf over all forget texts.

        Infinity where computing it would take too long, since some of the words occur in very many forget texts.
        """
        if count * max(self._count, len(self._postings)) <= MAX_POSTINGS:
            return np.asarray(self._shared_idf(words, count).max(axis=1, initial=0))
        text, buckets = words
        first, lengths = self._posting_lists(buckets)
        out = np.zeros(count)
        postings = np.bincount(text, weights=lengths, minlength=count)
        if postings.max(initial=0) > MAX_POSTINGS:
            out[postings > MAX_POSTINGS] = np.inf
            computable = postings[text] <= MAX_POSTINGS
            text, first, lengths = text[computable], first[computable], lengths[computable]
        # Some texts at a time: bounds memory.
        batch = np.cumsum(postings) // BATCH_PAIRS
        for a, b in itertools.pairwise(np.unique(np.searchsorted(text, run_edges(batch))).tolist()):
            pair, share = self._shared_words(text[a:b], first[a:b], lengths[a:b])
            order = np.argsort(pair, kind="stable")
            pair = pair[order]
            new = np.flatnonzero(np.diff(pair, prepend=-1))
            if len(new):
                np.maximum.at(out, pair[new] // self._count, np.add.reduceat(share[order], new))
        return out

    def forget_texts_sharing_words(self, words: TextWords, count: int, max_results: int) -> NDArray[np.int64]:
        """Return the forget texts with the most shared idf, up to `max_results` for each of `count` texts.

        Only the rarest words of each text are looked up, up to MAX_CANDIDATE_POSTINGS postings.
        """
        text, buckets = words
        first, lengths = self._posting_lists(buckets)
        # Text by text, the rarest words of a text first.
        order = np.lexsort([lengths, text])
        text, first, lengths = text[order], first[order], lengths[order]
        before = np.cumsum(lengths) - lengths
        starts = np.searchsorted(text, np.arange(count))
        before_text = np.append(before, 0)[starts][text] if len(text) else before
        rare = before + lengths - before_text <= MAX_CANDIDATE_POSTINGS
        pair, share = self._shared_words(text[rare], first[rare], lengths[rare])
        pairs, place = np.unique(pair, return_inverse=True)
        total = np.bincount(place, weights=share, minlength=len(pairs))
        candidates = [np.zeros(0, dtype=np.int64)]
        edges = np.searchsorted(pairs, np.arange(count + 1) * self._count)
        for start, end in itertools.pairwise(edges.tolist()):
            of_text = slice(start, end)
            forget_text = pairs[of_text] % self._count
            if end - start > max_results:
                forget_text = forget_text[np.argpartition(-total[of_text], max_results - 1)[:max_results]]
            candidates.append(forget_text)
        return np.concatenate(candidates)

    def _shared_idf(self, words: TextWords, count: int) -> Vector:
        """Return (N, R) the summed idf share of each forget text's words that occur in each of the N texts."""
        text, buckets = words
        pair, share = self._shared_words(text, *self._posting_lists(buckets))
        shared = np.bincount(pair, weights=share, minlength=count * self._count)
        return np.asarray(shared.reshape(count, self._count), dtype=np.float64)

    def _shared_words(
        self, text: NDArray[np.int64], first: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], Vector]:
        """Return text * R + forget text, and the idf share, for every word that the two share.

        text, first, lengths: the text of each word and its postings; see `_posting_lists`.
        """
        # All positions first to first + length of every word, as one array.
        total = np.cumsum(lengths)
        at = np.arange(total[-1] if len(total) else 0) + np.repeat(first - total + lengths, lengths)
        return np.repeat(text, lengths) * self._count + self._postings[at], self._shares[at].astype(np.float64)

    def _posting_lists(self, buckets: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return where each hashed word's postings begin in the inverted index, and how many there are."""
        if not len(self._words):
            return np.zeros(len(buckets), dtype=np.int64), np.zeros(len(buckets), dtype=np.int64)
        at = np.minimum(np.searchsorted(self._words, buckets), len(self._words) - 1)
        lengths = np.where(self._words[at] == buckets, self._starts[at + 1] - self._starts[at], 0)
        return self._starts[at], lengths


def run_edges(values: NDArray[Any]) -> NDArray[np.int64]:
    """Return where runs of equal values begin, and where the last one ends."""
    return np.append(np.flatnonzero(np.diff(values, prepend=-1)), len(values))


def hashed_words(texts: Sequence[str]) -> TextWords:
    """Return the distinct hashed words of each text."""
    numbers = np.arange(len(texts) + 1)
    return ngrams.NgramDocument(texts).distinct_words(numbers[:-1], numbers[1:])


def hashed_known_words(texts: Sequence[str], vocabulary: Collection[str]) -> TextWords:
    """Return the same without ASCII words outside the `vocabulary`.

    With very many forget texts, almost any word shares its hash with a word of one of them.
    """
    buckets_by_text = [
        sorted(
            {ngrams.word_bucket(word) for word in ngrams.split_words(text) if word in vocabulary or not word.isascii()}
        )
        for text in texts
    ]
    text = np.repeat(np.arange(len(texts)), [len(buckets) for buckets in buckets_by_text])
    return text, np.array([bucket for buckets in buckets_by_text for bucket in buckets], dtype=np.int64)


def words_of_texts(words: TextWords, texts: slice) -> TextWords:
    """Return the words of the texts from `texts.start` to `texts.stop`, numbered from 0."""
    text, buckets = words
    at = slice(*np.searchsorted(text, [texts.start, texts.stop]))
    return text[at] - texts.start, buckets[at]


def _text_batches(words: TextWords, count: int, forget_texts: int) -> Iterator[tuple[TextWords, slice]]:
    """Yield the words of some texts at a time: at most BATCH_PAIRS pairs of a text and a forget text."""
    step = max(BATCH_PAIRS // max(forget_texts, 1), 1)
    for start in range(0, count, step):
        texts = slice(start, min(start + step, count))
        yield words_of_texts(words, texts), texts


def _word_buckets(texts: Sequence[str]) -> Iterator[NDArray[np.int64]]:
    """Yield the sorted distinct hashed words of each text."""
    for start in range(0, len(texts), BATCH_TEXTS):
        batch = texts[start : start + BATCH_TEXTS]
        text, buckets = hashed_words(batch)
        yield from np.split(buckets, np.searchsorted(text, np.arange(1, len(batch))))
