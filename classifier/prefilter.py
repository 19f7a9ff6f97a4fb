"""Which windows are worth an encoder: the first stage of a cascade, for all artifacts at once.

A window whose words say nothing of a forget set isn't encoded, and scores 0 there. The level is the artifact's own:
below what any held-out rewording of its forget prompts reached (`classifier/training/fit.py`). Artifacts that hold documents
have none, since a question about a document may share no word with it; nor have items that were added without a
telling word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lethe.classifier.artifact import Artifact
from lethe.classifier.index import similarity
from lethe.classifier.index.allowlist import Retained
from lethe.classifier.index.similarity import Matcher, Targets
from lethe.classifier.text.ngrams import BUCKETS, Document, word_bucket
from lethe.classifier.text.segments import Reading
from lethe.classifier.text.vocabulary import FUNCTION_WORDS
from lethe.classifier.text.windows import INNER_UNITS, NARROW_UNITS

# What the share of a forget item's rare words counts, in nats.
SHARED_WEIGHT = 4.0
# Words that carry less of an item's rarity tell nothing.
LEAST_SHARE = 0.03
# A longer window holds more by chance, and mostly says less than a shorter one inside it: so many nats more are asked
# of windows of so many units.
LENGTHS = (INNER_UNITS, NARROW_UNITS, NARROW_UNITS + 1)
MARGINS = (0.0, 0.75, 1.25)
_MARGINS = np.interp(np.arange(LENGTHS[-1] + 1), LENGTHS, MARGINS)
# A word of an added item tells, if it is at least so rare, as a share of the rarest.
TELLING = 0.5
# Of short windows inside others so many are encoded, those whose words say most.
MOST_CLOSER = 8
# So many windows, and so many products of n-grams and weights, are worked on at once: bounds memory.
AT_ONCE = 256
PRODUCTS = 1 << 22

_FUNCTION = [word_bucket(word) for word in sorted(FUNCTION_WORDS)]

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Passed:
    """rows: of a reading, those that one artifact looks at, rising; lexical: (rows, 2) the word and the character
    component there, raw; retained: (rows,) which are no request for what was fitted (`classifier/index/allowlist.py`)."""

    rows: Integers
    lexical: Floats
    retained: NDArray[np.bool_]


class _Group:
    """Artifacts that were fitted alike: the same models, the same targets."""

    def __init__(self, artifact: Artifact) -> None:
        arrays = artifact.arrays
        centre, scale, weight = arrays["fusion"][:, :2]
        self._slope, self._centre = weight / scale, float((centre * weight / scale).sum())
        self._level = float(arrays["gate"][0])
        self.matcher = Matcher(Targets.of(arrays, "targets"), least=LEAST_SHARE)
        # The items' words, where there are so many that hashes alone tell little; of all artifacts fitted alike.
        self.vocabulary: set[str] | None = set() if "cell_starts" in arrays else None
        self.retained = Retained(arrays["retained"])

    def contributions(self, lexical: Floats) -> Floats:
        """(N,) what the words say for a forget request, in nats. lexical: (N, 2)."""
        return np.asarray(lexical @ self._slope - self._centre)

    def passing(self, said: Floats, reading: Reading) -> NDArray[np.bool_]:
        """(N,) which rows are worth encoding: all that aren't surely below the level."""
        level = self._level + margin(reading.last - reading.first)
        passed = ~(said < level)
        near = np.flatnonzero(~passed & reading.own & (said >= level - SHARED_WEIGHT))
        if len(near):
            if self.vocabulary is None:
                words = reading.document.distinct(reading.first[near], reading.last[near])
            else:
                words = similarity.known_words([reading.text(int(row)) for row in near], self.vocabulary)
            shared = self.matcher.most_shared(words, len(near))
            passed[near] = said[near] + SHARED_WEIGHT * shared >= level[near]
        return passed & reading.own


class Gate:
    """The first stage for several artifacts."""

    def __init__(self, artifacts: Mapping[str, Artifact]) -> None:
        self._groups: list[_Group] = []
        self._group_of: dict[str, int] = {}
        self._members: list[list[str]] = []
        known: dict[bytes, int] = {}
        columns: list[NDArray[np.float16]] = []
        # Hashed word → the artifacts of which it is a telling word of an added item.
        self._telling: dict[int, list[str]] = {}
        self._always: list[str] = []
        for name, artifact in artifacts.items():
            number = known.setdefault(artifact.first_stage, len(known))
            if number == len(self._groups):
                self._groups.append(_Group(artifact))
                self._members.append([])
                columns.append(np.concatenate([artifact.arrays[f"{kind}_weights"] for kind in ("word", "character")]))
            self._group_of[name] = number
            if (vocabulary := self._groups[number].vocabulary) is not None:
                vocabulary |= artifact.prompt_words
            # Of an artifact that was made by adding alone, all that was fitted is taken out again.
            if not np.isin(artifact.arrays["index_items"], artifact.arrays["removed_items"]).all():
                self._members[number].append(name)
            words = telling_words(artifact)
            if words is None:
                self._always.append(name)
            for word in words or ():
                self._telling.setdefault(word, []).append(name)
        self._weights = np.stack(columns, axis=1) if columns else np.zeros((2 * BUCKETS, 0), dtype=np.float16)

    def matcher(self, name: str) -> Matcher:
        """The targets that one artifact's fit knows, with the words that tell something."""
        return self._groups[self._group_of[name]].matcher

    def passed(self, reading: Reading) -> dict[str, Passed]:
        """For each artifact that looks at some rows of a text, which; the others' score is 0."""
        lexical = self._lexical(reading.document, reading.first, reading.last)
        found: dict[str, Passed] = {}
        wanted: dict[str, NDArray[np.bool_]] = dict.fromkeys(self._always, reading.own)
        for name, rows in self._told(reading).items():
            wanted.setdefault(name, rows)
        touched = {self._group_of[name] for name in wanted}
        for number, group in enumerate(self._groups):
            if not self._members[number] and number not in touched:
                continue
            said = group.contributions(lexical[:, number])
            common = group.passing(said, reading)
            closer = np.where(reading.own, -np.inf, said)
            if not common.any() and not (closer > 0).any() and number not in touched:
                continue
            retained = group.retained.within(reading)
            common[_strongest(np.where(retained, -np.inf, closer))] = True
            common &= ~retained
            if common.any():
                made = _passed(common, lexical[:, number], retained)
                found |= dict.fromkeys(self._members[number], made)
            if number in touched:
                for name, rows in wanted.items():
                    if self._group_of[name] == number:
                        found[name] = _passed(common | rows, lexical[:, number], retained)
        return found

    def _lexical(self, document: Document, first: Integers, last: Integers) -> Floats:
        """(N, groups, 2) word and character components of each run."""
        count = self._weights.shape[1]
        out = np.empty((len(first), count, 2))
        for start in range(0, len(first), AT_ONCE):
            runs = slice(start, start + AT_ONCE)
            rows = document.joint_rows(first[runs], last[runs])
            most = max(PRODUCTS // max(len(rows.buckets), 1), 1)
            for i in range(0, count, most):
                said = rows.dot(self._weights[:, i : i + most])
                out[runs, i : i + most, 0], out[runs, i : i + most, 1] = said[::2], said[1::2]
        return out

    def _told(self, reading: Reading) -> dict[str, NDArray[np.bool_]]:
        """Artifacts of whose added items a telling word stands in the text, and the rows that hold such words."""
        if not self._telling:
            return {}
        own = np.flatnonzero(reading.own)
        row, words = reading.document.distinct(reading.first[own], reading.last[own])
        found: dict[str, NDArray[np.bool_]] = {}
        for word in dict.fromkeys(words.tolist()):
            for name in self._telling.get(word, ()):
                if name not in found:
                    found[name] = np.zeros(len(reading.own), dtype=bool)
                found[name][own[row[words == word]]] = True
        return found


def _passed(rows: NDArray[np.bool_], lexical: Floats, retained: NDArray[np.bool_]) -> Passed:
    at = np.flatnonzero(rows)
    return Passed(at, lexical[at], retained[at])


def margin(units: Integers) -> Floats:
    """(N,) what windows of so many units have to say beyond an artifact's level, in nats."""
    return np.asarray(_MARGINS[np.minimum(units, LENGTHS[-1])])


def telling_words(artifact: Artifact) -> frozenset[int] | None:
    """The hashed words by which a request for an added item is told; None where some item has none."""
    arrays = artifact.arrays
    if not len(arrays["added_items"]):
        return frozenset()
    if any(artifact.items[i].text for i in set(arrays["added_items"].tolist())):
        return None
    rare = similarity.rarity(arrays["documents"])
    tells = (rare[arrays["added_buckets"]] >= TELLING * rare.max()) & ~np.isin(arrays["added_buckets"], _FUNCTION)
    row = np.repeat(np.arange(len(arrays["added_items"])), np.diff(arrays["added_starts"]))
    if len(np.unique(row[tells])) < len(arrays["added_items"]):
        return None
    return frozenset(arrays["added_buckets"][tells].tolist())


def _strongest(said: Floats) -> Integers:
    """At most MOST_CLOSER rows that speak for a forget request, the strongest."""
    speaking = np.flatnonzero(~(said <= 0))
    order = speaking[np.argsort(-said[speaking], kind="stable")]
    # Once each: what is repeated must not crowd out the rest.
    order = order[np.diff(said[order], prepend=np.inf) != 0]
    return np.asarray(order[:MOST_CLOSER])
