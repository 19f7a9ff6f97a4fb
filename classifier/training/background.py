"""The shipped background: prompts that are never to be forgotten, and their embeddings by the default encoder.

    python -m lethe.classifier.training.background     # write classifier/background/embeddings.safetensors again

Every fit learns from the same background, so its embeddings are shipped for the default encoder, and kept in a cache
for any other one. Knows no forget set.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors import numpy as tensors

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
        vector = shipped.get(_digest_of(text))
        if vector is None:
            missing.append(i)
        else:
            vectors[i] = vector
    if missing:
        vectors[missing] = cached_embeddings([texts[i] for i in missing], encoder, progress)
    return vectors


def _shipped_embeddings(encoder_hash: str) -> dict[bytes, NDArray[np.float32]]:
    """Text digest → embedding; empty for another encoder, and where the file is missing or damaged."""
    try:
        with safe_open(EMBEDDINGS, "numpy") as file:
            if (file.metadata() or {}).get("encoder_hash") != encoder_hash:
                return {}
            digests, vectors = file.get_tensor("digests"), file.get_tensor("vectors")
    except (OSError, SafetensorError):
        return {}
    return {digest.tobytes(): vector for digest, vector in zip(digests, vectors, strict=True)}


def _digest_of(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:DIGEST_BYTES]


def write_shipped_embeddings(path: Path = EMBEDDINGS) -> int:
    """Encode the background with the default encoder and write the file; returns the number of texts.

    The embeddings are float32, so that a fit gives the same bits with and without the file.
    """
    from lethe.classifier.encoder.load import load_encoder
    from lethe.classifier.text.windows import text_chunks

    encoder = load_encoder(threads=2)
    texts = list(dict.fromkeys(chunk for prompt in background_prompts() for chunk in text_chunks(prompt, encoder)))
    digests = np.frombuffer(b"".join(map(_digest_of, texts)), dtype=np.uint8).reshape(-1, DIGEST_BYTES)
    arrays = {"digests": digests, "vectors": encoder.encode(texts)}
    tensors.save_file(arrays, path, metadata={"encoder_hash": encoder.hash, "encoder_name": encoder.name})
    path.chmod(0o644)
    return len(texts)


def main() -> None:
    import sys

    count = write_shipped_embeddings()
    sys.stdout.write(f"wrote {count:,} embeddings to {EMBEDDINGS}\n")


if __name__ == "__main__":
    main()
