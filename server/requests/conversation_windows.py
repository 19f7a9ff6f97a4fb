"""Overlapping windows over the texts of a conversation, so that a question split over messages or parts is judged too.

Pure. Which texts a request has is `server/requests/extract.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import groupby, pairwise
from typing import Final, NamedTuple

from lethe.corruption.prompt.message_parts import BILLING_HEADER
from lethe.server.requests.request_text import RequestText

# Characters at either end of a long text that are joined to its neighbours: about one window of the encoder.
MAX_END_CHARS: Final = 1000
# Characters read on either side of a place where a word may be split: about a question.
SPLIT_CONTEXT_CHARS: Final = 240
# Characters of a window over the conversation, a choice: one or two windows of the encoder.
WINDOW_CHARS: Final = 1500
# Characters that neighbouring windows share, a choice: a question of this length is whole in one of them.
OVERLAP_CHARS: Final = 750
# The two characters at a boundary where a word may be split: a letter, then one that may continue a word.
_SPLIT_WORD = re.compile(r"\w[^\W_]")


class PlacedText(NamedTuple):
    """A text in a window: its index in the request's texts, and where in the window it is."""

    source: int
    start: int
    end: int


class ConversationWindow(NamedTuple):
    """A window over the joined conversation, and the texts that it holds something of.

    Several windows with the same text are one, so that more than one text can be in one place.
    """

    text: str
    placed: tuple[PlacedText, ...]

    @property
    def sources(self) -> frozenset[int]:
        """Indexes of the texts in the request's texts."""
        return frozenset(place.source for place in self.placed)

    def sources_at(self, start: int, end: int) -> frozenset[int]:
        """The texts that the characters from `start` to `end` belong to."""
        return frozenset(place.source for place in self.placed if place.start < end and start < place.end)


class _Part(NamedTuple):
    """A text, or both ends of it, and its index in the request's texts."""

    source: int
    text: str


def conversation_windows(texts: list[RequestText]) -> tuple[ConversationWindow, ...]:
    """The conversation in overlapping windows, each once; none for a conversation of one text.

    The windows cover, for each conversation of a batch separately:
    - the texts of all roles, in order, separated by line breaks;
    - the contents alone, and those of the user and of the system alone (so that tool calls in between don't break up
      a question);
    - around boundaries where a word may be split over texts: the same texts joined without a separator.

    Of a long text only both ends are included, because each text is also judged by itself. One more turn leaves all
    windows but the last unchanged, and the judge caches unchanged ones.
    """
    by_conversation = groupby(enumerate(texts), key=lambda entry: entry[1].conversation)
    windows = (window for _, group in by_conversation for window in _windows_of_conversation(list(group)))
    return tuple(_each_once(window for window in windows if window.text.strip()))


def _each_once(windows: Iterable[ConversationWindow]) -> list[ConversationWindow]:
    """Windows of the same text as one, with the texts of all."""
    placed: dict[str, dict[PlacedText, None]] = {}
    for window in windows:
        placed.setdefault(window.text, {}).update(dict.fromkeys(window.placed))
    return [ConversationWindow(text, tuple(places)) for text, places in placed.items()]


def messages_without_separators(texts: Iterable[RequestText]) -> list[str]:
    """Each message of several parts, its parts joined without a separator.

    vLLM joins parts by line breaks or passes them to the chat template, and templates may print them one right after
    another, without the surrounding white space. A word split over parts is whole only here.
    """
    return [window.text for window in _joined_messages(list(enumerate(texts)))]


def _joined_messages(texts: list[tuple[int, RequestText]]) -> list[ConversationWindow]:
    """Each message of several parts joined: all its parts, and again without the parts that vLLM may drop."""
    parts: dict[tuple[int, str | None], list[_Part]] = {}
    for index, text in texts:
        if text.part_location is not None and text.part_location[1] is not None:
            for group in (None, text.detached_group):
                part = _Part(index, _without_billing_header(text).strip())
                parts.setdefault((text.part_location[0], group), []).append(part)
    return _each_once(_join(message, "") for message in parts.values() if len(message) > 1)


def _join(parts: list[_Part], separator: str) -> ConversationWindow:
    placed, position = [], 0
    for part in parts:
        placed.append(PlacedText(part.source, position, position + len(part.text)))
        position += len(part.text) + len(separator)
    return ConversationWindow(separator.join(part.text for part in parts), tuple(placed))


def _windows(parts: list[_Part], separator: str) -> Iterator[ConversationWindow]:
    """Windows of neighbouring parts: about WINDOW_CHARS each, about OVERLAP_CHARS of them in the next window too."""
    start = 0
    while start < len(parts):
        end, size = start, 0
        # A long first part doesn't fill the window alone: what follows it is judged together with its end.
        while end < len(parts) and (size < WINDOW_CHARS or size - len(parts[start].text) < OVERLAP_CHARS):
            size += len(parts[end].text)
            end += 1
        yield _join(parts[start:end], separator)
        if end == len(parts):
            return
        first, size = end - 1, len(parts[end - 1].text)
        while first - 1 > start and size < OVERLAP_CHARS:
            first -= 1
            size += len(parts[first].text)
        start = first


def _windows_of_conversation(texts: list[tuple[int, RequestText]]) -> Iterator[ConversationWindow]:
    """Windows over the sequences of texts that a template may show one after another. texts: with their indexes."""
    pieces = [(index, text) for index, text in texts if text.message and text.text.strip()]
    if len(pieces) < 2:
        return
    contents = [entry for entry in pieces if entry[1].part_location is not None and not entry[1].detached_group]
    all_roles = [_Part(index, _without_billing_header(text)) for index, text in contents]
    roles = [text.role for _, text in contents]
    user = [part for part, role in zip(all_roles, roles, strict=True) if role == "user"]
    # Templates and vLLM move these to the front.
    system = [part for part, role in zip(all_roles, roles, strict=True) if role in ("system", "developer")]
    yield from _windows([_Part(index, _both_ends(text.text, MAX_END_CHARS)) for index, text in pieces], "\n")
    yield from _joined_messages(texts)
    if contents and len(contents) < pieces.index(contents[-1]) - pieces.index(contents[0]) + 1:
        # Something else is between the contents that the template may not show.
        yield from _windows(_ends_of(all_roles), "\n")
    for parts in (user, system):
        if 1 < len(parts) < len(pieces):
            yield from _windows(_ends_of(parts), "\n")
    for parts in (all_roles, user, system):
        stripped = [_Part(part.source, part.text.strip()) for part in parts if part.text.strip()]
        for run in _around_split_words(stripped):
            yield from _windows(run, "")


def _ends_of(parts: list[_Part]) -> list[_Part]:
    return [_Part(part.source, _both_ends(part.text, MAX_END_CHARS)) for part in parts]


def _around_split_words(texts: list[_Part]) -> Iterator[list[_Part]]:
    """Runs of texts between which a word may be split, to be joined without a separator, with their context."""
    split = [bool(_SPLIT_WORD.search(f"{a.text[-1:]}{b.text[:1]}")) for a, b in pairwise(texts)]
    parts = [_both_ends(part.text, SPLIT_CONTEXT_CHARS) for part in texts]
    after = _after_split(parts, split)
    before = _after_split(parts[::-1], split[::-1])[::-1]
    is_near = [a or b for a, b in zip(after, before, strict=True)]
    separated = [part if is_joined else f"\n{part}" for part, is_joined in zip(parts, [True, *split], strict=False)]
    for near, group in groupby(range(len(parts)), key=is_near.__getitem__):
        if near:
            yield [_Part(texts[i].source, separated[i]) for i in group]


def _after_split(parts: list[str], split: list[bool]) -> list[bool]:
    """For each part, whether it begins within SPLIT_CONTEXT_CHARS after a boundary where a word may be split.

    split: for each boundary between neighbouring parts, whether a word may be split there.
    """
    result, remaining_chars = [], 0
    for part, follows_split in zip(parts, [False, *split], strict=False):
        remaining_chars = SPLIT_CONTEXT_CHARS if follows_split else remaining_chars
        result.append(remaining_chars > 0)
        remaining_chars -= len(part)
    return result


def _without_billing_header(text: RequestText) -> str:
    """The text without a header that vLLM removes."""
    has_header = text.role == "system" and text.text.startswith(BILLING_HEADER)
    return text.text.partition("\n")[2] if has_header else text.text


def _both_ends(text: str, size: int) -> str:
    """The text, or both ends of a long one."""
    return text if len(text) <= 2 * size else f"{text[:size]}\n...\n{text[-size:]}"
