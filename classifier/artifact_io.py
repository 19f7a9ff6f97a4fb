"""An artifact as a folder: save, load, lock. Nothing in the folder is executable.

The folder holds arrays.safetensors, items.jsonl, words.txt and manifest.json. An artifact that was changed after its
fit also has shared.safetensors, which is one file on the disk for all artifacts of that fit
(`classifier/shared_arrays.py`). The manifest carries the SHA-256 of the other files. Knows neither fitting nor judging.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import hashlib
import json
import mmap
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors import numpy as tensors

from lethe.classifier import shared_arrays
from lethe.classifier.artifact import ARRAYS, FORMAT, Artifact, ForgetItem, Manifest, check_arrays
from lethe.classifier.shared_arrays import FILE_ARRAYS, SHARED_FILE, JoinedArrays, SharedPart

# Lock file in the folder that holds the artifacts. It stays there: deleting it would break the lock for waiters.
LOCK_FILE = ".lethe.lock"
# Linux's renameat2(2): relative paths start at the working directory; exchange the two names in one step.
AT_FDCWD, RENAME_EXCHANGE = -100, 2
# Bytes of arrays that are shared between equal artifacts in memory. Smaller ones (under 4 KiB) save nothing; larger
# ones (from 64 MiB) are mapped files, and comparing them by hash takes longer than a second artifact is worth.
SHARED_FROM, SHARED_TO = 1 << 12, 1 << 26
# Bytes (64 MiB) from which files and arrays are mapped, not read: most embeddings of very many items are never used.
MAPPED_FROM = 1 << 26

# Mode of an artifact's files: they hold what is to be forgotten, so other users than the owner and the group (vLLM's
# user may be in it) can't read them.
FILE_MODE = 0o640

_FILES = ("arrays.safetensors", "items.jsonl", "words.txt")
_shared_arrays: WeakValueDictionary[bytes, NDArray[Any]] = WeakValueDictionary()
# Shared parts in use, by the file's identity (device, inode, size, time of change) and its SHA-256: a thousand
# artifacts that link one file read and check it once.
_shared_parts: WeakValueDictionary[tuple[object, ...], SharedPart] = WeakValueDictionary()


def save_artifact(artifact: Artifact, folder: str | Path) -> None:
    """Write the artifact's folder, atomically. An artifact that is there already is replaced.

    After a crash at any moment, either the old or the new folder is there, complete. Raises ValueError when `folder`
    exists and is not an artifact.
    """
    target = Path(folder)
    if target.exists() and not (target / "manifest.json").is_file():
        raise ValueError(f"{target}: exists and is not an artifact")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        _write_files(artifact, partial, target.parent)
        partial.chmod(0o755)
        if target.exists():
            swap_folders(partial, target)
        else:
            os.rename(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def load_artifact(folder: str | Path) -> Artifact:
    """Load the artifact in `folder` and check it: format, hashes, array types and shapes, finite values.

    Raises ValueError naming folder, file and reason.
    """
    place = Path(folder)
    try:
        manifest, hashes = _read_manifest(place / "manifest.json")
        contents = {name: _read_checked(place / name, hashes.get(name)) for name in _FILES}
        arrays: Mapping[str, NDArray[Any]] = _parse_arrays(contents["arrays.safetensors"])
        rows = (json.loads(line) for line in bytes(contents["items.jsonl"]).decode("utf-8").splitlines())
        items = tuple(ForgetItem(**row) for row in rows)
        words = tuple(bytes(contents["words.txt"]).decode("utf-8").splitlines())
        if SHARED_FILE in hashes:
            shared = _load_shared_part(place / SHARED_FILE, hashes[SHARED_FILE])
            words = shared_arrays.join_words(arrays, words, shared)
            arrays = JoinedArrays(arrays, shared)
        elif arrays.keys() & FILE_ARRAYS.keys():
            raise KeyError(SHARED_FILE)
        artifact = Artifact(manifest, arrays, items, words)
        _ = artifact.subjects  # raises for malformed ones
    except OSError as error:
        raise ValueError(f"artifact {place}: {error.strerror}: {error.filename}") from error
    except (SafetensorError, TypeError, KeyError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"artifact {place}: malformed: {error}") from error
    try:
        check_arrays(artifact)
    except ValueError as error:
        raise ValueError(f"artifact {place}: arrays.safetensors: {error}") from error
    if not isinstance(arrays, JoinedArrays):
        # Artifacts of one fit are equal in most arrays, and there may be thousands of them.
        arrays = {name: _share_array(array) for name, array in arrays.items()}
    return dataclasses.replace(artifact, arrays=arrays, words=tuple(map(sys.intern, words)))


@contextlib.contextmanager
def edit_artifact(folder: str | Path) -> Iterator[Artifact]:
    """Load the artifact in `folder` under a lock. The caller saves its changes inside the block.

    A second editor of this artifact, or of one beside it, waits. Raises ValueError as `load_artifact` does.
    """
    place = Path(folder)
    if not place.is_dir():
        raise ValueError(f"artifact {place}: there is no such folder")
    with artifact_lock(place):
        yield load_artifact(place)


@contextlib.contextmanager
def artifact_lock(folder: str | Path) -> Iterator[None]:
    """Lock the artifact in `folder` and all artifacts beside it against changes by other threads and processes."""
    parent = Path(folder).parent
    parent.mkdir(parents=True, exist_ok=True)
    with FileLock(parent / LOCK_FILE):
        yield


def swap_folders(one: Path, other: Path) -> None:
    """Exchange the names of two folders, in one step where the file system can (Linux's renameat2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE):
        code = ctypes.get_errno()
        if code not in (errno.EINVAL, errno.ENOSYS):
            raise OSError(code, os.strerror(code), str(other))
        # The file system can't: for a moment `other` doesn't exist, and both folders are beside it, complete.
        aside = one.with_name(f"{one.name}.old")
        os.rename(other, aside)
        os.rename(one, other)
        os.rename(aside, one)


def _write_files(artifact: Artifact, folder: Path, artifacts: Path) -> None:
    """Write an artifact's files. artifacts: the folder in which the shared part is stored once."""
    arrays, words = dict(artifact.arrays), artifact.words
    names: tuple[str, ...] = _FILES
    if artifact.manifest.changes:
        arrays, words, shared = shared_arrays.split_artifact(artifact)
        tensors.save_file(shared, folder / SHARED_FILE)
        names = (*_FILES, SHARED_FILE)
    tensors.save_file(arrays, folder / "arrays.safetensors")
    lines = [json.dumps(dataclasses.asdict(item)) + "\n" for item in artifact.items]
    (folder / "items.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "words.txt").write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    hashes = {name: _sha256(folder / name) for name in names}
    manifest = {"format": FORMAT, **dataclasses.asdict(artifact.manifest), "files": hashes}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for path in folder.iterdir():
        path.chmod(FILE_MODE)
    if SHARED_FILE in names:
        shared_arrays.store_once(folder / SHARED_FILE, artifacts)
    # Flushed to the disk before the folder takes the place of the old one.
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _read_manifest(path: Path) -> tuple[Manifest, dict[str, str]]:
    """The manifest, and the SHA-256 of each other file."""
    place = f"artifact {path.parent}: {path.name}"
    fields = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(fields, dict):
        raise ValueError(f"{place}: not a JSON object")
    if (number := fields.pop("format", None)) != FORMAT:
        raise ValueError(f"{place}: format {number}, but this version reads format {FORMAT}: fit again (`lethe fit`)")
    hashes = fields.pop("files")
    manifest = Manifest(**fields)
    for field in dataclasses.fields(Manifest):
        value, expected = getattr(manifest, field.name), str(field.type).partition("[")[0]
        if type(value).__name__ != expected:
            raise ValueError(f"{place}: {field.name} is not of type {expected}")
    return manifest, hashes


def _load_shared_part(path: Path, digest: str) -> SharedPart:
    """The shared part in a file; one object as long as an artifact in memory uses it. Raises as `_read_checked`."""
    status = path.stat()
    key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, digest)
    part = _shared_parts.get(key)
    if part is None:
        arrays = _parse_arrays(_read_checked(path, digest))
        part = shared_arrays.read_shared_part({name: _share_array(array) for name, array in arrays.items()})
        _shared_parts[key] = part
    return part


def _read_checked(path: Path, digest: str | None) -> bytes | mmap.mmap:
    """A file's content, checked against its SHA-256; mapped if it is large."""
    with path.open("rb") as file:
        is_large = os.fstat(file.fileno()).st_size >= MAPPED_FROM
        # An artifact's files are never written again: a changed artifact is a new folder.
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if is_large else file.read()
    if hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(f"artifact {path.parent}: {path.name}: differs from the hash in its manifest")
    return content


def _parse_arrays(content: bytes | mmap.mmap) -> dict[str, NDArray[Any]]:
    """The arrays of a safetensors file. Large arrays of a mapped file stay in the file."""
    arrays: dict[str, NDArray[Any]] = {}
    if isinstance(content, bytes):
        arrays = tensors.load(content)
        return arrays
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    for name, about in header.items():
        dtype = np.dtype(FILE_ARRAYS[name] if name in FILE_ARRAYS else ARRAYS[name][0])
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


def _share_array(array: NDArray[Any]) -> NDArray[Any]:
    """A bit-identical array of another loaded artifact if there is one, else this one, made read-only."""
    if not SHARED_FROM <= array.nbytes < SHARED_TO:
        return array
    array.flags.writeable = False
    digest = hashlib.sha256(f"{array.dtype} {array.shape} ".encode())
    digest.update(array.data.cast("B"))
    return _shared_arrays.setdefault(digest.digest(), array)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
