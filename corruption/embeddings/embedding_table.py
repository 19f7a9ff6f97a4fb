"""The model's own input embeddings, read row by row from its safetensors.

Only the rows in use are read, from their offset in the file. Memory-mapping the file would save two milliseconds for
2,048 rows, but the system may map half a megabyte around each row, and all of it counts as this process's memory. The
module knows nothing of models that scale or transform embeddings at their input; the parity probe detects those.
"""

from __future__ import annotations

import json
import math
import os
import weakref
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

INDEX = "model.safetensors.index.json"
# Names of the input embeddings in model families; any prefix may precede them.
SUFFIXES = (
    "embed_tokens.weight",
    "wte.weight",
    "tok_embeddings.weight",
    "word_embeddings.weight",
    "embed_in.weight",
    "embeddings.weight",
    "embedding.weight",
)
# Words in the names of other parts of a model, whose embeddings are not the language model's input.
NOT_LANGUAGE = ("vision", "visual", "audio", "image", "position", "draft", "mtp")
DTYPES: dict[Any, np.dtype[Any]] = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
}
# Bytes of a safetensors header, at most: about the safetensors library's own limit (100 MB).
MAX_HEADER_BYTES = 100 * 2**20
# Rows to sample for `row_rms`. Chosen: they are read in milliseconds, and hold over a million values.
SAMPLED_ROWS = 2048


class EmbeddingTable:
    """Rows of one embedding matrix, read-only, so threads may share it.

    size: number of rows. width: values in a row. dtype: the data type of the file.
    """

    def __init__(self, model_dir: Path | str) -> None:
        """Raises ValueError with folder, file and tensor when there is no usable matrix."""
        self.folder = Path(model_dir)
        if not self.folder.is_dir():
            raise ValueError(f"model folder {self.folder} does not exist")
        self.file, self.name, entry, start = _locate_embeddings(self.folder)
        tensor = f"{self.file}: tensor {self.name!r}"
        dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
        if dtype not in DTYPES:
            raise ValueError(f"{tensor} has dtype {dtype}, not one of {', '.join(DTYPES)} (quantised?)")
        if shape is None or offsets is None or not (_is_pair(shape) and _is_pair(offsets)):
            raise ValueError(f"{tensor} has shape {shape} at {offsets}, not (tokens, width)")
        self.size, self.width = (int(n) for n in shape)
        self.dtype = DTYPES[dtype]
        expected_bytes = self.size * self.width * self.dtype.itemsize
        if offsets[1] - offsets[0] != expected_bytes or start + offsets[1] > self.file.stat().st_size:
            raise ValueError(f"{tensor} is cut off: its header says {expected_bytes} bytes")
        self._start = start + offsets[0]
        self._file_descriptor = os.open(self.file, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file_descriptor)

    def rows(self, ids: Sequence[int], *, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return the (T, D) rows of these ids in `out` or a new array. Raises ValueError for ids outside the table."""
        index = np.asarray(ids, dtype=np.int64).reshape(-1)
        if index.size and (index.min() < 0 or index.max() >= self.size):
            raise ValueError(f"token ids {index.min()}..{index.max()} are not all in [0, {self.size}) ({self.file})")
        rows = np.empty((len(index), self.width), dtype=self.dtype) if out is None else out
        if not rows.flags.c_contiguous:
            raise ValueError("out is not C-contiguous")
        row_bytes = self.width * self.dtype.itemsize
        memory = rows.reshape(-1).view(np.uint8).data
        first_position: dict[int, int] = {}
        for position, token in enumerate(index.tolist()):
            first = first_position.setdefault(token, position)
            if first < position:
                rows[position] = rows[first]
                continue
            target = memory[position * row_bytes : (position + 1) * row_bytes]
            if os.preadv(self._file_descriptor, [target], self._start + token * row_bytes) != row_bytes:
                raise ValueError(f"{self.file}: tensor {self.name!r} is cut off: the file has become shorter")
        return rows

    @cached_property
    def row_rms(self) -> float:
        """Root mean square of all values in an evenly spread sample of rows: sqrt(mean(x²))."""
        sampled = range(0, self.size, max(1, self.size // SAMPLED_ROWS))
        total = 0.0
        for row in sampled:
            values = self.rows([row])[0].astype(np.float64)
            total += float(values @ values)
        rms = math.sqrt(total / (len(sampled) * self.width))
        if not rms > 0:
            raise ValueError(f"{self.file}: tensor {self.name!r} has row RMS {rms}")
        return rms


def _locate_embeddings(folder: Path) -> tuple[Path, str, dict[str, Any], int]:
    """Find the input embeddings: (file, tensor name, its header entry, offset of the file's data)."""
    index = folder / INDEX
    files: Sequence[Path]
    if index.is_file():
        weight_map = _json_object(index.read_bytes(), index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ValueError(f"{index} has no 'weight_map'")
        name = _embedding_name(list(weight_map), folder)
        if Path(weight_map[name]).name != weight_map[name]:
            raise ValueError(f"{index}: tensor {name!r} is in {weight_map[name]!r}, outside the folder")
        files = [folder / weight_map[name]]
    else:
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ValueError(f"model folder {folder} holds no *.safetensors")
    headers = {file: _read_header(file) for file in files}
    names = {name: file for file, (header, _) in headers.items() for name in header if name != "__metadata__"}
    name = _embedding_name(list(names), folder)
    header, start = headers[names[name]]
    return names[name], name, header[name], start


def _read_header(file: Path) -> tuple[dict[str, Any], int]:
    """Read a safetensors file's header: the tensors' descriptions, and the offset of their data."""
    if not file.is_file():
        raise ValueError(f"{file} is missing")
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER_BYTES, file.stat().st_size - 8):
            raise ValueError(f"{file} is not a safetensors file: header of {length} bytes")
        return _json_object(stream.read(length), file), 8 + length


def _json_object(text: bytes, file: Path) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{file} holds no valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{file} holds a {type(value).__name__}, not an object")
    return value


def _embedding_name(names: Sequence[str], folder: Path) -> str:
    """The name of the input embeddings among all tensors of the model."""
    language = [n for n in names if not any(word in n for word in NOT_LANGUAGE)]
    for suffix in SUFFIXES:
        matching = [n for n in language if n == suffix or n.endswith("." + suffix)]
        if matching:
            return min(matching, key=lambda n: (n.count("."), n))
    suffixes = ", ".join(SUFFIXES)
    raise ValueError(f"model folder {folder}: none of {len(names)} tensors ends like an embedding ({suffixes})")


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(n, int) and n >= 0 for n in value)
