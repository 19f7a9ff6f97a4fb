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
# What ends an event, in each of the line ends that the HTML standard allows.
EVENT_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")
# Comments that are kept until the caller reads them. Chosen: a chunk of bytes has one, as a rule.
MAX_COMMENTS = 16

_END = re.compile(rb"\r\n|\n|\r")
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


# What a comment that is passed on may be: what servers send to keep a connection open.
_KEEP_ALIVE = re.compile(r"[\x20-\x7e]{0,100}")


def encode_comment(text: str) -> bytes:
    """A comment as bytes: its text, or an empty one where that is longer or stranger than a keep-alive's."""
    return f": {text}\n\n".encode() if text and _KEEP_ALIVE.fullmatch(text) else b":\n\n"


class Parser:
    """Reads one stream. Ids and retry times are passed over; an event that never ends is dropped.

    comments: the texts of the comments since the caller last cleared it; at most MAX_COMMENTS.
    """

    def __init__(self) -> None:
        self.comments: list[str] = []
        self._rest = bytearray()  # of a line that has not ended: only what is new is searched for its end
        self._begun = False
        self._returned = False
        self._data: list[bytes] = []
        self._name = b""
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """The events that are complete now. Raises BrokenEvent."""
        if not self._begun:
            chunk = bytes(self._rest) + chunk
            self._rest.clear()
            if len(chunk) < len(_BOM) and _BOM.startswith(chunk):
                self._rest += chunk
                return
            self._begun = True
            chunk = chunk.removeprefix(_BOM)
        if not chunk:
            return
        at = 1 if self._returned and chunk.startswith(b"\n") else 0
        self._returned = chunk.endswith(b"\r")  # the next piece's line feed belongs to it
        for match in _END.finditer(chunk, at):
            self._rest += chunk[at : match.start()]
            line = bytes(self._rest)
            self._rest.clear()
            at = match.end()
            event = self._line(line)
            if event is not None:
                yield event
        self._rest += chunk[at:]
        self._check(len(self._rest))

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
        elif not field and len(self.comments) < MAX_COMMENTS:
            self.comments.append(value.decode("utf-8", "replace"))
        return None
