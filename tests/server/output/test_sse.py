"""The event parser: any cutting, every line end, against a slow reading of the whole."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lethe.server.output import sse
from lethe.server.output.sse import BrokenEvent, Event, Parser


def read(*chunks: bytes) -> list[Event]:
    parser = Parser()
    return [event for chunk in chunks for event in parser.feed(chunk)]


def slowly(raw: bytes) -> list[Event]:
    events, data, name = [], [], ""
    for line in re.split("\r\n|\n|\r", raw.decode().removeprefix("\ufeff"))[:-1]:
        field, _, value = line.partition(":")
        if not line:
            if data:
                events.append(Event("\n".join(data), name))
            data, name = [], ""
        elif field == "data":
            data.append(value.removeprefix(" "))
        elif field == "event":
            name = value.removeprefix(" ")
    return events


LINES = st.sampled_from(["data: {é}", "data:x", "data", "data:  y", ": note", "event: a.b", "event", "id: 1", "", ""])
STREAMS = st.lists(st.tuples(LINES, st.sampled_from(["\n", "\r\n", "\r"])), max_size=12).map(
    lambda lines: "".join(line + end for line, end in lines)
)


@settings(deadline=None)
@given(STREAMS, st.booleans(), st.lists(st.integers(0, 200), max_size=12))
def test_chunk_borders_change_nothing(text: str, marked: bool, places: list[int]) -> None:
    raw = ("\ufeff" * marked + text).encode()
    cuts = sorted({0, len(raw), *(place % (len(raw) + 1) for place in places)})
    chunks = [raw[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
    assert read(*chunks) == slowly(raw)
    assert read(*(raw[i : i + 1] for i in range(len(raw)))) == slowly(raw)


def test_an_event_is_parsed_as_it_was_encoded() -> None:
    for event in (Event("a\nb\n", "x.y"), Event(""), Event('{"é": 1}')):
        assert read(event.encode()) == [event]


def test_an_event_without_an_end_is_dropped() -> None:
    assert read(b"data: a\n\ndata: b\n") == [Event("a")]
    assert read(b"data: a\r\r") == [Event("a")]
    assert read(b"data: a\r\n\r") == [Event("a")]


def test_an_event_comes_at_its_last_byte() -> None:
    parser = Parser()
    assert list(parser.feed(b"data: a\n")) == []
    assert list(parser.feed(b"\n")) == [Event("a")]


def test_a_long_line_is_read_in_linear_time() -> None:
    """Whoever answers may send an event of any length in pieces of any size."""
    begun = time.process_time()
    data = b"x" * 2_000_000
    stream = b"data: " + data + b"\n\n"
    for size in (1_000, 65_536, len(stream)):
        assert read(*(stream[i : i + size] for i in range(0, len(stream), size))) == [Event(data.decode())]
    assert time.process_time() - begun < 2


def test_invalid_utf_8_is_an_error() -> None:
    with pytest.raises(BrokenEvent):
        read(b"data: \xff\n\n")


@pytest.mark.parametrize("line", [b"data: aaaaaaaaaaaa", b": aaaaaaaaaaaaaa", b"data: aaaaa\ndata: aaaaa\n"])
def test_an_event_over_the_limit_is_an_error(line: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 10)
    with pytest.raises(BrokenEvent):
        read(line)
