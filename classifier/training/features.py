"""The rows of a corpus as matrices, and the models trained on some of them. Imports scipy; knows no calibration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lethe.classifier import prefilter
from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.index import ivf, similarity
from lethe.classifier.text import ngrams
from lethe.classifier.training import logistic_regression, stages
from lethe.classifier.training.background import background_embeddings
from lethe.classifier.training.rows import Corpus, TrainingRow
from lethe.classifier.training.stages import Progress

# L2 penalty of the word model, per unit of mean log-loss. Chosen: small enough that the training rows are fitted; the
# fusion corrects with held-out rows what is overconfident.
WORD_PENALTY = 1e-4
# L2 penalty of the character model, in the same unit and for the same reason.
CHARACTER_PENALTY = 1e-4
# L2 penalty of the embedding model, in the same unit. Chosen: unit vectors have far fewer and denser columns.
HEAD_PENALTY = 1e-3
# A background prompt with a higher cosine to a forget text is left out: it may ask for the same thing. Chosen, not
# measured.
SAME_MEANING_COSINE = 0.75
# At most this share of the background is left out: with some encoders all texts are that close. Chosen, not measured.
MAX_SAME_MEANING_SHARE = 0.02
# Hard negatives: the weight of other rows rises linearly from this cosine to a forget text on ... Chosen, not measured.
HARD_FROM_COSINE = 0.3
# ... to 1 plus this at cosine 1. Chosen, not measured.
HARD_WEIGHT = 4.0
# Counter-examples that hubness is computed against, the nearest first: bounds the artifact to 3 MiB of them. Chosen,
# not measured.
MAX_COUNTER_EXAMPLES = 4096
# Cosines that are kept as one matrix (1 GiB as float32); with more, they are computed when needed.
MAX_CACHED_COSINES = 1 << 28
# Index texts that are encoded in one call: bounds memory, since the tokenizer takes kilobytes for each.
ENCODED_AT_ONCE = 1 << 14
# Index rows that are compared in one matrix product: bounds memory.
INDEX_ROWS_AT_ONCE = 2048

Vector = NDArray[np.float64]
# Weights of the word, the character and the embedding model.
Models = tuple[NDArray[np.float16], NDArray[np.float16], NDArray[np.float32]]


class TrainingFeatures:
    """N rows as matrices; each method takes (N,) masks of the rows that it may use.

    labels: (N,) which rows are forget rows; weights: (N,) sample weights; kept: (N,) which rows are not background
    prompts of the same meaning as a forget text; vectors: (N, D); documents: (BUCKETS,) document frequencies.
    """

    def __init__(
        self,
        data: Corpus,
        encoder: Encoder,
        index: NDArray[np.float16],
        cells: Mapping[str, NDArray[Any]],
        progress: Progress,
    ) -> None:
        """index: (R, D) embeddings of the index texts; cells: their layout (`index/ivf.py`), empty without cells."""
        self._texts = [row.text for row in data.rows]
        self._index = index if cells else index.astype(np.float32)
        self.labels = np.array([row.forget for row in data.rows])
        self.encoded = np.array([row.encoded for row in data.rows])
        self.word: Any = logistic_regression.sparse_matrix(ngrams.word_rows(self._texts))
        self.character: Any = logistic_regression.sparse_matrix(ngrams.character_rows(self._texts))
        self.vectors = _embed_rows(data.rows, encoder, progress).astype(np.float64)
        self._all_cosines: NDArray[np.float32] | None = None
        if len(data.rows) * len(index) <= MAX_CACHED_COSINES:
            self._all_cosines = self.vectors.astype(np.float32) @ self._index.T
            self._max_cosines = self._all_cosines.max(axis=1)
        else:
            # Forget rows need none.
            self._max_cosines = np.zeros(len(data.rows), dtype=np.float32)
            self._max_cosines[~self.labels] = _max_cosines(self.vectors[~self.labels], self._index)
        self.kept = self._without_same_meaning(data.rows)
        hardness = np.clip((self._max_cosines - HARD_FROM_COSINE) / (1 - HARD_FROM_COSINE), 0, 1)
        hardness = np.where(self.labels, 0.0, hardness)
        self.weights = np.array([row.weight for row in data.rows]) * (1 + HARD_WEIGHT * hardness)
        natural = [row.calibrates and not row.wrapped and not row.forget for row in data.rows]
        self._counter_rows = np.array(natural) & self.kept
        others = [text for text, counts in zip(self._texts, self._counter_rows, strict=True) if counts]
        self.documents = similarity.document_frequencies([*others, *data.index_texts])
        counter = self.counter_examples(np.ones(len(data.rows), dtype=bool))
        self._targets = similarity.prepare_forget_texts(data.index_texts, self._index, counter, self.documents)
        self._search: ivf.CellIndex | None = None
        if cells:
            arrays = {**cells, "index": index, "targets_hubness": self._targets.hubness}
            matcher = similarity.ForgetTextMatcher(self._targets, min_idf_share=prefilter.MIN_IDF_SHARE)
            self._search = ivf.CellIndex(arrays, matcher, np.zeros(len(index), dtype=bool))

    def _without_same_meaning(self, rows: Sequence[TrainingRow]) -> NDArray[np.bool_]:
        """(N,) all rows but background prompts of the same meaning as a forget text."""
        general = np.array([row.general for row in rows])
        share = float(np.quantile(self._max_cosines[general], 1 - MAX_SAME_MEANING_SHARE))
        return np.asarray(~(general & (self._max_cosines > max(SAME_MEANING_COSINE, share))))

    def counter_examples(self, use: NDArray[np.bool_]) -> NDArray[np.float16]:
        """(Q, D) embeddings of the counter-examples among the rows `use`, the nearest to a forget text first."""
        rows = np.flatnonzero(self._counter_rows & use)
        nearest = rows[np.argsort(-self._max_cosines[rows], kind="stable")[:MAX_COUNTER_EXAMPLES]]
        return self.vectors[nearest].astype(np.float16)

    def targets(self, use: NDArray[np.bool_]) -> similarity.ForgetTexts:
        """The index rows as targets, with their hubness against the counter-examples among the rows `use`."""
        return replace(self._targets, hubness=similarity.hubness(self._index, self.counter_examples(use)))

    def match_scores(self, use: NDArray[np.bool_], rows: NDArray[np.bool_]) -> Vector:
        """(n,) match scores of the chosen rows, with targets that know only the rows `use`; 0 for answers."""
        targets, words = self.targets(use), similarity.hashed_words([self._texts[i] for i in np.flatnonzero(rows)])
        if self._all_cosines is not None:
            return similarity.ForgetTextMatcher(targets).best_similarity(words, self._all_cosines[rows])
        vectors = self.vectors[rows].astype(np.float32)
        scores = np.zeros(len(vectors))
        # Rows that are searched for have few candidates in common; otherwise all are compared with all.
        full_matcher = None if self._search else similarity.ForgetTextMatcher(targets)
        step = 1 if self._search else max(MAX_CACHED_COSINES // len(self._index) // 4, 1)
        for start in range(0, len(vectors), step):
            part = slice(start, min(start + step, len(vectors)))
            part_words = similarity.words_of_texts(words, part)
            if self._search:
                near = self._search.candidates(vectors[part], part_words)
                matcher, index = similarity.ForgetTextMatcher(targets.take(near)), self._index[near].astype(np.float32)
            else:
                assert full_matcher
                matcher, index = full_matcher, self._index.astype(np.float32, copy=False)
            scores[part] = matcher.best_similarity(part_words, vectors[part] @ index.T)
        return scores

    def train(self, use: NDArray[np.bool_]) -> Models:
        """The three models, trained on the rows `use`."""
        use = use & self.kept
        word = self._train_one(self.word, use, WORD_PENALTY)
        character = self._train_one(self.character, use, CHARACTER_PENALTY)
        head = self._train_one(self.vectors, use & self.encoded, HEAD_PENALTY)
        # Rounded before anything is calibrated on them, so that a loaded artifact scores as a new one.
        return word.astype(np.float16), character.astype(np.float16), head.astype(np.float32)

    def _train_one(self, x: Any, rows: NDArray[np.bool_], penalty: float) -> Vector:
        labels, weights = self.labels[rows], self.weights[rows]
        return logistic_regression.fit_logistic(x[rows], labels, weights, penalty=penalty)[0]

    def scores(self, models: Models, rows: NDArray[np.bool_]) -> Vector:
        """(n, 3) raw scores of the chosen rows."""
        word, character, head = models
        pairs: tuple[tuple[Any, NDArray[Any]], ...] = (
            (self.word, word),
            (self.character, character),
            (self.vectors, head),
        )
        return np.column_stack([x[rows] @ weights.astype(np.float64) for x, weights in pairs])


def report_as(stage: str, progress: Progress) -> Callable[[int, int], None]:
    """A (done, total) callback that reports one stage."""
    return lambda done, total: progress(stage, done, total)


def embed_index(encoder: Encoder, texts: Sequence[str], progress: Progress) -> NDArray[np.float16]:
    """(R, D) embeddings of the index texts."""
    vectors = np.zeros((len(texts), encoder.width), dtype=np.float16)
    for start in range(0, len(texts), ENCODED_AT_ONCE):

        def report(done: int, _: int, start: int = start) -> None:
            progress(stages.EMBED_FORGET, start + done, len(texts))

        vectors[start : start + ENCODED_AT_ONCE] = encoder.encode(texts[start : start + ENCODED_AT_ONCE], report)
    return vectors


def _embed_rows(rows: Sequence[TrainingRow], encoder: Encoder, progress: Progress) -> NDArray[np.float32]:
    """(N, D) embeddings; zeros for rows that aren't encoded. Those of the background are shipped or cached."""
    vectors = np.zeros((len(rows), encoder.width), dtype=np.float32)
    shared = [i for i, row in enumerate(rows) if row.encoded and row.shared]
    others = [i for i, row in enumerate(rows) if row.encoded and not row.shared]
    vectors[shared] = background_embeddings(
        [rows[i].text for i in shared], encoder, report_as(stages.EMBED_BACKGROUND, progress)
    )
    vectors[others] = encoder.encode([rows[i].text for i in others], report_as(stages.EMBED_TRAINING, progress))
    return vectors


def _max_cosines(vectors: Vector, index: NDArray[np.floating]) -> NDArray[np.float32]:
    """(N,) the highest cosine of each unit row to an index that is too large for all cosines at once."""
    rows, highest = vectors.astype(np.float32), np.full(len(vectors), -1.0, dtype=np.float32)
    for start in range(0, len(index), INDEX_ROWS_AT_ONCE):
        part = index[start : start + INDEX_ROWS_AT_ONCE].astype(np.float32)
        np.maximum(highest, (rows @ part.T).max(axis=1), out=highest)
    return highest
