"""Server-sent events, as the HTML standard has them: bytes in any pieces to events, and back.

Own code, since what is around for Python reads lines through a client of its own; this takes bytes that come
cut anywhere, also within a character or between the two halves of a line's end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

# No event of an answer is as long; without a bound an upstream could fill the memory with one line.
MAX_EVENT_BYTES = 16 * 2**20

_LINE = re.compile(rb"([^\r\n]*)(\r\n|\n|\r)")
_BOM = b"\xef\xbb\xbf"


class BrokenEvent(ValueError):
    """The stream is not one of server-sent events in UTF-8, or an event is longer than MAX_EVENT_BYTES."""


@dataclass(frozen=True)
class Event:
    """One event: its data, lines joined by line breaks, and its name ("" where none was given)."""

    data: str
    name: str = ""

    def encode(self) -> bytes:
        name = f"event: {self.name}\n" if self.name else ""
        return (name + "".join(f"data: {line}\n" for line in self.data.split("\n")) + "\n").encode()


class Parser:
    """Reads one stream. Comments, ids and retry times are passed over; an event that never ends is dropped."""

    def __init__(self) -> None:
        self._rest = b""
        self._begun = False
        self._data: list[bytes] = []
        self._name = b""
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """The events that are complete now. Raises BrokenEvent."""
        rest = self._rest + chunk
        self._rest = b""
        if not self._begun:
            if len(rest) < len(_BOM) and _BOM.startswith(rest):
                self._rest = rest
                return
            self._begun = True
            rest = rest.removeprefix(_BOM)
        at = 0
        for match in _LINE.finditer(rest):
            if match[2] == b"\r" and match.end() == len(rest):
                break  # its line feed may be the next piece's first byte
            at = match.end()
            event = self._line(match[1])
            if event is not None:
                yield event
        self._rest = rest[at:]
        self._check(len(self._rest))

    def end(self) -> Iterator[Event]:
        """The event whose last line's end was waited for. Call when no more bytes come."""
        if self._rest == b"\r":
            self._rest = b""
            event = self._line(b"")
            if event is not None:
                yield event
        elif self._rest.endswith(b"\r"):
            yield from self.feed(b"\n")

    def _check(self, more: int) -> None:
        if self._size + more > MAX_EVENT_BYTES:
            raise BrokenEvent("an event is too long")

    def _line(self, line: bytes) -> Event | None:
        if not line:
            data, name = self._data, self._name
            self._data, self._name, self._size = [], b"", 0
            if not data:
                return None
            try:
                return Event(b"\n".join(data).decode(), name.decode())
            except UnicodeDecodeError:
                raise BrokenEvent("an event is not UTF-8") from None
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._size += len(value) + 1
            self._check(0)
            self._data.append(value)
        elif field == b"event":
            self._name = value
        return None
