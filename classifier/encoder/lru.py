"""A least-recently-used cache with texts as keys, which keeps no text. Safe to use from several threads.

Keys are SHA-256 digests of the texts, for two reasons: no prompt stays in memory, and nobody can construct a prompt
that finds the cached value of a harmless one.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from cachetools import LRUCache

T = TypeVar("T")

# No value may fill more than one part in this many of the cache. Chosen, not measured.
MAX_VALUE_SHARE = 8


class TextLRU(Generic[T]):
    """Up to `max_entries` values by text; entries_of: for how many entries a value counts."""

    def __init__(self, max_entries: int, entries_of: Callable[[T], int] = lambda value: 1) -> None:
        self._values: LRUCache[bytes, T] = LRUCache(max_entries, entries_of)
        self._max_entries_of_value = max(max_entries // MAX_VALUE_SHARE, 1)
        self._entries_of = entries_of
        self._lock = threading.Lock()

    def get(self, text: str) -> T | None:
        """The value of a text, or None."""
        key = _text_digest(text)
        with self._lock:
            return self._values.get(key)

    def put(self, text: str, value: T) -> None:
        """Set the value of a text; not one that counts for so many entries that it would push out the others."""
        if self._entries_of(value) > self._max_entries_of_value:
            return
        key = _text_digest(text)
        with self._lock:
            self._values[key] = value

    def clear(self) -> None:
        with self._lock:
            self._values.clear()

    def __len__(self) -> int:
        return len(self._values)


def _text_digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
