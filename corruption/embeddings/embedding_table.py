"""The model's own input embeddings, read row by row from its safetensors.

Only the rows in use are read, by their place in the file. Mapping the file into memory would be faster by two
milliseconds in 2,048 rows, but a system may map half a megabyte around each of them, and all of it counts as this
process's memory. It knows nothing of models that scale or transform embeddings on the way in; the parity probe
finds those.
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
# How model families call their input embeddings; each may stand behind any prefix.
SUFFIXES = (
    "embed_tokens.weight",
    "wte.weight",
    "tok_embeddings.weight",
    "word_embeddings.weight",
    "embed_in.weight",
    "embeddings.weight",
    "embedding.weight",
)
# Parts of a model that may own a matching name without being its language model's input.
NOT_LANGUAGE = ("vision", "visual", "audio", "image", "position", "draft", "mtp")
DTYPES: dict[Any, np.dtype[Any]] = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
}
MAX_HEADER_BYTES = 100 * 2**20
SAMPLED_ROWS = 2048


class EmbeddingTable:
    """Rows of one embedding matrix. Safe to share between threads: it is never written."""

    def __init__(self, model_dir: Path | str) -> None:
        """Raises ValueError naming folder, file and tensor when there is no usable matrix."""
        self.folder = Path(model_dir)
        if not self.folder.is_dir():
            raise ValueError(f"model folder {self.folder} does not exist")
        self.file, self.name, entry, start = _locate(self.folder)
        where = f"{self.file}: tensor {self.name!r}"
        dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
        if dtype not in DTYPES:
            raise ValueError(f"{where} has dtype {dtype}, not one of {', '.join(DTYPES)} (quantised?)")
        if shape is None or offsets is None or not (_is_pair(shape) and _is_pair(offsets)):
            raise ValueError(f"{where} has shape {shape} at {offsets}, not (tokens, width)")
        self.size, self.width = (int(n) for n in shape)
        self.dtype = DTYPES[dtype]
        promised = self.size * self.width * self.dtype.itemsize
        if offsets[1] - offsets[0] != promised or start + offsets[1] > self.file.stat().st_size:
            raise ValueError(f"{where} is cut off: its header promises {promised} bytes")
        self._start = start + offsets[0]
        self._stream = os.open(self.file, os.O_RDONLY)
        weakref.finalize(self, os.close, self._stream)

    def rows(self, ids: Sequence[int], *, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """A (T, D) array of type `dtype`: `out`, or a fresh one. Raises ValueError for an id outside the table."""
        index = np.asarray(ids, dtype=np.int64).reshape(-1)
        if index.size and (index.min() < 0 or index.max() >= self.size):
            raise ValueError(f"token ids {index.min()}..{index.max()} are not all in [0, {self.size}) ({self.file})")
        found = np.empty((len(index), self.width), dtype=self.dtype) if out is None else out
        if not found.flags.c_contiguous:
            raise ValueError("rows are read into memory that lies in one piece")
        size = self.width * self.dtype.itemsize
        into = found.reshape(-1).view(np.uint8).data
        places: dict[int, int] = {}
        for place, token in enumerate(index.tolist()):
            known = places.setdefault(token, place)
            if known < place:
                found[place] = found[known]
            elif os.preadv(self._stream, [into[place * size : (place + 1) * size]], self._start + token * size) != size:
                raise ValueError(f"{self.file}: tensor {self.name!r} is cut off: it was shortened since it was opened")
        return found

    @cached_property
    def row_rms(self) -> float:
        """Root mean square of the entries of an evenly spread sample of rows."""
        sampled = range(0, self.size, max(1, self.size // SAMPLED_ROWS))
        total = 0.0
        for row in sampled:
            values = self.rows([row])[0].astype(np.float64)
            total += float(values @ values)
        rms = math.sqrt(total / (len(sampled) * self.width))
        if not rms > 0:
            raise ValueError(f"{self.file}: tensor {self.name!r} has row RMS {rms}")
        return rms


def _locate(folder: Path) -> tuple[Path, str, dict[str, Any], int]:
    """(file, tensor name, its header entry, where the file's data starts)."""
    index = folder / INDEX
    files: Sequence[Path]
    if index.is_file():
        weight_map = _json(index.read_bytes(), index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ValueError(f"{index} has no 'weight_map'")
        name = _pick(list(weight_map), folder)
        if Path(weight_map[name]).name != weight_map[name]:
            raise ValueError(f"{index}: tensor {name!r} is said to be in {weight_map[name]!r}, outside the folder")
        files = [folder / weight_map[name]]
    else:
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ValueError(f"model folder {folder} holds no *.safetensors")
    headers = {file: _header(file) for file in files}
    names = {name: file for file, (header, _) in headers.items() for name in header if name != "__metadata__"}
    name = _pick(list(names), folder)
    header, start = headers[names[name]]
    return names[name], name, header[name], start


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """The tensors' descriptions and the offset of their data, as the safetensors format has it."""
    if not file.is_file():
        raise ValueError(f"{file} is missing")
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER_BYTES, file.stat().st_size - 8):
            raise ValueError(f"{file} is not a safetensors file: header of {length} bytes")
        return _json(stream.read(length), file), 8 + length


def _json(text: bytes, file: Path) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{file} holds no valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{file} holds a {type(value).__name__}, not an object")
    return value


def _pick(names: Sequence[str], folder: Path) -> str:
    """The input embedding's name among all tensors of the model."""
    language = [n for n in names if not any(word in n for word in NOT_LANGUAGE)]
    for suffix in SUFFIXES:
        found = [n for n in language if n == suffix or n.endswith("." + suffix)]
        if found:
            return min(found, key=lambda n: (n.count("."), n))
    known = ", ".join(SUFFIXES)
    raise ValueError(f"model folder {folder}: none of {len(names)} tensors ends like an embedding ({known})")


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(n, int) and n >= 0 for n in value)
