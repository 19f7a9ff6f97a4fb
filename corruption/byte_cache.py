"""A least-recently-used cache whose limit is in bytes. Safe to share between threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Generic, TypeVar

from cachetools import LRUCache

V = TypeVar("V")

# Bytes of an entry besides its value's content: key, value object and slot in the table. A rough measurement with
# sys.getsizeof; it keeps many tiny entries from exceeding the limit.
ENTRY_OVERHEAD_BYTES = 400


class ByteCache(Generic[V]):
    """Values by key, up to `max_bytes` together; the least recently used one is dropped first."""

    def __init__(self, max_bytes: int, size: Callable[[V], int]) -> None:
        """size: the bytes of a value's content."""
        self._values: LRUCache[Hashable, V] = LRUCache(max_bytes, lambda value: size(value) + ENTRY_OVERHEAD_BYTES)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._values)

    @property
    def bytes(self) -> int:
        """The size of all entries, their overhead included."""
        return int(self._values.currsize)

    def get(self, key: Hashable) -> V | None:
        """The value of a key, or None."""
        with self._lock:
            return self._values.get(key)

    def put(self, key: Hashable, value: V) -> None:
        """Set the value of a key, unless it is larger than the whole cache."""
        with self._lock, suppress(ValueError):
            self._values[key] = value
