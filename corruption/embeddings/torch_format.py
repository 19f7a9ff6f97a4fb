"""A tensor as vLLM takes it in `prompt_embeds`: the file that `torch.save` writes, made without torch.

That file is a zip archive: a pickled call that makes a tensor from a storage, the storage's bytes, and the
format's version. The call is the same for every tensor but for type and shape, so it is written opcode by opcode
here; nothing is ever unpickled. The rows are filled in where they stand in the file: 2,048 rows of 4,096 are 17 MB,
and every copy costs as much as all the rest. Tests read it back with `torch.load(weights_only=True)`, as vLLM does.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
import pybase64
from numpy.typing import NDArray

# What torch calls the storages of these types.
_STORAGES = {"bfloat16": b"BFloat16Storage", "float16": b"HalfStorage", "float32": b"FloatStorage"}
# As torch places a storage's bytes, so that whoever maps them finds numbers at whole addresses.
_ALIGNED = 64
# A zip archive's sizes and places have 32 bits.
_MOST_BYTES = 2**32 - 2**16
_LOCAL, _CENTRAL, _END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"


class TensorFile:
    """The file of a (T, D) tensor. rows: its values, to be filled in; they stand in the file itself."""

    def __init__(self, tokens: int, width: int, dtype: np.dtype[Any]) -> None:
        """dtype: bfloat16, float16 or float32. Raises ValueError for others, and for more than 4 GB."""
        if dtype.name not in _STORAGES or tokens * width * dtype.itemsize > _MOST_BYTES:
            raise ValueError(f"a tensor of {dtype.name} ({tokens}, {width}) can't be sent")
        small = [
            (b"archive/data.pkl", _call(tokens, width, _STORAGES[dtype.name])),
            (b"archive/byteorder", b"little"),
            (b"archive/version", b"3\n"),
        ]
        self._entries: list[tuple[bytes, int, int, int]] = []
        head = bytearray()
        for name, data in small:
            self._entries.append((name, zlib.crc32(data), len(data), len(head)))
            head += _local(name, zlib.crc32(data), len(data)) + data
        self._storage, self._header = b"archive/data/0", len(head)
        self._size = tokens * width * dtype.itemsize
        head += _local(self._storage, 0, self._size, -(len(head) + 30 + len(self._storage)) % _ALIGNED)
        self._begin = len(head)
        entries = [*self._entries, (self._storage, 0, self._size, self._header)]
        self._file = np.empty(len(head) + self._size + len(_directory(entries, 0)), dtype=np.uint8)
        self._file[: len(head)] = np.frombuffer(head, dtype=np.uint8)
        self.rows: NDArray[Any] = self._file[self._begin :][: self._size].view(dtype).reshape(tokens, width)

    def base64(self) -> str:
        """The file as vLLM wants it, with the rows as they are now."""
        end = self._begin + self._size
        check = zlib.crc32(self._file[self._begin : end].data)
        header = _local(self._storage, check, self._size, self._begin - self._header - 30 - len(self._storage))
        self._file[self._header : self._begin] = np.frombuffer(header, dtype=np.uint8)
        directory = _directory([*self._entries, (self._storage, check, self._size, self._header)], end)
        self._file[end:] = np.frombuffer(directory, dtype=np.uint8)
        return pybase64.b64encode_as_string(self._file.data)


def _local(name: bytes, check: int, size: int, padding: int = 0) -> bytes:
    """What stands before an entry's bytes. The date is that of no file: the same rows are the same archive."""
    fields = struct.pack("<5H3L2H", 20, 0, 0, 0, 33, check, size, size, len(name), padding)
    return _LOCAL + fields + name + bytes(padding)


def _directory(entries: list[tuple[bytes, int, int, int]], begin: int) -> bytes:
    """What stands behind all entries: (name, checksum, size, place) of each."""
    listed = b"".join(
        _CENTRAL + struct.pack("<6H3L5H2L", 20, 20, 0, 0, 0, 33, check, size, size, len(name), *[0] * 5, place) + name
        for name, check, size, place in entries
    )
    count = len(entries)
    return listed + _END + struct.pack("<4H2LH", 0, 0, count, count, len(listed), begin, 0)


def _call(tokens: int, width: int, storage: bytes) -> bytes:
    """`torch._utils._rebuild_tensor_v2(storage, 0, (tokens, width), (width, 1), False, OrderedDict())`, pickled."""
    where = b"(" + _text(b"storage") + b"ctorch\n" + storage + b"\n" + _text(b"0") + _text(b"cpu")
    return (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n("
        + (where + _number(tokens * width) + b"tQ")
        + _number(0)
        + (_number(tokens) + _number(width) + b"\x86")
        + (_number(width) + _number(1) + b"\x86")
        + b"\x89ccollections\nOrderedDict\n)RtR."
    )


def _text(text: bytes) -> bytes:
    return b"X" + len(text).to_bytes(4, "little") + text


def _number(number: int) -> bytes:
    return b"\x8a\x08" + number.to_bytes(8, "little", signed=True)
