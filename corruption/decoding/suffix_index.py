"""A verbatim index of protected text: does a piece of text occur in it, and which letters follow it there?

Texts are compared by their folded letters and digits alone (`corruption/phrases/normalize.py`): case, white space,
line breaks, punctuation and quotes make no difference. The index is a suffix array over those letters. So the answer
is exact for pieces of any length, takes two binary searches (microseconds for any text) and needs about five bytes a
letter of a Latin script. The index knows no tokens; `corruption/decoding/copy_limit.py` counts those.

It is stored as one safetensors file with two arrays, `letters` and `places`, which readers memory-map. The metadata
carries the SHA-256 of both. The first characters of the letters' hash are the name by which requests refer to it.
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
# Hexadecimal digits of an index's name: 128 bits of SHA-256, enough that no two texts share a name.
NAME_LENGTH = 32
# Letters of one index, at most: positions are stored in 32 bits, and a letter may take four bytes.
MAX_LETTERS = 2**30
# Bytes of the file's JSON header, at most. Ours has about 500; a larger one is not ours.
_MAX_HEADER_BYTES = 65_536
# Bytes of one character in UTF-8, at most.
_MAX_CHARACTER_BYTES = 4
# First code point that takes 2, 3 and 4 bytes in UTF-8.
_UTF8_WIDTH_STEPS = (0x80, 0x800, 0x10000)

logger = logging.getLogger(__name__)


def comparable_letters(text: str) -> str:
    """Return what is compared of a text: its folded letters and digits."""
    return fold(text).replace(SEPARATOR, "")


def content_name(texts: Iterable[str]) -> str:
    """Return the name of the index of these texts, read as one text. Where the texts are split changes nothing."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(comparable_letters(text).encode())
    return digest.hexdigest()[:NAME_LENGTH]


class SuffixIndex:
    """The letters of a text as UTF-8, and the positions of its characters sorted by what follows them."""

    def __init__(self, letters: memoryview, positions: memoryview) -> None:
        """letters: the UTF-8 bytes. positions: byte offsets into them as unsigned 32-bit integers, sorted."""
        self._letters = letters
        self._positions = positions.cast("B").cast("I")
        self.name = hashlib.sha256(letters).hexdigest()[:NAME_LENGTH]

    def __len__(self) -> int:
        """The number of letters."""
        return len(self._positions)

    def followers(self, piece: str) -> frozenset[str] | None:
        """Return the letters that come after `piece` in the text, or None if the text doesn't contain it.

        Where `piece` occurs only at the text's end, the set is empty. piece: folded letters, at least one.
        """
        prefix = piece.encode()
        low = self._first_suffix(prefix, 0, len(self._positions))
        if low == len(self._positions) or self._read(self._positions[low], len(prefix)) != prefix:
            return None
        high = self._end_of_suffixes(prefix, low, len(self._positions))
        letters = set()
        # Jump from one following letter to the next, so that the work grows with the number of different letters.
        while low < high:
            following = self._read(self._positions[low] + len(prefix), _MAX_CHARACTER_BYTES)
            letter = following.decode("utf-8", "ignore")[:1]
            if not letter:
                low += 1  # the text's end
                continue
            letters.add(letter)
            low = self._end_of_suffixes(prefix + letter.encode(), low, high)
        return frozenset(letters)

    def _read(self, position: int, length: int) -> bytes:
        return bytes(self._letters[position : position + length])

    def _first_suffix(self, prefix: bytes, low: int, high: int) -> int:
        """The rank of the first suffix that is not before `prefix`."""
        return bisect_left(self._positions, prefix, low, high, key=lambda position: self._read(position, len(prefix)))

    def _end_of_suffixes(self, prefix: bytes, low: int, high: int) -> int:
        """The rank after the last suffix that starts with `prefix`."""
        return bisect_right(self._positions, prefix, low, high, key=lambda position: self._read(position, len(prefix)))


def build_arrays(texts: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Return the arrays of an index of `texts`, read as one text: `letters` (uint8) and `places` (uint32).

    Raises ValueError when the texts hold no letter, or more than MAX_LETTERS.
    """
    text = "".join(map(comparable_letters, texts))
    if not 0 < len(text) <= MAX_LETTERS:
        raise ValueError(f"the texts have {len(text)} letters, not 1 to {MAX_LETTERS}")
    codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    widths = np.ones(len(codes), dtype=np.uint32)
    for first_wider in _UTF8_WIDTH_STEPS:
        widths += codes >= first_wider
    starts = np.cumsum(widths, dtype=np.int64) - widths
    positions = starts[_suffix_array(codes)].astype("<u4")
    return {"letters": np.frombuffer(text.encode(), dtype=np.uint8), "places": positions}


def _suffix_array(codes: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Sort the suffixes of `codes` by prefix doubling: O(n log² n) for any text."""
    size, step = len(codes), 1
    rank = np.unique(codes, return_inverse=True)[1].astype(np.int64)
    while True:
        # What lies beyond the end sorts first.
        following = np.zeros(size, dtype=np.int64)
        following[: max(size - step, 0)] = rank[step:] + 1
        key = rank * (size + 1) + following
        order = np.argsort(key, kind="stable")
        sorted_key = key[order]
        rank = np.empty(size, dtype=np.int64)
        rank[order] = np.concatenate([[0], np.cumsum(sorted_key[1:] != sorted_key[:-1])])
        if step >= size or rank[order[-1]] == size - 1:
            return order
        step *= 2


def save_index(texts: Iterable[str], path: Path) -> str:
    """Write the index of `texts` to `path`, atomically, and return its name. Raises ValueError as `build_arrays`."""
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
    """Return the index in a file, memory-mapped. Raises ValueError with file and reason when it is not a sound one."""
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
        content = memoryview(data)[8 + length :]
        letters = _read_array(content, header["letters"], "U8", 1)
        positions = _read_array(content, header["places"], "U32", 4)
        for array, digest in ((letters, metadata["letters"]), (positions, metadata["places"])):
            if hashlib.sha256(array).hexdigest() != digest:
                raise ValueError("its content differs from the hash in its header")
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{path}: not a verbatim index: {error}") from error
    return SuffixIndex(letters, positions)


def _read_array(content: memoryview, entry: dict[str, Any], dtype: str, width: int) -> memoryview:
    """The bytes of one array. entry: its description in the header. width: bytes of one value."""
    begin, end = (int(offset) for offset in entry["data_offsets"])
    shape = [(end - begin) // width]
    if entry["dtype"] != dtype or entry["shape"] != shape or not 0 <= begin < end <= len(content):
        raise ValueError(f"a tensor of {entry['dtype']} {entry['shape']} at {begin} to {end}")
    return content[begin:end]


class SuffixIndexFolder:
    """The indexes in a folder of artifacts (`*/verbatim.safetensors`), by name.

    An unknown name makes it read new files, so an index may be added while the server runs.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._file_stamps: dict[Path, tuple[int, int]] = {}
        self._indexes: dict[str, SuffixIndex] = {}

    def get(self, name: str) -> SuffixIndex:
        """Return the index of that name. Raises ValueError, without the name, when there is none."""
        if name not in self._indexes:
            self._read_new_files()
        if name not in self._indexes:
            raise ValueError("the server does not have this verbatim index (LETHE_VERBATIM)")
        return self._indexes[name]

    def _read_new_files(self) -> None:
        for path in sorted(self._folder.glob(f"*/{INDEX_FILE}")) if self._folder is not None else ():
            try:
                status = path.stat()
                stamp = (status.st_mtime_ns, status.st_size)
                if self._file_stamps.get(path) != stamp:
                    self._file_stamps[path] = stamp
                    index = load_index(path)
                    self._indexes[index.name] = index
            except (OSError, ValueError) as error:
                logger.error("cannot use a verbatim index: %s", error)
