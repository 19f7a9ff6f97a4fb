"""The shipped background: prompts that are never to be forgotten, and their embeddings by the default encoder.

Every fit learns from the same background, so its embeddings are shipped for the default encoder, and kept in a cache
for any other one. Knows no forget set.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from lethe.classifier.encoder.cache import cached_embeddings
from lethe.classifier.encoder.encoder import Encoder

FOLDER = Path(__file__).parents[1] / "background"
EMBEDDINGS = FOLDER / "embeddings.safetensors"
# Bytes of a text's digest in that file. 128 bits: no two texts share one.
DIGEST_BYTES = 16


@cache
def background_prompts() -> tuple[str, ...]:
    """The prompts of the shipped general set (`classifier/background/SOURCES.md`)."""
    lines = (FOLDER / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(json.loads(line)["prompt"] for line in lines)


def background_embeddings(
    texts: Sequence[str], encoder: Encoder, progress: Callable[[int, int], None] | None = None
) -> NDArray[np.float32]:
    """float32 (N, D) unit rows of background texts: shipped, cached, or encoded now, in this order."""
    vectors = np.zeros((len(texts), encoder.width), dtype=np.float32)
    shipped = _shipped_embeddings(encoder.hash)
    missing = []
    for i, text in enumerate(texts):
        vector = shipped.get(digest_of(text))
        if vector is None:
            missing.append(i)
        else:
            vectors[i] = vector
    if missing:
        vectors[missing] = cached_embeddings([texts[i] for i in missing], encoder, progress)
    return vectors


def word_embeddings(
    words: Sequence[str], encoder: Encoder, progress: Callable[[int, int], None] | None = None
) -> NDArray[np.float16]:
    """float16 (N, D) unit rows of words: those of the background's words are shipped, others are encoded now."""
    vectors = np.zeros((len(words), encoder.width), dtype=np.float16)
    shipped = _shipped_embeddings(encoder.hash, "word_")
    missing = [i for i, word in enumerate(words) if digest_of(word) not in shipped]
    if missing:
        vectors[missing] = encoder.encode([words[i] for i in missing], progress)
    for i in set(range(len(words))) - set(missing):
        vectors[i] = shipped[digest_of(words[i])]
    return vectors


def _shipped_embeddings(encoder_hash: str, kind: str = "") -> dict[bytes, NDArray[Any]]:
    """Digest → embedding of texts, or of words (kind "word_").

    Empty for another encoder, and where the file is missing or damaged.
    """
    try:
        with safe_open(EMBEDDINGS, "numpy") as file:
            if (file.metadata() or {}).get("encoder_hash") != encoder_hash:
                return {}
            digests, vectors = file.get_tensor(f"{kind}digests"), file.get_tensor(f"{kind}vectors")
    except (OSError, SafetensorError):
        return {}
    return {digest.tobytes(): vector for digest, vector in zip(digests, vectors, strict=True)}


def digest_of(text: str) -> bytes:
    """The digest under which the embedding of a text or word is shipped."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:DIGEST_BYTES]
