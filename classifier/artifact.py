"""What a fit learned, as one immutable value and as a folder. Knows neither fitting nor use.

The folder holds arrays.safetensors, items.jsonl, words.txt and manifest.json; the manifest carries the
SHA-256 of the others. Nothing in it is executable.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import fcntl
import hashlib
import json
import mmap
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors import numpy as tensors

from lethe.classifier.text.ngrams import BUCKETS, words

FORMAT = 4
DIGEST_BYTES = 16
COMPONENTS = ("word", "character", "head", "match")
AT_FDCWD, RENAME_EXCHANGE = -100, 2
_FILES = ("arrays.safetensors", "items.jsonl", "words.txt")
# Bytes of arrays that are held once: smaller ones aren't worth it, and very large ones belong to one artifact.
SHARED_FROM, SHARED_TO = 1 << 12, 1 << 26
_held: WeakValueDictionary[bytes, NDArray[Any]] = WeakValueDictionary()

# Name: (dtype, shape); N components, D width, R index rows, A added index rows, W words; "X+1" is one more than
# X; other letters are free. The rows of `targets_*` and `added_*` are classifier/index/similarity.py's.
_ARRAYS: dict[str, tuple[str, tuple[int | str, ...]]] = {
    "word_weights": ("float16", (BUCKETS,)),
    "character_weights": ("float16", (BUCKETS,)),
    "head": ("float32", ("D",)),
    "index": ("float16", ("R", "D")),
    "index_items": ("int32", ("R",)),
    "fusion": ("float64", (3, len(COMPONENTS))),
    "intercept": ("float64", (1,)),
    "calibration_forget": ("float64", ("P",)),
    "calibration_forget_groups": ("int8", ("P",)),
    "calibration_forget_items": ("int32", ("P",)),
    "calibration_other": ("float64", ("Q",)),
    "calibration_other_groups": ("int8", ("Q",)),
    "targets_ordinary": ("float64", ("R",)),
    "targets_starts": ("int64", ("R+1",)),
    "targets_buckets": ("int32", ("n",)),
    "targets_shares": ("float32", ("n",)),
    "counter": ("float16", ("Q'", "D")),
    "documents": ("uint16", (BUCKETS,)),
    "gate": ("float64", (1,)),
    "retained": ("uint8", ("X", DIGEST_BYTES)),
    "levels": ("float64", (2, "K")),
    "added_index": ("int16", ("A", "D")),
    "added_items": ("int32", ("A",)),
    "added_ordinary": ("float64", ("A",)),
    "added_starts": ("int64", ("A+1",)),
    "added_buckets": ("int32", ("m",)),
    "added_shares": ("float32", ("m",)),
    "removed_items": ("int32", ("T",)),
    "word_vectors": ("float16", ("W", "D")),
    "word_counts": ("int32", ("W",)),
    "cell_centres": ("float16", ("C", "D")),
    "cell_starts": ("int64", ("C+1",)),
}
# Where there are very many index rows, they lie in cells (classifier/index/ivf.py); otherwise these arrays aren't there.
_CELLS = {"cell_starts", "cell_centres"}
# Files and arrays of so many bytes are mapped, not read.
MAPPED_FROM = 1 << 26
# So many values are looked at together: bounds memory.
VALUES_AT_ONCE = 1 << 22


@dataclass(frozen=True, slots=True)
class ForgetItem:
    """One forget row: `prompt` and `answer` of a fact, or a document's `text`; the other fields are "".

    All three are "" where an item was taken out: the numbers of the others stay.
    """

    prompt: str
    answer: str
    text: str

    @property
    def removed(self) -> bool:
        return not (self.prompt or self.text)


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
    # Items that came or went after the fit, in order: {"change": "add" | "remove" | "restore", "items": numbers}.
    changes: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    # What was tuned against the served model, one entry a run. Nothing here reads it.
    tuned: list[dict[str, Any]] = dataclasses.field(default_factory=list)

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
    def live(self) -> tuple[int, ...]:
        """The numbers of the items that are to be forgotten now."""
        return tuple(i for i, item in enumerate(self.items) if not item.removed)

    @cached_property
    def prompt_words(self) -> frozenset[str]:
        """The case-folded words that the items are asked for with."""
        return frozenset(word for item in self.items for word in words(item.prompt or item.text))

    @cached_property
    def familiar(self) -> NDArray[np.bool_]:
        """(BUCKETS,) which hashed words stand in the requests that the fit knows, others' and the items'."""
        return self.arrays["documents"] > 0

    @cached_property
    def first_stage(self) -> bytes:
        """Equal for artifacts of which `classifier/prefilter.py` reads the same."""
        kinds = ("word_weights", "character_weights", "fusion", "gate", "retained")
        names = (*kinds, "targets_starts", "targets_buckets", "targets_shares")
        digests = (hashlib.sha256(self.arrays[name].tobytes()).digest() for name in names)
        return hashlib.sha256(b"".join(digests)).digest()

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

    At every moment, a crash included, either the old or the new one stands there whole. Raises ValueError when
    something that isn't an artifact stands there.
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
            _exchange(partial, target)
        else:
            os.rename(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def editing(folder: str | Path) -> Iterator[Artifact]:
    """The artifact in `folder`, for a change that nobody else makes at the same time.

    A second editor of any artifact beside it waits. What is changed has to be saved inside the block.
    """
    place = Path(folder)
    if not place.is_dir():
        raise ValueError(f"artifact {place}: there is no such folder")
    with locked(place):
        yield load(place)


@contextlib.contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Nobody else changes the artifact in `folder`, or one beside it, meanwhile: they wait."""
    parent = Path(folder).parent
    parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(parent, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def load(folder: str | Path) -> Artifact:
    """The artifact saved in `folder`, checked: format, hashes, array types and shapes, finite values.

    Raises ValueError naming folder, file and reason.
    """
    place = Path(folder)
    try:
        manifest, hashes = _read_manifest(place / "manifest.json")
        contents = {name: _read_checked(place / name, hashes.get(name)) for name in _FILES}
        arrays = _arrays(contents["arrays.safetensors"])
        rows = (json.loads(line) for line in bytes(contents["items.jsonl"]).decode("utf-8").splitlines())
        items = tuple(ForgetItem(**row) for row in rows)
        words = tuple(bytes(contents["words.txt"]).decode("utf-8").splitlines())
    except OSError as error:
        raise ValueError(f"artifact {place}: {error.strerror}: {error.filename}") from error
    except (SafetensorError, TypeError, KeyError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"artifact {place}: malformed: {error}") from error
    artifact = Artifact(manifest, arrays, items, words)
    _check(artifact, place)
    # Artifacts that were made by adding to one fit hold most of it unchanged, and there may be thousands of them.
    shared = {name: _held_once(array) for name, array in arrays.items()}
    return dataclasses.replace(artifact, arrays=shared, words=tuple(map(sys.intern, words)))


def _held_once(array: NDArray[Any]) -> NDArray[Any]:
    """An array equal to the last bit that is in use already, or else this one. Nobody can write into it."""
    if not SHARED_FROM <= array.nbytes < SHARED_TO:
        return array
    array.flags.writeable = False
    digest = hashlib.sha256(f"{array.dtype} {array.shape} ".encode())
    digest.update(array.data.cast("B"))
    return _held.setdefault(digest.digest(), array)


def _exchange(one: Path, other: Path) -> None:
    """Let two folders change places in one step (Linux)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE):
        code = ctypes.get_errno()
        if code not in (errno.EINVAL, errno.ENOSYS):
            raise OSError(code, os.strerror(code), str(other))
        # A file system that can't: for a moment nothing stands there, and both are beside it, whole.
        aside = one.with_name(f"{one.name}.old")
        os.rename(other, aside)
        os.rename(one, other)
        os.rename(aside, one)


def _write(artifact: Artifact, folder: Path) -> None:
    tensors.save_file(dict(artifact.arrays), folder / "arrays.safetensors")
    lines = [json.dumps(dataclasses.asdict(item)) + "\n" for item in artifact.items]
    (folder / "items.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "words.txt").write_text("".join(f"{word}\n" for word in artifact.words), encoding="utf-8")
    hashes = {name: _sha256(folder / name) for name in _FILES}
    manifest = {"format": FORMAT, **dataclasses.asdict(artifact.manifest), "files": hashes}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    # On the disk before it stands in place of what was there.
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


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


def _read_checked(path: Path, digest: str | None) -> bytes | mmap.mmap:
    """A file's content; mapped if it is large."""
    with path.open("rb") as file:
        large = os.fstat(file.fileno()).st_size >= MAPPED_FROM
        # An artifact's files are never written again: a new one is a new folder.
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if large else file.read()
    if hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(f"artifact {path.parent}: {path.name}: differs from the hash in its manifest")
    return content


def _arrays(content: bytes | mmap.mmap) -> dict[str, NDArray[Any]]:
    """The arrays in a file of safetensors. Of a mapped one, the large arrays stay in the file: few of the embeddings of
    very many items are ever asked for."""
    arrays: dict[str, NDArray[Any]] = {}
    if isinstance(content, bytes):
        arrays = tensors.load(content)
        return arrays
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    for name, about in header.items():
        dtype = np.dtype(_ARRAYS[name][0])
        start, end = about["data_offsets"]
        if about["dtype"] != f"{dtype.kind.upper()}{8 * dtype.itemsize}" or (end - start) % dtype.itemsize:
            raise TypeError(f"{name} is {about['dtype']}, not {dtype}")
        try:
            count = (end - start) // dtype.itemsize
            array = np.frombuffer(content, dtype, count, 8 + size + start).reshape(about["shape"])
        except ValueError as error:
            raise TypeError(f"{name}: {error}") from error
        arrays[name] = array if array.nbytes >= MAPPED_FROM else array.copy()
    return arrays


def _check(artifact: Artifact, place: Path) -> None:
    def fault(reason: str) -> ValueError:
        return ValueError(f"artifact {place}: arrays.safetensors: {reason}")

    sizes: dict[str, int] = {"D": artifact.manifest.encoder_width, "W": len(artifact.words)}
    wanted = set(_ARRAYS) if _CELLS & set(artifact.arrays) else set(_ARRAYS) - _CELLS
    if set(artifact.arrays) != wanted:
        raise fault(f"arrays {sorted(set(artifact.arrays) ^ wanted)} are missing or unknown")
    for name, (dtype, shape) in _ARRAYS.items():
        if name not in wanted:
            continue
        array = artifact.arrays[name]
        expected = tuple(
            n if isinstance(n, int) else sizes[n[0]] + 1 if n.endswith("+1") else sizes.setdefault(n, length)
            for n, length in zip(shape, array.shape, strict=False)
        )
        if array.dtype != dtype or array.shape != expected or len(shape) != array.ndim:
            raise fault(f"{name} is {array.dtype} {array.shape}, not {dtype} {shape}")
        # A gate of minus infinity lets everything through.
        if not (_finite(array) or (name == "gate" and (array == -np.inf).all())):
            raise fault(f"{name} holds values that aren't finite")
    if not sizes["R"]:
        raise fault("index_items is empty")
    for name in ("index_items", "added_items", "removed_items"):
        _within(artifact.arrays[name], len(artifact.items), fault(f"{name} points outside the items"))
    for kind in ("targets", "added"):
        buckets = artifact.arrays[f"{kind}_buckets"]
        _within(buckets, BUCKETS, fault(f"{kind}_buckets points outside the buckets"))
        _rising(artifact.arrays[f"{kind}_starts"], len(buckets), fault(f"{kind}_starts are no starts of its buckets"))
    if "cell_starts" in wanted:
        _rising(artifact.arrays["cell_starts"], sizes["R"], fault("cell_starts are no starts of the index rows"))
    if sizes["K"] < 2 or (np.diff(artifact.arrays["levels"], axis=1) <= 0).any():
        raise fault("levels does not rise")


def _within(numbers: NDArray[Any], count: int, fault: ValueError) -> None:
    if len(numbers) and (numbers.min() < 0 or numbers.max() >= count):
        raise fault


def _rising(starts: NDArray[Any], count: int, fault: ValueError) -> None:
    if starts[0] or starts[-1] != count or (np.diff(starts) < 0).any():
        raise fault


def _finite(array: NDArray[Any]) -> bool:
    if array.dtype.kind != "f":
        return True
    flat = array.reshape(-1)
    parts = (flat[start : start + VALUES_AT_ONCE] for start in range(0, len(flat), VALUES_AT_ONCE))
    return all(np.isfinite(part).all() for part in parts)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
