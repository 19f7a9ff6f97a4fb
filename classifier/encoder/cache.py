"""Embeddings of texts that every fit reads again, kept between fits. Knows no forget set.

The cache lies beside the prepared encoders. A file in it holds its own checksum and appears whole or not at
all, so neither a crash nor a second fit at the same time can spoil it; a damaged one is made again.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lethe.classifier.encoder.encoder import Encoder, cache_folder


def embeddings(
    texts: Sequence[str], encoder: Encoder, progress: Callable[[int, int], None] | None = None
) -> NDArray[np.float32]:
    """float32 (N, D) unit rows of `texts`, from the cache if this encoder has read exactly these before.

    A cache that can't be written is no error: the next fit encodes again.
    """
    digest = hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()
    path = cache_folder().parent / "background" / f"{encoder.hash[:32]}-{digest[:32]}"
    shape = (len(texts), encoder.width)
    if (known := _read(path, shape)) is not None:
        return known
    vectors = encoder.encode(texts, progress)
    _write(path, vectors)
    return vectors


def _read(path: Path, shape: tuple[int, int]) -> NDArray[np.float32] | None:
    """The cached rows; None when there are none, or what is there isn't what was written."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    size = hashlib.sha256().digest_size
    if len(content) != size + 4 * shape[0] * shape[1] or hashlib.sha256(content[size:]).digest() != content[:size]:
        return None
    return np.frombuffer(content, dtype="<f4", offset=size).reshape(shape).astype(np.float32)


def _write(path: Path, vectors: NDArray[np.float32]) -> None:
    content = vectors.astype("<f4").tobytes()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(content).digest() + content)
            os.replace(partial, path)
        except OSError:
            os.unlink(partial)
            raise
    except OSError:
        return
