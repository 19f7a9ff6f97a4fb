"""A tensor as vLLM takes it in `prompt_embeds`: the file that `torch.save` writes, made without torch.

The file is a zip archive with a pickled call that builds a tensor from a storage, the storage's bytes, and the
format's version. The call is the same for every tensor except for type and shape, so it is written opcode by opcode
here; nothing is ever unpickled. The caller fills in the rows inside the file's own memory: 2,048 rows of 4,096 values
are 17 MB, and each copy would take as long as the rest of the work. Tests read the file with
`torch.load(weights_only=True)`, as vLLM does.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
import pybase64
from numpy.typing import NDArray

# Names of torch's storage classes, by dtype.
_STORAGES = {"bfloat16": b"BFloat16Storage", "float16": b"HalfStorage", "float32": b"FloatStorage"}
# Bytes: torch aligns a storage in the file, so that it can be memory-mapped.
_ALIGNMENT = 64
# Bytes of one tensor, at most: a zip archive's sizes and offsets have 32 bits, with room for the headers.
_MAX_BYTES = 2**32 - 2**16
# Signatures of a zip archive's records (PKWARE's APPNOTE.TXT).
_LOCAL, _CENTRAL, _END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
# Bytes of a local file header without name and padding.
_LOCAL_HEADER_BYTES = 30
# Zip version 2.0, and 1980-01-01 as a DOS date: a fixed date, so that equal rows give equal archives.
_ZIP_VERSION, _DOS_DATE = 20, 33


class TensorFile:
    """The file of a (T, D) tensor. rows: its values, to be filled in; they are part of the file's memory."""

    def __init__(self, tokens: int, width: int, dtype: np.dtype[Any]) -> None:
        """dtype: bfloat16, float16 or float32. Raises ValueError for others, and for more than 4 GB."""
        if dtype.name not in _STORAGES or tokens * width * dtype.itemsize > _MAX_BYTES:
            raise ValueError(f"a tensor of {dtype.name} ({tokens}, {width}) can't be sent")
        small_entries = [
            (b"archive/data.pkl", _pickled_call(tokens, width, _STORAGES[dtype.name])),
            (b"archive/byteorder", b"little"),
            (b"archive/version", b"3\n"),
        ]
        self._entries: list[tuple[bytes, int, int, int]] = []
        head = bytearray()
        for name, data in small_entries:
            self._entries.append((name, zlib.crc32(data), len(data), len(head)))
            head += _local_header(name, zlib.crc32(data), len(data)) + data
        self._storage_name, self._header_start = b"archive/data/0", len(head)
        self._size = tokens * width * dtype.itemsize
        header_bytes = len(head) + _LOCAL_HEADER_BYTES + len(self._storage_name)
        head += _local_header(self._storage_name, 0, self._size, -header_bytes % _ALIGNMENT)
        self._data_start = len(head)
        entries = [*self._entries, (self._storage_name, 0, self._size, self._header_start)]
        self._file = np.empty(len(head) + self._size + len(_central_directory(entries, 0)), dtype=np.uint8)
        self._file[: len(head)] = np.frombuffer(head, dtype=np.uint8)
        data_bytes = self._file[self._data_start :][: self._size]
        self.rows: NDArray[Any] = data_bytes.view(dtype).reshape(tokens, width)

    def base64(self) -> str:
        """Return the file, with the current rows, as base64."""
        end = self._data_start + self._size
        checksum = zlib.crc32(self._file[self._data_start : end].data)
        padding = self._data_start - self._header_start - _LOCAL_HEADER_BYTES - len(self._storage_name)
        header = _local_header(self._storage_name, checksum, self._size, padding)
        self._file[self._header_start : self._data_start] = np.frombuffer(header, dtype=np.uint8)
        entries = [*self._entries, (self._storage_name, checksum, self._size, self._header_start)]
        self._file[end:] = np.frombuffer(_central_directory(entries, end), dtype=np.uint8)
        return pybase64.b64encode_as_string(self._file.data)


def _local_header(name: bytes, checksum: int, size: int, padding: int = 0) -> bytes:
    """The record before an entry's bytes."""
    fields = struct.pack(
        "<5H3L2H", _ZIP_VERSION, 0, 0, 0, _DOS_DATE, checksum, size, size, len(name), padding
    )  # version, flags, method (stored), time, date, CRC-32, two sizes, lengths of name and extra field
    return _LOCAL + fields + name + bytes(padding)


def _central_directory(entries: list[tuple[bytes, int, int, int]], start: int) -> bytes:
    """The records after all entries. entries: (name, CRC-32, size, offset). start: the directory's own offset."""
    records = b"".join(
        _CENTRAL
        + struct.pack(
            "<6H3L5H2L",
            _ZIP_VERSION,
            _ZIP_VERSION,
            *(0, 0, 0, _DOS_DATE),
            *(checksum, size, size, len(name)),
            *(0, 0, 0, 0, 0),
            offset,
        )
        + name
        for name, checksum, size, offset in entries
    )
    count = len(entries)
    return records + _END + struct.pack("<4H2LH", 0, 0, count, count, len(records), start, 0)


def _pickled_call(tokens: int, width: int, storage: bytes) -> bytes:
    """`torch._utils._rebuild_tensor_v2(storage, 0, (tokens, width), (width, 1), False, OrderedDict())`, pickled."""
    storage_id = b"(" + _pickled_text(b"storage") + b"ctorch\n" + storage + b"\n"
    storage_id += _pickled_text(b"0") + _pickled_text(b"cpu")
    return (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n("
        + (storage_id + _pickled_int(tokens * width) + b"tQ")
        + _pickled_int(0)
        + (_pickled_int(tokens) + _pickled_int(width) + b"\x86")
        + (_pickled_int(width) + _pickled_int(1) + b"\x86")
        + b"\x89ccollections\nOrderedDict\n)RtR."
    )


def _pickled_text(text: bytes) -> bytes:
    return b"X" + len(text).to_bytes(4, "little") + text


def _pickled_int(number: int) -> bytes:
    return b"\x8a\x08" + number.to_bytes(8, "little", signed=True)
