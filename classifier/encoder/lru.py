"""What was worked out lately, kept in bounded memory under the texts' digests: no text is kept. Safe in threads."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """Up to `most` values by text; the one that was not asked for the longest goes first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: OrderedDict[bytes, T] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, text: str) -> T | None:
        """What is known of a text, if anything."""
        key = _digest(text)
        with self._lock:
            value = self._values.get(key)
            if value is not None:
                self._values.move_to_end(key)
            return value

    def put(self, text: str, value: T) -> None:
        """Keep a value for a text, in place of what was kept for it."""
        with self._lock:
            self._values[_digest(text)] = value
            if len(self._values) > self._most:
                self._values.popitem(last=False)

    def clear(self) -> None:
        with self._lock:
            self._values.clear()

    def __len__(self) -> int:
        return len(self._values)


def _digest(text: str) -> bytes:
    # Collisions can't be made on purpose: a text that collides with a harmless one would pass unread.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
