"""What a fit learned, as one immutable value and as a folder. Knows neither fitting nor use.

The folder holds arrays.safetensors, items.jsonl, words.txt and manifest.json; the manifest carries the
SHA-256 of the others. Nothing in it is executable.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors import numpy as tensors

from classifier.ngrams import BUCKETS

FORMAT = 1
COMPONENTS = ("word", "character", "head", "cosine")
_FILES = ("arrays.safetensors", "items.jsonl", "words.txt")

# Name: (dtype, shape); N components, D width, R index rows, W words; other letters are free.
_ARRAYS: dict[str, tuple[str, tuple[int | str, ...]]] = {
    "word_weights": ("float16", (BUCKETS,)),
    "character_weights": ("float16", (BUCKETS,)),
    "head": ("float32", ("D",)),
    "index": ("float16", ("R", "D")),
    "index_items": ("int32", ("R",)),
    "fusion": ("float64", (3, len(COMPONENTS))),
    "intercept": ("float64", (1,)),
    "calibration_forget": ("float64", ("P",)),
    "calibration_other": ("float64", ("Q",)),
    "word_vectors": ("float16", ("W", "D")),
    "word_counts": ("int32", ("W",)),
}


@dataclass(frozen=True)
class ForgetItem:
    """One forget row: `prompt` and `answer` of a fact, or a document's `text`; the other fields are ""."""

    prompt: str
    answer: str
    text: str


@dataclass(frozen=True)
class Manifest:
    """What the artifact was made of and how well it did on rows that it wasn't trained on."""

    encoder_name: str
    encoder_hash: str
    encoder_width: int
    data_hash: str
    seed: int
    counts: dict[str, int]
    calibration: str
    measured: dict[str, float]

    @property
    def summary(self) -> str:
        """Counts and held-out rates as lines of text."""
        rows = [*self.counts.items(), *((name, f"{value:.4f}") for name, value in self.measured.items())]
        width = max(len(name) for name, _ in rows)
        return "\n".join([*(f"{name.replace('_', ' '):<{width}}  {value}" for name, value in rows), self.calibration])


@dataclass(frozen=True)
class Artifact:
    """A fitted detector. `arrays` by name: see `_ARRAYS`; `words` go with word_vectors and word_counts."""

    manifest: Manifest
    arrays: Mapping[str, NDArray[Any]]
    items: tuple[ForgetItem, ...]
    words: tuple[str, ...]

    @property
    def word_vectors(self) -> NDArray[np.float16]:
        """(W, D) unit rows, one for each of `words`."""
        return self.arrays["word_vectors"]

    @property
    def word_counts(self) -> NDArray[np.int32]:
        """(W,) occurrences of each of `words` in retain and background texts; 0 = only in forget texts."""
        return self.arrays["word_counts"]


def save(artifact: Artifact, folder: str | Path) -> None:
    """Write the artifact's folder: all of it, or nothing. An artifact that stood there is replaced.

    Raises ValueError when something that isn't an artifact stands there.
    """
    target = Path(folder)
    if target.exists() and not (target / "manifest.json").is_file():
        raise ValueError(f"{target}: exists and is not an artifact")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        _write(artifact, partial)
        partial.chmod(0o755)
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
            target.replace(old / "old")
            os.replace(partial, target)
            shutil.rmtree(old)
        else:
            os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def load(folder: str | Path) -> Artifact:
    """The artifact saved in `folder`, checked: format, hashes, array types and shapes, finite values.

    Raises ValueError naming folder, file and reason.
    """
    place = Path(folder)
    try:
        manifest, hashes = _read_manifest(place / "manifest.json")
        contents = {name: _read_checked(place / name, hashes.get(name)) for name in _FILES}
        arrays = tensors.load(contents["arrays.safetensors"])
        rows = [json.loads(line) for line in contents["items.jsonl"].decode("utf-8").splitlines()]
        items = tuple(ForgetItem(**row) for row in rows)
    except OSError as error:
        raise ValueError(f"artifact {place}: {error.strerror}: {error.filename}") from error
    except (SafetensorError, TypeError, KeyError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"artifact {place}: malformed: {error}") from error
    words = tuple(contents["words.txt"].decode("utf-8").splitlines())
    artifact = Artifact(manifest, arrays, items, words)
    _check(artifact, place)
    return artifact


def _write(artifact: Artifact, folder: Path) -> None:
    tensors.save_file(dict(artifact.arrays), folder / "arrays.safetensors")
    lines = [json.dumps(dataclasses.asdict(item)) + "\n" for item in artifact.items]
    (folder / "items.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "words.txt").write_text("".join(f"{word}\n" for word in artifact.words), encoding="utf-8")
    hashes = {name: _sha256((folder / name).read_bytes()) for name in _FILES}
    manifest = {"format": FORMAT, **dataclasses.asdict(artifact.manifest), "files": hashes}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _read_manifest(path: Path) -> tuple[Manifest, dict[str, str]]:
    fields = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(fields, dict) or fields.pop("format", None) != FORMAT:
        raise ValueError(f"artifact {path.parent}: {path.name}: not of format {FORMAT}")
    hashes = fields.pop("files")
    manifest = Manifest(**fields)
    for field in dataclasses.fields(Manifest):
        value, wanted = getattr(manifest, field.name), str(field.type).partition("[")[0]
        if type(value).__name__ != wanted:
            raise ValueError(f"artifact {path.parent}: {path.name}: {field.name} is not of type {wanted}")
    return manifest, hashes


def _read_checked(path: Path, digest: str | None) -> bytes:
    content = path.read_bytes()
    if _sha256(content) != digest:
        raise ValueError(f"artifact {path.parent}: {path.name}: differs from the hash in its manifest")
    return content


def _check(artifact: Artifact, place: Path) -> None:
    def fault(reason: str) -> ValueError:
        return ValueError(f"artifact {place}: arrays.safetensors: {reason}")

    sizes: dict[str, int] = {"D": artifact.manifest.encoder_width, "W": len(artifact.words)}
    if set(artifact.arrays) != set(_ARRAYS):
        raise fault(f"arrays {sorted(set(artifact.arrays) ^ set(_ARRAYS))} are missing or unknown")
    for name, (dtype, shape) in _ARRAYS.items():
        array = artifact.arrays[name]
        expected = tuple(
            sizes.setdefault(n, length) if isinstance(n, str) else n
            for n, length in zip(shape, array.shape, strict=False)
        )
        if array.dtype != dtype or array.shape != expected or len(shape) != array.ndim:
            raise fault(f"{name} is {array.dtype} {array.shape}, not {dtype} {shape}")
        if not np.isfinite(array).all():
            raise fault(f"{name} holds values that aren't finite")
    rows = artifact.arrays["index_items"]
    if not len(rows) or rows.min() < 0 or rows.max() >= len(artifact.items):
        raise fault("index_items points outside the items")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
