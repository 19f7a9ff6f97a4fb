"""Add items to an artifact, and remove items from it, without a new fit. Imports no scipy; knows no threshold.

`classifier/changed_items.py` says how changed items are scored.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lethe.classifier import records
from lethe.classifier.artifact import Artifact, ForgetItem
from lethe.classifier.changed_items import added_index_rows
from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.index import similarity
from lethe.classifier.names.subject import Subject, without_items
from lethe.classifier.records import Record
from lethe.classifier.text import ngrams, vocabulary
from lethe.classifier.training.rows import forget_texts

log = logging.getLogger("lethe.classifier")

# Characters of an item's text that an error message quotes.
EXCERPT_CHARACTERS = 80


def add_items(artifact: Artifact, rows: Sequence[Record], encoder: Encoder) -> Artifact:
    """The artifact with more to forget; a row that was removed from the fit comes back as it was.

    Raises ValueError for malformed rows, rows that the artifact has already, and another encoder.
    """
    if artifact.manifest.encoder_hash != encoder.hash:
        raise ValueError(
            f"the artifact was fitted with encoder {artifact.manifest.encoder_name!r}, not {encoder.name!r}"
        )
    items = [_item_of(records.check_record(row, f"row {i}")) for i, row in enumerate(rows, start=1)]
    items = list(dict.fromkeys(items))
    for item in items:
        if item in artifact.items:
            raise ValueError(f"item {artifact.items.index(item)} is that row already: {_excerpt(item)}")
    removed = _removed_from_fit(artifact)
    restored = {removed[_item_hash(item)]: item for item in items if _item_hash(item) in removed}
    new = [item for item in items if _item_hash(item) not in removed]
    first = len(artifact.items)
    changed = _restore_items(artifact, restored) if restored else artifact
    changed = _append_items(changed, new, encoder) if new else changed
    numbered = {**restored, **dict(enumerate(new, start=first))}
    stated = {_item_of(row): row for row in rows}
    changed = _add_subjects(changed, numbered, [stated[item] for item in numbered.values()])
    return _add_words(changed, list(numbered.values()), encoder)


def remove_items(artifact: Artifact, numbers: Sequence[int]) -> Artifact:
    """The artifact without the items of those numbers. The numbers and scores of other items stay the same.

    Raises ValueError for a number that is no live item, and when nothing would be left to forget.
    """
    live = set(artifact.live_items)
    chosen = list(dict.fromkeys(numbers))
    for number in chosen:
        if number not in live:
            raise ValueError(f"there is no item {number}; there are {len(live)} items, numbered up to {max(live)}")
    if live == set(chosen):
        raise ValueError("nothing would be left to forget; remove the policy instead")
    fitted = set(artifact.arrays["index_items"].tolist())
    hashes = [_item_hash(artifact.items[number]) for number in chosen]
    arrays = dict(artifact.arrays)
    arrays |= _keep_added_rows(arrays, ~np.isin(arrays["added_items"], chosen))
    removed = [*arrays["removed_items"].tolist(), *(number for number in chosen if number in fitted)]
    arrays["removed_items"] = np.array(sorted(removed), dtype=np.int32)
    items = [ForgetItem("", "", "") if i in chosen else item for i, item in enumerate(artifact.items)]
    while items[-1].removed and len(items) - 1 not in fitted:
        items.pop()
    changed = _with_subjects(
        replace(artifact, arrays=arrays, items=tuple(items)), without_items(artifact.subjects, chosen)
    )
    return _drop_unused_words(_record_change(changed, "remove", chosen, hashes))


def item_numbers(artifact: Artifact, rows: Sequence[Record]) -> list[int]:
    """The item numbers of forget rows. Raises ValueError naming a row that the artifact doesn't have."""
    places = {item: i for i, item in enumerate(artifact.items)}
    numbers = []
    for row in rows:
        item = _item_of(row)
        if item not in places:
            raise ValueError(f"not in the artifact: {_excerpt(item)}")
        numbers.append(places[item])
    return numbers


def _item_of(row: Record) -> ForgetItem:
    return ForgetItem(row.get("prompt", ""), row.get("answer", ""), row.get("text", ""))


def _excerpt(item: ForgetItem) -> str:
    text = item.prompt or item.text
    return repr(text if len(text) <= EXCERPT_CHARACTERS else f"{text[: EXCERPT_CHARACTERS - 3]}...")


def _item_hash(item: ForgetItem) -> str:
    return hashlib.sha256(json.dumps(asdict(item)).encode()).hexdigest()


def _removed_from_fit(artifact: Artifact) -> dict[str, int]:
    """Hash → number of the items that were removed from the fit."""
    removed = set(artifact.arrays["removed_items"].tolist())
    return {
        digest: number
        for change in artifact.manifest.changes
        if change["change"] == "remove"
        for number, digest in zip(change["items"], change["hashes"], strict=True)
        if number in removed
    }


def _record_change(artifact: Artifact, change: str, items: Sequence[int], hashes: Sequence[str] = ()) -> Artifact:
    """The artifact with a further entry in its manifest's `changes`."""
    entry: dict[str, Any] = {"change": change, "items": [int(i) for i in items]}
    if hashes:
        entry["hashes"] = list(hashes)
    counts = {**artifact.manifest.counts, "forget_items": len(artifact.live_items)}
    manifest = replace(artifact.manifest, counts=counts, changes=[*artifact.manifest.changes, entry])
    return replace(artifact, manifest=manifest)


def _add_subjects(artifact: Artifact, items: Mapping[int, ForgetItem], rows: Sequence[Record]) -> Artifact:
    """The artifact with the subjects of some of its items, given with their numbers and rows."""
    try:
        from lethe.classifier.training.subjects import derive_subjects, given_subjects
    except ImportError as error:
        log.warning("names of added items are not looked for: pip install 'lethe-gateway[forget]' (%s)", error)
        return artifact
    facts_only = artifact.subjects and all(subject.scope == "facts" for subject in artifact.subjects)
    given = given_subjects(rows, scope="facts" if facts_only else None)
    added = derive_subjects(list(items.values()), given, numbers=list(items))
    return _with_subjects(artifact, (*artifact.subjects, *added))


def _with_subjects(artifact: Artifact, subjects: Sequence[Subject]) -> Artifact:
    manifest = replace(artifact.manifest, subjects=[subject.to_json() for subject in subjects])
    return replace(artifact, manifest=manifest)


def _restore_items(artifact: Artifact, restored: Mapping[int, ForgetItem]) -> Artifact:
    items = tuple(restored.get(i, item) for i, item in enumerate(artifact.items))
    removed = artifact.arrays["removed_items"]
    arrays = {**artifact.arrays, "removed_items": removed[~np.isin(removed, list(restored))]}
    return _record_change(replace(artifact, arrays=arrays, items=items), "restore", sorted(restored))


def _append_items(artifact: Artifact, new: Sequence[ForgetItem], encoder: Encoder) -> Artifact:
    first = len(artifact.items)
    owned = [(text, first + i) for i, item in enumerate(new) for text in forget_texts(item, encoder)]
    texts = [text for text, _ in owned]
    vectors = encoder.encode(texts)
    arrays = dict(artifact.arrays)
    targets = similarity.prepare_forget_texts(texts, vectors, arrays["counter"], arrays["documents"])
    appended = {
        "added_index": added_index_rows(vectors),
        "added_items": np.array([i for _, i in owned], dtype=np.int32),
        "added_hubness": targets.hubness,
        "added_buckets": targets.buckets,
        "added_idf_share": targets.idf_share,
    }
    arrays["added_starts"] = np.concatenate([arrays["added_starts"], arrays["added_starts"][-1] + targets.starts[1:]])
    arrays |= {name: np.concatenate([arrays[name], array]) for name, array in appended.items()}
    changed = replace(artifact, arrays=arrays, items=(*artifact.items, *new))
    return _record_change(changed, "add", range(first, first + len(new)))


def _keep_added_rows(arrays: Mapping[str, NDArray[Any]], keep: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    """The arrays `added_*` with the rows of a mask (A,) only."""
    lengths = np.diff(arrays["added_starts"])
    words = np.repeat(keep, lengths)
    kept = {name: arrays[name][keep] for name in ("added_index", "added_items", "added_hubness")}
    kept |= {name: arrays[name][words] for name in ("added_buckets", "added_idf_share")}
    kept["added_starts"] = np.concatenate([[0], np.cumsum(lengths[keep])]).astype(np.int64)
    return kept


def _add_words(artifact: Artifact, items: Sequence[ForgetItem], encoder: Encoder) -> Artifact:
    """The artifact with the content words of the items' answers."""
    known = set(artifact.words)
    words, _ = vocabulary.content_words((item.answer or item.text for item in items), ())
    new = [word for word in words if word not in known]
    if not new:
        return artifact
    vectors = encoder.encode(new).astype(np.float16)
    arrays = {
        **artifact.arrays,
        "word_vectors": np.concatenate([artifact.word_vectors, vectors]),
        "word_counts": np.concatenate([artifact.word_counts, np.zeros(len(new), dtype=np.int32)]),
    }
    return replace(artifact, arrays=arrays, words=(*artifact.words, *new))


def _drop_unused_words(artifact: Artifact) -> Artifact:
    """The artifact without words that occurred in forgotten answers only, and now occur in none."""
    answered = {word for item in artifact.items for word in ngrams.split_words(item.answer or item.text)}
    keep = [i for i, word in enumerate(artifact.words) if artifact.word_counts[i] or word in answered]
    arrays = {
        **artifact.arrays,
        "word_vectors": artifact.word_vectors[keep],
        "word_counts": artifact.word_counts[keep],
    }
    return replace(artifact, arrays=arrays, words=tuple(artifact.words[i] for i in keep))
