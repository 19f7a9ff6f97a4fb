"""Write the shipped embeddings of the background and of its words.

python -m lethe.classifier.training.ship_background     # writes classifier/background/embeddings.safetensors
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import numpy as tensors

from lethe.classifier.encoder.load import load_encoder
from lethe.classifier.text import vocabulary
from lethe.classifier.training.background import DIGEST_BYTES, EMBEDDINGS, background_prompts, digest_of
from lethe.classifier.training.rows import background_rows


def write_shipped_embeddings(path: Path = EMBEDDINGS) -> int:
    """Encode the background with the default encoder and write the file; returns the number of texts and words.

    Those of texts are float32 and those of words float16, so that a fit gives the same bits with and without the file.
    """
    encoder = load_encoder(threads=2)
    rows = (row for row in background_rows(encoder) if len(encoder.piece_starts(row.text)) <= encoder.limit)
    texts = list(dict.fromkeys(row.text for row in rows if row.encoded))
    words, _ = vocabulary.content_words((), background_prompts())
    arrays: dict[str, NDArray[Any]] = {"digests": _digests(texts), "vectors": encoder.encode(texts)}
    arrays |= {"word_digests": _digests(words), "word_vectors": encoder.encode(words).astype(np.float16)}
    tensors.save_file(arrays, path, metadata={"encoder_hash": encoder.hash, "encoder_name": encoder.name})
    path.chmod(0o644)
    return len(texts) + len(words)


def _digests(texts: Sequence[str]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(map(digest_of, texts)), dtype=np.uint8).reshape(-1, DIGEST_BYTES)


def main() -> None:
    count = write_shipped_embeddings()
    sys.stdout.write(f"wrote {count:,} embeddings to {EMBEDDINGS}\n")


if __name__ == "__main__":
    main()
