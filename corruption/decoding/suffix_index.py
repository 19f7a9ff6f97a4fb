"""An index of protected text: does a piece of text stand in it, and which letters follow it there?

Texts are compared by their letters and digits alone, folded (`corruption/phrases/normalize.py`): case, white space,
line breaks, punctuation and quotes make no difference. The index is a suffix array over those letters, so
the answer is exact for pieces of any length, takes two binary searches (microseconds, whatever the text) and
needs about five bytes a letter of a Latin script. It knows no tokens: how long a copy is in tokens is
`corruption/decoding/copy_limit.py`'s to say.

It is stored as one safetensors file, memory-mapped by its readers. Its metadata carries the SHA-256 of the
letters, which is also the name by which requests ask for it, and that of the array.
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
import tempfile
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import numpy as tensors

from lethe.corruption.phrases.normalize import SEPARATOR, fold

INDEX_FILE = "verbatim.safetensors"
INDEX_FORMAT = "lethe verbatim 1"
NAME_LENGTH = 32
MAX_LETTERS = 2**30
_MAX_HEADER_BYTES = 65_536
_MAX_CHARACTER_BYTES = 4

logger = logging.getLogger(__name__)


def comparable_letters(text: str) -> str:
    """What is compared of a text: its folded letters and digits."""
    return fold(text).replace(SEPARATOR, "")


def content_name(texts: Iterable[str]) -> str:
    """The name of the index of these texts, read as one text: the same however it is cut into pieces."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(comparable_letters(text).encode())
    return digest.hexdigest()[:NAME_LENGTH]


class SuffixIndex:
    """The letters of a text as UTF-8, and the places of its characters sorted by what follows them."""

    def __init__(self, data: bytes | mmap.mmap, text: tuple[int, int], places: tuple[int, int]) -> None:
        """data: holds both parts; text, places: (begin, end) of the letters and of the 32-bit places in it."""
        self._data = data
        self._begin, self._end = text
        self._places = memoryview(data)[places[0] : places[1]].cast("I")
        self.name = hashlib.sha256(data[self._begin : self._end]).hexdigest()[:NAME_LENGTH]

    def __len__(self) -> int:
        """The number of letters."""
        return len(self._places)

    def followers(self, piece: str) -> frozenset[str] | None:
        """The letters that come after `piece` in the text, none where it ends; None if it isn't in the text.

        piece: folded letters, at least one.
        """
        wanted = piece.encode()
        low = self._first(wanted, 0, len(self._places))
        if low == len(self._places) or self._read(self._places[low], len(wanted)) != wanted:
            return None
        high = self._behind(wanted, low, len(self._places))
        found = set()
        # From one following letter to the next, so that the work is bounded by how many there are.
        while low < high:
            after = self._read(self._places[low] + len(wanted), _MAX_CHARACTER_BYTES).decode("utf-8", "ignore")[:1]
            if not after:
                low += 1  # the text's end
                continue
            found.add(after)
            low = self._behind(wanted + after.encode(), low, high)
        return frozenset(found)

    def _read(self, place: int, length: int) -> bytes:
        begin = self._begin + place
        return self._data[begin : min(begin + length, self._end)]

    def _first(self, wanted: bytes, low: int, high: int) -> int:
        return bisect_left(self._places, wanted, low, high, key=lambda place: self._read(place, len(wanted)))

    def _behind(self, wanted: bytes, low: int, high: int) -> int:
        return bisect_right(self._places, wanted, low, high, key=lambda place: self._read(place, len(wanted)))


def build_arrays(texts: Iterable[str]) -> dict[str, NDArray[Any]]:
    """The arrays of an index of `texts`, read as one text: `letters` (uint8) and `places` (uint32).

    Raises ValueError when they hold no letter, or more than MAX_LETTERS.
    """
    text = "".join(map(comparable_letters, texts))
    if not 0 < len(text) <= MAX_LETTERS:
        raise ValueError(f"the texts have {len(text)} letters, not 1 to {MAX_LETTERS}")
    codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    widths = 1 + (codes >= 0x80).astype(np.uint32) + (codes >= 0x800) + (codes >= 0x10000)
    begins = np.cumsum(widths, dtype=np.int64) - widths
    places = begins[_suffixes(codes)].astype("<u4")
    return {"letters": np.frombuffer(text.encode(), dtype=np.uint8), "places": places}


def _suffixes(codes: NDArray[np.uint32]) -> NDArray[np.int64]:
    """The suffix array of `codes` by prefix doubling: O(n log² n) for any text."""
    size, step = len(codes), 1
    rank = np.unique(codes, return_inverse=True)[1].astype(np.int64)
    while True:
        # Beyond the end sorts first.
        after = np.zeros(size, dtype=np.int64)
        after[: max(size - step, 0)] = rank[step:] + 1
        key = rank * (size + 1) + after
        order = np.argsort(key, kind="stable")
        ordered = key[order]
        rank = np.empty(size, dtype=np.int64)
        rank[order] = np.concatenate([[0], np.cumsum(ordered[1:] != ordered[:-1])])
        if step >= size or rank[order[-1]] == size - 1:
            return order
        step *= 2


def index_in_memory(texts: Iterable[str]) -> SuffixIndex:
    """The index of `texts` without a file. Raises ValueError as `build` does."""
    arrays = build_arrays(texts)
    places, text = arrays["places"].tobytes(), arrays["letters"].tobytes()
    return SuffixIndex(places + text, (len(places), len(places) + len(text)), (0, len(places)))


def save_index(texts: Iterable[str], path: Path) -> str:
    """Write the index of `texts` to `path`, whole or not at all; returns its name. Raises as `build` does."""
    arrays = build_arrays(texts)
    hashes = {key: hashlib.sha256(array.tobytes()).hexdigest() for key, array in arrays.items()}
    handle, partial = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(tensors.save(arrays, metadata={"format": INDEX_FORMAT, **hashes}))
        Path(partial).chmod(0o644)
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
    return hashes["letters"][:NAME_LENGTH]


def load_index(path: Path) -> SuffixIndex:
    """The index in a file, memory-mapped. Raises ValueError naming file and reason when it isn't a sound one."""
    try:
        with path.open("rb") as stream:
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: can't be read: {error}") from error
    try:
        length = int.from_bytes(data[:8], "little")
        if not 2 <= length <= min(_MAX_HEADER_BYTES, len(data) - 8):
            raise ValueError(f"a header of {length} bytes")
        header = json.loads(data[8 : 8 + length])
        metadata = header["__metadata__"]
        if metadata["format"] != INDEX_FORMAT:
            raise ValueError(f"format {metadata['format']!r}, not {INDEX_FORMAT!r}")
        text = _part(header["letters"], "U8", 1, 8 + length, len(data))
        places = _part(header["places"], "U32", 4, 8 + length, len(data))
        for part, digest in ((text, metadata["letters"]), (places, metadata["places"])):
            if hashlib.sha256(memoryview(data)[part[0] : part[1]]).hexdigest() != digest:
                raise ValueError("its content differs from the hash in its header")
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{path}: not a verbatim index: {error}") from error
    return SuffixIndex(data, text, places)


def _part(entry: dict[str, Any], dtype: str, width: int, start: int, size: int) -> tuple[int, int]:
    begin, end = (start + int(offset) for offset in entry["data_offsets"])
    if entry["dtype"] != dtype or entry["shape"] != [(end - begin) // width] or not start <= begin < end <= size:
        raise ValueError(f"a tensor of {entry['dtype']} {entry['shape']} at {begin} to {end}")
    return begin, end


class SuffixIndexFolder:
    """The indexes in a folder of artifacts (`*/verbatim.safetensors`), found by name.

    Files are read when a name is asked for that isn't known yet, so an index may come while the server runs.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._read: dict[Path, tuple[int, int]] = {}
        self._indexes: dict[str, SuffixIndex] = {}

    def get(self, wanted: str) -> SuffixIndex:
        """The index of that name. Raises ValueError, without the name, when there is none."""
        if wanted not in self._indexes:
            self._look()
        if wanted not in self._indexes:
            raise ValueError("the server does not have this verbatim index (LETHE_VERBATIM)")
        return self._indexes[wanted]

    def _look(self) -> None:
        for path in sorted(self._folder.glob(f"*/{INDEX_FILE}")) if self._folder is not None else ():
            try:
                status = path.stat()
                stamp = (status.st_mtime_ns, status.st_size)
                if self._read.get(path) != stamp:
                    self._read[path] = stamp
                    index = load_index(path)
                    self._indexes[index.name] = index
            except (OSError, ValueError) as error:
                logger.error("a verbatim index can't be used: %s", error)
