"""A disk cache of embeddings of texts that every fit with one encoder needs. Knows no forget set.

It is beside the prepared encoders. Each file holds its own checksum and is written atomically, so neither a crash nor
a second fit at the same time can damage it; a damaged file is written again.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.encoder.folders import cache_folder


def cached_embeddings(
    texts: Sequence[str], encoder: Encoder, progress: Callable[[int, int], None] | None = None
) -> NDArray[np.float32]:
    """float32 (N, D) unit rows of `texts`, from the cache if this encoder has encoded exactly this list before.

    A cache that can't be written is no error: the next fit encodes again.
    """
    digest = hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()
    path = cache_folder().parent / "background" / f"{encoder.hash[:32]}-{digest[:32]}"
    shape = (len(texts), encoder.width)
    if (cached := _read_cached(path, shape)) is not None:
        return cached
    vectors = encoder.encode(texts, progress)
    _write_cached(path, vectors)
    return vectors


def _read_cached(path: Path, shape: tuple[int, int]) -> NDArray[np.float32] | None:
    """The cached rows; None when the file is missing or damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    size = hashlib.sha256().digest_size
    if len(content) != size + 4 * shape[0] * shape[1] or hashlib.sha256(content[size:]).digest() != content[:size]:
        return None
    return np.frombuffer(content, dtype="<f4", offset=size).reshape(shape).astype(np.float32)


def _write_cached(path: Path, vectors: NDArray[np.float32]) -> None:
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
