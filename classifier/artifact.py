"""What a fit learned, as one immutable value.

`artifact_io.py` saves it as a folder and loads it again. This module knows neither how an artifact is fitted
(`classifier/training/fit.py`) nor how it is used (`classifier/judge.py`).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lethe.classifier.names.subject import Subject
from lethe.classifier.text.disguises import masked_words
from lethe.classifier.text.ngrams import BUCKETS, split_words

# Version of the folder's format: raised whenever an array or a key of the manifest changes its name or meaning.
FORMAT = 5
# Bytes of a digest in the array `retained`. 128 bits: nobody can construct a second request with the same digest.
DIGEST_BYTES = 16
# The four component scores of a window, in the order of the columns of `fusion`: linear models over words ("word"),
# over character n-grams ("character") and over the embedding ("head"), and "match", the best similarity to a forget
# text, by cosine and shared rare words (`index/similarity.py`).
COMPONENTS = ("word", "character", "head", "match")

# Array name → (dtype, shape). D embedding width, R index rows, A index rows that were added after the fit, W words;
# "X+1" is one more than X; any other letter is a free size. `targets_*` (the forget texts of the fit) and `added_*`
# (those added since) are the fields of `ForgetTexts` in classifier/index/similarity.py. `gate`: the prefilter's
# threshold. `retained`: the allowlist's digests. `documents`: in how many texts of the fit each hashed word occurs.
ARRAYS: dict[str, tuple[str, tuple[int | str, ...]]] = {
    "word_weights": ("float16", (BUCKETS,)),
    "character_weights": ("float16", (BUCKETS,)),
    "head": ("float32", ("D",)),
    "index": ("float16", ("R", "D")),
    "index_items": ("int32", ("R",)),
    "fusion": ("float64", (3, len(COMPONENTS))),
    "intercept": ("float64", (1,)),
    "calibration_forget": ("float64", ("P",)),
    "calibration_forget_groups": ("int8", ("P",)),
    "calibration_forget_items": ("int32", ("P",)),
    "calibration_other": ("float64", ("Q",)),
    "calibration_other_groups": ("int8", ("Q",)),
    "targets_hubness": ("float64", ("R",)),
    "targets_starts": ("int64", ("R+1",)),
    "targets_buckets": ("int32", ("n",)),
    "targets_idf_share": ("float32", ("n",)),
    "counter": ("float16", ("Q'", "D")),
    "documents": ("uint16", (BUCKETS,)),
    "gate": ("float64", (1,)),
    "retained": ("uint8", ("X", DIGEST_BYTES)),
    "levels": ("float64", (2, "K")),
    "added_index": ("int16", ("A", "D")),
    "added_items": ("int32", ("A",)),
    "added_hubness": ("float64", ("A",)),
    "added_starts": ("int64", ("A+1",)),
    "added_buckets": ("int32", ("m",)),
    "added_idf_share": ("float32", ("m",)),
    "removed_items": ("int32", ("T",)),
    "word_vectors": ("float16", ("W", "D")),
    "word_counts": ("int32", ("W",)),
    "cell_centres": ("float16", ("C", "D")),
    "cell_starts": ("int64", ("C+1",)),
}
# Only artifacts with very many index rows have these two arrays (classifier/index/ivf.py).
CELL_ARRAYS = frozenset({"cell_starts", "cell_centres"})
# Values that one call of `np.isfinite` looks at: bounds the memory of its result to 4 MiB.
FINITE_CHECK_VALUES = 1 << 22


@dataclass(frozen=True, slots=True)
class ForgetItem:
    """One forget row: `prompt` and `answer` of a fact, or a document's `text`; the other fields are "".

    All three are "" where an item was removed: the numbers of the other items stay as they are.
    """

    prompt: str
    answer: str
    text: str

    @property
    def removed(self) -> bool:
        return not (self.prompt or self.text)


@dataclass(frozen=True)
class Manifest:
    """What the artifact was made from, and how well it did on rows that it wasn't trained on."""

    encoder_name: str
    encoder_hash: str
    encoder_width: int
    data_hash: str
    seed: int
    counts: dict[str, int]
    calibration: str
    measured: dict[str, float]
    # Changes after the fit, in order: {"change": "add" | "remove" | "restore", "items": item numbers}.
    changes: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    # One entry for each run of `lethe tune`. The classifier doesn't read it.
    tuned: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    # What the forget request is about: `Subject.to_json` of each subject (classifier/names/subject.py).
    subjects: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @property
    def summary(self) -> str:
        """Counts and held-out rates as lines of text."""
        rows = [*self.counts.items(), *((name, f"{value:.4f}") for name, value in self.measured.items())]
        width = max(len(name) for name, _ in rows)
        return "\n".join([*(f"{name.replace('_', ' '):<{width}}  {value}" for name, value in rows), self.calibration])


@dataclass(frozen=True)
class Artifact:
    """A fitted detector. `arrays` by name: see `ARRAYS`; `words` go with word_vectors and word_counts."""

    manifest: Manifest
    arrays: Mapping[str, NDArray[Any]]
    items: tuple[ForgetItem, ...]
    words: tuple[str, ...]

    @property
    def live_items(self) -> tuple[int, ...]:
        """The numbers of the items that weren't removed."""
        return tuple(i for i, item in enumerate(self.items) if not item.removed)

    @cached_property
    def subjects(self) -> tuple[Subject, ...]:
        """The subjects of the forget request, with their names."""
        return tuple(map(Subject.from_json, self.manifest.subjects))

    @cached_property
    def prompt_words(self) -> frozenset[str]:
        """The case-folded words of the items' prompts and documents, and of the subjects' own names."""
        texts = [item.prompt or item.text for item in self.items]
        texts += [name.text for subject in self.subjects for name in subject.names if name.own]
        return frozenset(word for text in texts for word in split_words(text))

    @cached_property
    def name_pairs(self) -> frozenset[tuple[str, str]]:
        """The parts of names that are neighbours in the items' prompts and documents, case-folded."""
        return masked_words.name_pairs(item.prompt or item.text for item in self.items)

    @cached_property
    def derived(self) -> dict[str, Any]:
        """What other modules computed from this artifact alone, by a name, so that it is computed once."""
        return {}

    @property
    def known_buckets(self) -> NDArray[np.bool_]:
        """(BUCKETS,) which hashed words occur in the retain, background and forget texts of the fit."""
        return self.arrays["documents"] > 0

    @cached_property
    def prefilter_digest(self) -> bytes:
        """Equal for artifacts whose prefilter (`classifier/prefilter.py`) reads equal arrays."""
        kinds = ("word_weights", "character_weights", "fusion", "gate", "retained")
        names = (*kinds, "targets_starts", "targets_buckets", "targets_idf_share")
        digests = (hashlib.sha256(self.arrays[name].tobytes()).digest() for name in names)
        return hashlib.sha256(b"".join(digests)).digest()

    @property
    def word_vectors(self) -> NDArray[np.float16]:
        """(W, D) unit rows, one for each of `words`."""
        return self.arrays["word_vectors"]

    @property
    def word_counts(self) -> NDArray[np.int32]:
        """(W,) occurrences of each of `words` in retain and background texts; 0 = only in forget texts."""
        return self.arrays["word_counts"]


def check_arrays(artifact: Artifact) -> None:
    """Check names, dtypes, shapes, finite values and item numbers of an artifact's arrays.

    Raises ValueError with the first fault; the caller adds the file's name.
    """
    arrays = artifact.arrays
    expected_names = set(ARRAYS) if CELL_ARRAYS & set(arrays) else set(ARRAYS) - CELL_ARRAYS
    if set(arrays) != expected_names:
        raise ValueError(f"arrays {sorted(set(arrays) ^ expected_names)} are missing or unknown")
    sizes = _check_shapes(artifact, expected_names)
    if not sizes["R"]:
        raise ValueError("index_items is empty")
    for name in ("index_items", "added_items", "removed_items"):
        _check_range(name, arrays[name], len(artifact.items))
    for kind in ("targets", "added"):
        buckets = arrays[f"{kind}_buckets"]
        _check_range(f"{kind}_buckets", buckets, BUCKETS)
        _check_starts(f"{kind}_starts", arrays[f"{kind}_starts"], len(buckets))
    if "cell_starts" in expected_names:
        _check_starts("cell_starts", arrays["cell_starts"], sizes["R"])
    if sizes["K"] < 2 or (np.diff(arrays["levels"], axis=1) <= 0).any():
        raise ValueError("levels does not rise")


def _check_shapes(artifact: Artifact, names: set[str]) -> dict[str, int]:
    """Check dtypes, shapes and finite values; return the size of each letter of `ARRAYS`."""
    sizes: dict[str, int] = {"D": artifact.manifest.encoder_width, "W": len(artifact.words)}
    for name, (dtype, shape) in ARRAYS.items():
        if name not in names:
            continue
        array = artifact.arrays[name]
        expected = tuple(
            n if isinstance(n, int) else sizes[n[0]] + 1 if n.endswith("+1") else sizes.setdefault(n, length)
            for n, length in zip(shape, array.shape, strict=False)
        )
        if array.dtype != dtype or array.shape != expected or len(shape) != array.ndim:
            raise ValueError(f"{name} is {array.dtype} {array.shape}, not {dtype} {shape}")
        # A prefilter threshold of minus infinity lets every window through.
        if not (_is_finite(array) or (name == "gate" and (array == -np.inf).all())):
            raise ValueError(f"{name} holds values that aren't finite")
    return sizes


def _check_range(name: str, numbers: NDArray[Any], count: int) -> None:
    if len(numbers) and (numbers.min() < 0 or numbers.max() >= count):
        raise ValueError(f"{name} holds a number outside 0 to {count - 1}")


def _check_starts(name: str, starts: NDArray[Any], count: int) -> None:
    if starts[0] or starts[-1] != count or (np.diff(starts) < 0).any():
        raise ValueError(f"{name} does not rise from 0 to {count}")


def _is_finite(array: NDArray[Any]) -> bool:
    if array.dtype.kind != "f":
        return True
    flat = array.reshape(-1)
    chunks = (flat[start : start + FINITE_CHECK_VALUES] for start in range(0, len(flat), FINITE_CHECK_VALUES))
    return all(np.isfinite(chunk).all() for chunk in chunks)
