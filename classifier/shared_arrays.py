"""What artifacts of one fit have in common, stored once: on disk as hard links of one file, in memory as one object.

Adding and removing items (`classifier/training/incremental.py`) changes a few small arrays. All others, and the words
of ordinary text, stay as the fit made them, in every artifact that was made from it; a thousand forget requests over
HTTP make a thousand such artifacts. So a changed artifact is saved in two parts: what is its own, and what it shares.
Knows no folder layout beyond the file of the shared part; `classifier/artifact_io.py` does the rest.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lethe.classifier.artifact import ARRAYS, Artifact

Arrays = Mapping[str, NDArray[Any]]

# The file of the shared part in an artifact's folder.
SHARED_FILE = "shared.safetensors"
# Folder beside the artifacts: for each shared part a hard link whose name is the part's SHA-256.
STORE = ".shared"
# Arrays of which a changed artifact has its own.
OWN_ARRAYS = frozenset(name for name in ARRAYS if name.startswith("added_")) | {"removed_items"}
# Arrays with one row for each of the artifact's words.
WORD_ARRAYS = ("word_vectors", "word_counts")
# Arrays in the files only: the shared words as UTF-8 with a line feed after each, and the rows (in `WORD_ARRAYS` and
# in the artifact's words) of the artifact's own words.
FILE_ARRAYS = {"shared_words": "uint8", "own_word_rows": "int32"}


@dataclass(frozen=True)
class SharedPart:
    """The arrays and words that artifacts of one fit have in common. word_arrays: the rows of `words` only."""

    arrays: Arrays
    word_arrays: Arrays
    words: tuple[str, ...]


class JoinedArrays(Mapping[str, NDArray[Any]]):
    """The arrays of an artifact that was saved in two parts.

    The two arrays with a row for each word are joined whenever they are read, in about a millisecond: of a thousand
    artifacts few are ever asked for them, and together they would take gigabytes.
    """

    def __init__(self, own: Arrays, shared: SharedPart) -> None:
        """own: the artifact's own arrays, with `own_word_rows` and its own rows of `WORD_ARRAYS`."""
        self._rows = own["own_word_rows"]
        self._own_words = {name: own[name] for name in WORD_ARRAYS}
        self._shared = shared
        rest = {name: array for name, array in own.items() if name not in (*WORD_ARRAYS, *FILE_ARRAYS)}
        self._arrays = {**shared.arrays, **rest}

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name in WORD_ARRAYS:
            return _insert_rows(self._shared.word_arrays[name], self._own_words[name], self._rows)
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        yield from self._arrays
        yield from WORD_ARRAYS

    def __len__(self) -> int:
        return len(self._arrays) + len(WORD_ARRAYS)


def split_artifact(artifact: Artifact) -> tuple[dict[str, NDArray[Any]], tuple[str, ...], dict[str, NDArray[Any]]]:
    """The artifact's own arrays and words, and the arrays of its shared part.

    Words that occur in ordinary text are shared: additions and removals keep them. The others are its own.
    """
    is_own = artifact.arrays["word_counts"] == 0
    own = {name: artifact.arrays[name] for name in OWN_ARRAYS}
    shared = {n: a for n, a in artifact.arrays.items() if n not in OWN_ARRAYS and n not in WORD_ARRAYS}
    for name in WORD_ARRAYS:
        array = artifact.arrays[name]
        own[name], shared[name] = array[is_own], array[~is_own]
    own["own_word_rows"] = np.flatnonzero(is_own).astype(np.int32)
    words = "".join(f"{word}\n" for word, its_own in zip(artifact.words, is_own, strict=True) if not its_own)
    shared["shared_words"] = np.frombuffer(words.encode("utf-8"), dtype=np.uint8)
    return own, tuple(word for word, its_own in zip(artifact.words, is_own, strict=True) if its_own), shared


def read_shared_part(arrays: Arrays) -> SharedPart:
    """The shared part of these arrays of a file. Raises KeyError and UnicodeDecodeError for malformed ones."""
    words = tuple(arrays["shared_words"].tobytes().decode("utf-8").split("\n")[:-1])
    rest = {name: array for name, array in arrays.items() if name not in (*WORD_ARRAYS, "shared_words")}
    return SharedPart(rest, {name: arrays[name] for name in WORD_ARRAYS}, words)


def join_words(own: Arrays, own_words: tuple[str, ...], shared: SharedPart) -> tuple[str, ...]:
    """The words of an artifact, in the order of its rows. Raises KeyError or TypeError if the rows don't fit."""
    rows = own["own_word_rows"]
    count = len(own_words) + len(shared.words)
    if (
        len(rows) != len(own_words)
        or (np.diff(rows) <= 0).any()
        or (len(rows) and not 0 <= rows[0] <= rows[-1] < count)
    ):
        raise TypeError("own_word_rows does not fit the words")
    sizes = {(len(shared.word_arrays[name]), len(own[name])) for name in WORD_ARRAYS}
    if sizes != {(len(shared.words), len(own_words))}:
        raise TypeError("word_vectors or word_counts does not fit the words")
    own_left, shared_left, is_own = iter(own_words), iter(shared.words), set(rows.tolist())
    return tuple(next(own_left) if row in is_own else next(shared_left) for row in range(count))


def store_once(path: Path, artifacts: Path) -> None:
    """Replace a file by a hard link to an equal one in the store of the folder `artifacts`, or enter it there.

    Where the file system has no hard links the file stays as it is. Entries that no artifact uses are deleted.
    """
    store = artifacts / STORE
    with contextlib.suppress(OSError):
        store.mkdir(exist_ok=True)
        entry = store / _sha256(path)
        if entry.is_file() and _sha256(entry) == entry.name:
            linked = path.with_name(f"{path.name}.link")
            os.link(entry, linked)
            os.replace(linked, path)
        else:
            entry.unlink(missing_ok=True)
            os.link(path, entry)
        for other in store.iterdir():
            if other.stat().st_nlink == 1:
                other.unlink()


def _insert_rows(shared: NDArray[Any], own: NDArray[Any], rows: NDArray[np.int32]) -> NDArray[Any]:
    """One array in which `own` are the rows of these numbers, and `shared` all others, in order."""
    joined = np.empty((len(shared) + len(own), *shared.shape[1:]), dtype=shared.dtype)
    is_own = np.zeros(len(joined), dtype=bool)
    is_own[rows] = True
    joined[is_own], joined[~is_own] = own, shared
    return joined


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
