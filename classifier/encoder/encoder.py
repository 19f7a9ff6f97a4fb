"""Sentence embeddings for serving: ONNX Runtime and tokenizers, no torch. Knows no policy and no window.

`load.py` finds the folder of an encoder by name, and `export.py` prepares that folder once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lethe.classifier.encoder.lru import TextLRU
from lethe.classifier.work_limit import check_work

# Letters of several scripts: a tokenizer that gives this and its lower-case form the same ids ignores capitals.
PANGRAM = "The Quick BROWN Fox Jumps Over THE LAZY DOG, Çédille ÜBER ΑΒΓ ЖЗИ"
# Bytes (16 MiB) for cached embeddings: about 9,000 texts of width 384.
CACHED_EMBEDDING_BYTES = 16 << 20
# Bytes that a cache entry takes besides its embedding: digest, dict entry, array header. An estimate.
CACHE_ENTRY_BYTES = 256
# Texts that are encoded before their embeddings are cached and the limit on the request's work is looked at. Chosen:
# about 50 ms.
TEXTS_AT_ONCE = 4
# White-space separated units (words) whose numbers of word pieces are cached: most text repeats a few thousand words.
CACHED_UNIT_COUNTS = 1 << 15
_SURROGATE = re.compile("[\ud800-\udfff]")

FloatArray = NDArray[np.float32]


class Encoder:
    """Texts to unit vectors. `name` as the user gave it, `hash` of the weights, `width` D, `limit` word pieces."""

    def __init__(self, folder: Path, *, threads: int = 1) -> None:
        """Load a prepared folder (encoder.onnx, tokenizer.json, encoder.json).

        threads: how many texts are encoded in parallel.
        """
        import onnxruntime
        from tokenizers import Tokenizer

        settings = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
        self.name: str = settings["name"]
        self.hash: str = settings["hash"]
        self.width: int = settings["width"]
        self._prefix: str = settings["prefix"]
        self._inputs: list[str] = settings["inputs"]
        self._tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        # Most tokenizers that ignore capitals do so by a rule of their own, which encoder.json doesn't mention.
        self._lower: bool = settings["lower"] or self._ids(PANGRAM) == self._ids(PANGRAM.lower())
        self._model_limit: int = settings["limit"]
        self._unit_counts: dict[str, int] = {}
        special_tokens = self._tokenizer.num_special_tokens_to_add(False)
        self.limit: int = self._model_limit - special_tokens - len(self._ids(self._prefix))
        entry_bytes = 4 * self.width + CACHE_ENTRY_BYTES
        self._cache: TextLRU[FloatArray] = TextLRU(max(CACHED_EMBEDDING_BYTES // entry_bytes, 1))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self._map: Any = ThreadPoolExecutor(threads, thread_name_prefix="lethe-encode").map if threads > 1 else map
        self._session: Any = onnxruntime.InferenceSession(
            str(folder / "encoder.onnx"), options, providers=["CPUExecutionProvider"]
        )

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def piece_starts(self, text: str) -> NDArray[np.int64]:
        """Where each word piece of `text` begins, in characters of `fold_case(text)`; without special tokens."""
        encoding = self._tokenizer.encode(self._clean(text), add_special_tokens=False)
        return np.array([start for start, _ in encoding.offsets], dtype=np.int64)

    def piece_counts(self, units: Sequence[str]) -> list[int]:
        """The number of word pieces of each unit (a string without white space) when a blank precedes it."""
        cached = self._unit_counts
        counts = {unit: cached.get(unit, -1) for unit in units}
        new = [unit for unit, count in counts.items() if count < 0]
        if new:
            # Folded as the encoder reads them: that may change the number of characters.
            starts = np.cumsum([0, *(len(self.fold_case(unit)) + 1 for unit in new)])
            owner = np.searchsorted(starts, self.piece_starts(f" {' '.join(new)}"), side="right") - 1
            new_counts = dict(zip(new, np.bincount(owner, minlength=len(new)).tolist(), strict=False))
            counts |= new_counts
            if len(cached) + len(new_counts) > CACHED_UNIT_COUNTS:
                self._unit_counts = cached = {}
            if len(new_counts) <= CACHED_UNIT_COUNTS:
                cached.update(new_counts)
        return [counts[unit] for unit in units]

    def encode(self, texts: Sequence[str], progress: Callable[[int, int], None] | None = None) -> FloatArray:
        """float32 (N, D) unit rows in the order of `texts`; equal texts are encoded once.

        `progress` is called with (texts done, all texts). Raises ValueError for a text of more word pieces than the
        encoder reads: no text is truncated.
        """
        out = np.zeros((len(texts), self.width), dtype=np.float32)
        encodings = self._tokenizer.encode_batch([self._prefix + self._clean(text) for text in texts])
        rows: dict[tuple[int, ...], list[int]] = {}
        for i, encoding in enumerate(encodings):
            rows.setdefault(tuple(encoding.ids), []).append(i)
        done = 0
        by_length = sorted(rows, key=len)
        if by_length and len(by_length[-1]) > self._model_limit:
            raise ValueError(
                f"text of {len(by_length[-1])} word pieces: encoder {self.name!r} reads {self._model_limit}"
            )
        for ids, vector in zip(by_length, self._map(self._run, by_length), strict=True):
            out[rows[ids]] = vector
            done += len(rows[ids])
            if progress:
                progress(done, len(texts))
        return out

    def encode_cached(self, texts: Sequence[str]) -> FloatArray:
        """As `encode`, through a least-recently-used cache of embeddings.

        Raises WorkExceeded or WorkCancelled (`classifier/work_limit.py`); what was encoded by then stays cached.
        """
        out = np.zeros((len(texts), self.width), dtype=np.float32)
        cached = [self._cache.get(text) for text in texts]
        new = [i for i, vector in enumerate(cached) if vector is None]
        for i, vector in enumerate(cached):
            if vector is not None:
                out[i] = vector
        for start in range(0, len(new), TEXTS_AT_ONCE):
            check_work()
            part = new[start : start + TEXTS_AT_ONCE]
            out[part] = self.encode([texts[i] for i in part])
            for i in part:
                self._cache.put(texts[i], out[i].copy())
        return out

    def clear_cache(self) -> None:
        """Drop all cached embeddings and word-piece counts."""
        self._cache.clear()
        self._unit_counts = {}

    def fold_case(self, text: str) -> str:
        """The text as the encoder distinguishes it: in lower case, if the encoder ignores capitals."""
        return text.lower() if self._lower else text

    def _clean(self, text: str) -> str:
        # The tokenizer accepts no lone surrogates; each is replaced by one character, so that offsets stay.
        text = _SURROGATE.sub("\ufffd", text)
        return text.lower() if self._lower else text

    def _run(self, ids: tuple[int, ...]) -> FloatArray:
        # One text a call: with rounded weights, activations are scaled over the whole batch, so a text's embedding
        # would depend on its neighbours. On a CPU a batch of eight takes almost as long as eight calls.
        row = np.array([ids], dtype=np.int64)
        arrays = {"input_ids": row, "attention_mask": np.ones_like(row), "token_type_ids": np.zeros_like(row)}
        vector: FloatArray = self._session.run(None, {name: arrays[name] for name in self._inputs})[0][0]
        return vector
