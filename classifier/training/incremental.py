"""Items that come and go after a fit. Knows no threshold and no linear model.

An added item is rows of its own, matched by `classifier/index/similarity.py`: taken out again, nothing else changes,
to the bit. An item that was fitted can be taken out too: its text goes, its embedding and hashed words stay
and veto what asks for nothing but it (`Veto`), since the models that were trained with it go on as they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lethe.classifier import records
from lethe.classifier.artifact import Artifact, ForgetItem
from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.index import similarity
from lethe.classifier.index.similarity import Levels, Matcher, RowWords, Targets
from lethe.classifier.records import Record
from lethe.classifier.text import ngrams, vocabulary
from lethe.classifier.training.rows import forget_texts

# Products of numbers on this grid add up without rounding (384 products below 2^30, in doubles), so a cosine is
# the same however many others are computed with it.
GRID = 1 << 15
# How much closer an added item has to be met than a fitted one: each further item is one more that others may
# resemble by chance, and what is there already must not depend on how many follow.
MARGIN = 0.05
# A veto needs this cosine to the removed item ...
SAME = 0.85
# ... and no remaining item of whose other words so large a share is there too.
OTHERS_SHARE = 0.3
# Sums in another order may differ by this.
NEARLY = 0.999
# So many rows are looked at together: bounds memory.
ROWS_AT_ONCE = 1 << 14


def add(artifact: Artifact, rows: Sequence[Record], encoder: Encoder) -> Artifact:
    """The artifact with more to forget; a row that was taken out of the fit comes back as it was.

    Raises ValueError for malformed rows, rows that are there already, and another encoder.
    """
    if artifact.manifest.encoder_hash != encoder.hash:
        raise ValueError(
            f"the artifact was fitted with encoder {artifact.manifest.encoder_name!r}, not {encoder.name!r}"
        )
    wanted = [_item(records.check(row, f"row {i}")) for i, row in enumerate(rows, start=1)]
    wanted = list(dict.fromkeys(wanted))
    for item in wanted:
        if item in artifact.items:
            raise ValueError(f"item {artifact.items.index(item)} is that row already: {_shown(item)}")
    gone = _removed(artifact)
    back = {gone[_hash(item)]: item for item in wanted if _hash(item) in gone}
    new = [item for item in wanted if _hash(item) not in gone]
    made = _restored(artifact, back) if back else artifact
    made = _appended(made, new, encoder) if new else made
    return _with_words(made, list(back.values()) + new, encoder)


def remove(artifact: Artifact, numbers: Sequence[int]) -> Artifact:
    """The artifact without the items of those numbers. Numbers of other items stay; so does every other score.

    Raises ValueError for a number that is no item (any more), and when nothing would be left to forget.
    """
    live = set(artifact.live)
    wanted = list(dict.fromkeys(numbers))
    for number in wanted:
        if number not in live:
            raise ValueError(f"item {number} is not there; there are {len(live)} items, numbered up to {max(live)}")
    if live == set(wanted):
        raise ValueError("nothing would be left to forget; remove the policy instead")
    fitted = set(artifact.arrays["index_items"].tolist())
    hashes = [_hash(artifact.items[number]) for number in wanted]
    arrays = dict(artifact.arrays)
    keep = ~np.isin(arrays["added_items"], wanted)
    arrays |= _rows(arrays, keep)
    tombs = [number for number in wanted if number in fitted]
    arrays["removed_items"] = np.array(sorted([*arrays["removed_items"].tolist(), *tombs]), dtype=np.int32)
    items = [ForgetItem("", "", "") if i in wanted else item for i, item in enumerate(artifact.items)]
    while items[-1].removed and len(items) - 1 not in fitted:
        items.pop()
    made = replace(artifact, arrays=arrays, items=tuple(items))
    return _without_words(_changed(made, "remove", wanted, hashes))


def numbers(artifact: Artifact, rows: Sequence[Record]) -> list[int]:
    """The item numbers of forget rows. Raises ValueError naming a row that isn't there."""
    places = {item: i for i, item in enumerate(artifact.items)}
    found = []
    for row in rows:
        item = _item(row)
        if item not in places:
            raise ValueError(f"not in the artifact: {_shown(item)}")
        found.append(places[item])
    return found


class Added:
    """The added items of an artifact, ready to match rows."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self.items: NDArray[np.int32] = arrays["added_items"]
        self._index = arrays["added_index"].astype(np.float64)
        self._matcher = Matcher(Targets.of(arrays, "added"))
        self._levels = Levels(*arrays["levels"])

    def cosines(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, A) cosines of unit rows (N, D) to the added index rows."""
        exact = np.rint(vectors.astype(np.float64) * GRID) @ self._index.T
        return np.asarray(exact / (GRID * (GRID - 1)), dtype=np.float32)

    def probability(self, words: RowWords, cosines: NDArray[np.float32]) -> NDArray[np.float64]:
        """(N,) the highest probability over the added items; zeros when there are none. words: of the rows."""
        if not len(self.items):
            return np.zeros(len(cosines))
        return self._levels.probability(self._matcher.best(words, cosines) - MARGIN)


class Veto:
    """Which texts ask for nothing but what was taken out of the fit."""

    def __init__(self, artifact: Artifact) -> None:
        arrays = artifact.arrays
        self._owner: NDArray[np.int32] = arrays["index_items"]
        self.removed: NDArray[np.bool_] = np.isin(self._owner, arrays["removed_items"])
        self._targets = Targets.of(arrays, "targets")

    def __call__(
        self, texts: Sequence[str], cosines: NDArray[np.float32], compared: NDArray[np.int64] | None
    ) -> NDArray[np.bool_]:
        """(N,) whether each text is vetoed. cosines: (N, K) to the rows of the fit that were `compared`; None: all."""
        vetoed = np.zeros(len(texts), dtype=bool)
        if not self.removed.any():
            return vetoed
        nearest = cosines.argmax(axis=1)
        nearest = nearest if compared is None else compared[nearest]
        for i in np.flatnonzero(self.removed[nearest] & (cosines.max(axis=1) >= SAME)):
            vetoed[i] = not self._asks_more(texts[i], int(self._owner[nearest[i]]))
        return vetoed

    def _asks_more(self, text: str, removed: int) -> bool:
        """Whether the words that the removed item doesn't explain ask for a remaining one."""
        explained = np.concatenate([self._targets.row(r) for r in np.flatnonzero(self._owner == removed)])
        words = {ngrams.word_bucket(word) for word in ngrams.words(text)} - set(explained.tolist())
        if not words:
            return False
        there = np.array(sorted(words))
        for row in self._asked_for(there, explained):
            buckets, shares = self._targets.row(row), self._targets.shares_of(row)
            other = ~np.isin(buckets, explained)
            of_all = float(shares[other].sum())
            found = float(shares[other & np.isin(buckets, there)].sum())
            if found > 0 and found >= OTHERS_SHARE * of_all:
                return True
        return False

    def _asked_for(self, there: NDArray[np.int64], explained: NDArray[np.int32]) -> Iterator[int]:
        """The remaining rows of whose words, the explained apart, about so large a share is there."""
        holding = self._holding(there)
        for start in range(0, len(holding), ROWS_AT_ONCE):
            rows = holding[start : start + ROWS_AT_ONCE]
            some = self._targets.some(rows)
            row = np.repeat(np.arange(len(rows)), np.diff(some.starts))
            others = some.shares * ~np.isin(some.buckets, explained)
            of_all = np.bincount(row, weights=others, minlength=len(rows))
            found = np.bincount(row, weights=others * np.isin(some.buckets, there), minlength=len(rows))
            yield from rows[(found > 0) & (found >= NEARLY * OTHERS_SHARE * of_all)].tolist()

    def _holding(self, words: NDArray[np.int64]) -> NDArray[np.int64]:
        """The remaining rows that hold any of some hashed words."""
        wanted = np.zeros(ngrams.BUCKETS, dtype=bool)
        wanted[words] = True
        at = np.flatnonzero(wanted[self._targets.buckets])
        rows = np.unique(np.searchsorted(self._targets.starts, at, side="right") - 1)
        return rows[~self.removed[rows]]


def _item(row: Record) -> ForgetItem:
    return ForgetItem(row.get("prompt", ""), row.get("answer", ""), row.get("text", ""))


def _shown(item: ForgetItem) -> str:
    text = item.prompt or item.text
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


def _hash(item: ForgetItem) -> str:
    return hashlib.sha256(json.dumps(asdict(item)).encode()).hexdigest()


def _removed(artifact: Artifact) -> dict[str, int]:
    """Hash → number of the items that were taken out of the fit."""
    gone = set(artifact.arrays["removed_items"].tolist())
    return {
        digest: number
        for change in artifact.manifest.changes
        if change["change"] == "remove"
        for number, digest in zip(change["items"], change["hashes"], strict=True)
        if number in gone
    }


def _changed(artifact: Artifact, change: str, items: Sequence[int], hashes: Sequence[str] = ()) -> Artifact:
    entry: dict[str, Any] = {"change": change, "items": [int(i) for i in items]}
    if hashes:
        entry["hashes"] = list(hashes)
    counts = {**artifact.manifest.counts, "forget_items": len(artifact.live)}
    manifest = replace(artifact.manifest, counts=counts, changes=[*artifact.manifest.changes, entry])
    return replace(artifact, manifest=manifest)


def _restored(artifact: Artifact, back: Mapping[int, ForgetItem]) -> Artifact:
    items = tuple(back.get(i, item) for i, item in enumerate(artifact.items))
    removed = artifact.arrays["removed_items"]
    arrays = {**artifact.arrays, "removed_items": removed[~np.isin(removed, list(back))]}
    return _changed(replace(artifact, arrays=arrays, items=items), "restore", sorted(back))


def _appended(artifact: Artifact, new: Sequence[ForgetItem], encoder: Encoder) -> Artifact:
    first = len(artifact.items)
    parts = [(text, first + i) for i, item in enumerate(new) for text in forget_texts(item, encoder)]
    texts = [text for text, _ in parts]
    vectors = encoder.encode(texts)
    arrays = dict(artifact.arrays)
    made = similarity.targets(texts, vectors, arrays["counter"], arrays["documents"])
    grown = {
        "added_index": np.rint(vectors.astype(np.float64) * (GRID - 1)).astype(np.int16),
        "added_items": np.array([i for _, i in parts], dtype=np.int32),
        "added_ordinary": made.ordinary,
        "added_buckets": made.buckets,
        "added_shares": made.shares,
    }
    arrays["added_starts"] = np.concatenate([arrays["added_starts"], arrays["added_starts"][-1] + made.starts[1:]])
    arrays |= {name: np.concatenate([arrays[name], array]) for name, array in grown.items()}
    return _changed(
        replace(artifact, arrays=arrays, items=(*artifact.items, *new)), "add", range(first, first + len(new))
    )


def _rows(arrays: Mapping[str, NDArray[Any]], keep: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    """The added rows without those that go."""
    lengths = np.diff(arrays["added_starts"])
    words = np.repeat(keep, lengths)
    kept = {name: arrays[name][keep] for name in ("added_index", "added_items", "added_ordinary")}
    kept |= {name: arrays[name][words] for name in ("added_buckets", "added_shares")}
    kept["added_starts"] = np.concatenate([[0], np.cumsum(lengths[keep])]).astype(np.int64)
    return kept


def _with_words(artifact: Artifact, items: Sequence[ForgetItem], encoder: Encoder) -> Artifact:
    known = set(artifact.words)
    found, _ = vocabulary.collect((item.answer or item.text for item in items), ())
    new = [word for word in found if word not in known]
    if not new:
        return artifact
    vectors = encoder.encode(new).astype(np.float16)
    arrays = {
        **artifact.arrays,
        "word_vectors": np.concatenate([artifact.word_vectors, vectors]),
        "word_counts": np.concatenate([artifact.word_counts, np.zeros(len(new), dtype=np.int32)]),
    }
    return replace(artifact, arrays=arrays, words=(*artifact.words, *new))


def _without_words(artifact: Artifact) -> Artifact:
    """Without the words that stood in forgotten answers only, and now stand in none."""
    there = {word for item in artifact.items for word in ngrams.words(item.answer or item.text)}
    keep = [i for i, word in enumerate(artifact.words) if artifact.word_counts[i] or word in there]
    arrays = {
        **artifact.arrays,
        "word_vectors": artifact.word_vectors[keep],
        "word_counts": artifact.word_counts[keep],
    }
    return replace(artifact, arrays=arrays, words=tuple(artifact.words[i] for i in keep))
