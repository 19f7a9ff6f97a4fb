"""A cache with a bound in bytes: what has lain unused the longest goes first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")

# What an entry takes besides its content: key, value object, place in the table.
_OVERHEAD = 400


class ByteCache(Generic[Value]):
    """Safe to share between threads. size: the bytes of a value's content."""

    def __init__(self, most_bytes: int, size: Callable[[Value], int]) -> None:
        self._most = most_bytes
        self._size = size
        self._entries: OrderedDict[Hashable, Value] = OrderedDict()
        self._lock = threading.Lock()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable) -> Value | None:
        with self._lock:
            value = self._entries.get(key)
            if value is not None:
                self._entries.move_to_end(key)
            return value

    def put(self, key: Hashable, value: Value) -> None:
        """Keep a value; one that is larger than the bound is not kept."""
        size = self._size(value) + _OVERHEAD
        with self._lock:
            if key in self._entries or size > self._most:
                return
            self._entries[key] = value
            self.bytes += size
            while self.bytes > self._most:
                _, oldest = self._entries.popitem(last=False)
                self.bytes -= self._size(oldest) + _OVERHEAD
