"""A tensor as vLLM takes it in `prompt_embeds`: the file that `torch.save` writes, made without torch.

That file is a zip archive: a pickled call that makes a tensor from a storage, the storage's bytes, and the
format's version. The call is the same for every tensor but for type and shape, so it is written opcode by opcode
here; nothing is ever unpickled. Tests read it back with `torch.load(weights_only=True)`, as vLLM does.
"""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
import pybase64
from numpy.typing import NDArray

# What torch calls the storages of these types.
_STORAGES = {"bfloat16": b"BFloat16Storage", "float16": b"HalfStorage", "float32": b"FloatStorage"}
_VERSION = b"3\n"


def encoded(rows: NDArray[Any]) -> str:
    """Base64 of the file. rows: (T, D) of bfloat16, float16 or float32. Raises ValueError for anything else."""
    return pybase64.b64encode_as_string(_archive(rows).getbuffer())


def _archive(rows: NDArray[Any]) -> io.BytesIO:
    if rows.ndim != 2 or rows.dtype.name not in _STORAGES:
        raise ValueError(f"{rows.dtype.name} {rows.shape} is no tensor of embeddings")
    little = rows.dtype.newbyteorder("<") if rows.dtype.name != "bfloat16" else rows.dtype
    data = np.ascontiguousarray(rows, dtype=little)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "data.pkl", _call(len(rows), rows.shape[1], _STORAGES[rows.dtype.name]))
        _add(archive, "byteorder", b"little")
        _add(archive, "data/0", data.reshape(-1).view(np.uint8).data)
        _add(archive, "version", _VERSION)
    return file


def _add(archive: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    # The default date of an entry: the same rows are the same file.
    archive.writestr(zipfile.ZipInfo(f"archive/{name}"), data)


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
