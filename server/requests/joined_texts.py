"""Joins neighbouring messages and parts of a conversation, so that a question split over turns is seen.

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
# Characters of a joined text. Chosen: one or two windows of the encoder.
JOINED_CHARS: Final = 1500
# Characters that neighbouring joined texts share. Chosen: a question of this length is whole in one of them.
OVERLAP_CHARS: Final = 750
# The two characters at a boundary where a word may be split: a letter, then one that may continue a word.
_SPLIT_WORD = re.compile(r"\w[^\W_]")


class PlacedText(NamedTuple):
    """A text in a joined text: its index in the request's texts, and where in the joined text it is."""

    source: int
    start: int
    end: int


class JoinedText(NamedTuple):
    """Neighbouring texts of a conversation as one text, and the texts that it holds something of.

    Equal joined texts are one object, so that more than one text can be in one place.
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


class _Excerpt(NamedTuple):
    """A text, or both ends of it, and its index in the request's texts."""

    source: int
    text: str


def joined_texts(texts: list[RequestText]) -> tuple[JoinedText, ...]:
    """The overlapping joined texts of the conversations, each once; none for a conversation of one text.

    They cover, for each conversation of a batch separately:
    - the texts of all roles, in order, separated by line breaks;
    - the contents alone, and those of the user and of the system alone (so that tool calls in between don't break up
      a question);
    - around boundaries where a word may be split over texts: the same texts joined without a separator.

    Of a long text only both ends are included, because each text is also judged by itself. One more turn leaves all
    joined texts but the last unchanged, and the judge caches unchanged ones.
    """
    by_conversation = groupby(enumerate(texts), key=lambda entry: entry[1].conversation)
    all_joined = (joined for _, group in by_conversation for joined in _texts_joined_in(list(group)))
    return tuple(_each_once(joined for joined in all_joined if joined.text.strip()))


def _each_once(all_joined: Iterable[JoinedText]) -> list[JoinedText]:
    """Equal joined texts as one, with the sources of all."""
    placed: dict[str, dict[PlacedText, None]] = {}
    for joined in all_joined:
        placed.setdefault(joined.text, {}).update(dict.fromkeys(joined.placed))
    return [JoinedText(text, tuple(places)) for text, places in placed.items()]


def messages_without_separators(texts: Iterable[RequestText]) -> list[str]:
    """Each message of several parts, its parts joined without a separator.

    vLLM joins parts by line breaks or passes them to the chat template, and templates may print them one right after
    another, without the surrounding white space. A word split over parts is whole only here.
    """
    return [joined.text for joined in _joined_messages(list(enumerate(texts)))]


def _joined_messages(texts: list[tuple[int, RequestText]]) -> list[JoinedText]:
    """Each message of several parts joined: all its parts, and again without the parts that vLLM may drop."""
    excerpts: dict[tuple[int, str | None], list[_Excerpt]] = {}
    for index, text in texts:
        if text.part_location is not None and text.part_location[1] is not None:
            for group in (None, text.detached_group):
                excerpt = _Excerpt(index, _without_billing_header(text).strip())
                excerpts.setdefault((text.part_location[0], group), []).append(excerpt)
    return _each_once(_join(message, "") for message in excerpts.values() if len(message) > 1)


def _join(excerpts: list[_Excerpt], separator: str) -> JoinedText:
    placed, position = [], 0
    for excerpt in excerpts:
        placed.append(PlacedText(excerpt.source, position, position + len(excerpt.text)))
        position += len(excerpt.text) + len(separator)
    return JoinedText(separator.join(excerpt.text for excerpt in excerpts), tuple(placed))


def _join_neighbours(excerpts: list[_Excerpt], separator: str) -> Iterator[JoinedText]:
    """Neighbours joined: about JOINED_CHARS each, about OVERLAP_CHARS of them in the next joined text too."""
    start = 0
    while start < len(excerpts):
        end, size = start, 0
        # A long first excerpt doesn't fill a joined text alone: what follows it is judged together with its end.
        while end < len(excerpts) and (size < JOINED_CHARS or size - len(excerpts[start].text) < OVERLAP_CHARS):
            size += len(excerpts[end].text)
            end += 1
        yield _join(excerpts[start:end], separator)
        if end == len(excerpts):
            return
        first, size = end - 1, len(excerpts[end - 1].text)
        while first - 1 > start and size < OVERLAP_CHARS:
            first -= 1
            size += len(excerpts[first].text)
        start = first


def _texts_joined_in(texts: list[tuple[int, RequestText]]) -> Iterator[JoinedText]:
    """Joined texts of what a template may show one after another. texts: with their indexes."""
    pieces = [(index, text) for index, text in texts if text.message and text.text.strip()]
    if len(pieces) < 2:
        return
    contents = [entry for entry in pieces if entry[1].part_location is not None and not entry[1].detached_group]
    all_roles = [_Excerpt(index, _without_billing_header(text)) for index, text in contents]
    roles = [text.role for _, text in contents]
    user = [excerpt for excerpt, role in zip(all_roles, roles, strict=True) if role == "user"]
    # Templates and vLLM move these to the front.
    system = [excerpt for excerpt, role in zip(all_roles, roles, strict=True) if role in ("system", "developer")]
    yield from _join_neighbours([_Excerpt(index, _both_ends(text.text, MAX_END_CHARS)) for index, text in pieces], "\n")
    yield from _joined_messages(texts)
    if contents and len(contents) < pieces.index(contents[-1]) - pieces.index(contents[0]) + 1:
        # Something else is between the contents that the template may not show.
        yield from _join_neighbours(_ends_of(all_roles), "\n")
    for excerpts in (user, system):
        if 1 < len(excerpts) < len(pieces):
            yield from _join_neighbours(_ends_of(excerpts), "\n")
    for excerpts in (all_roles, user, system):
        stripped = [_Excerpt(excerpt.source, excerpt.text.strip()) for excerpt in excerpts if excerpt.text.strip()]
        for run in _around_split_words(stripped):
            yield from _join_neighbours(run, "")


def _ends_of(excerpts: list[_Excerpt]) -> list[_Excerpt]:
    return [_Excerpt(excerpt.source, _both_ends(excerpt.text, MAX_END_CHARS)) for excerpt in excerpts]


def _around_split_words(texts: list[_Excerpt]) -> Iterator[list[_Excerpt]]:
    """Runs of texts between which a word may be split, to be joined without a separator, with their context."""
    split = [bool(_SPLIT_WORD.search(f"{a.text[-1:]}{b.text[:1]}")) for a, b in pairwise(texts)]
    excerpts = [_both_ends(excerpt.text, SPLIT_CONTEXT_CHARS) for excerpt in texts]
    after = _after_split(excerpts, split)
    before = _after_split(excerpts[::-1], split[::-1])[::-1]
    is_near = [a or b for a, b in zip(after, before, strict=True)]
    separated = [
        excerpt if is_joined else f"\n{excerpt}" for excerpt, is_joined in zip(excerpts, [True, *split], strict=False)
    ]
    for near, group in groupby(range(len(excerpts)), key=is_near.__getitem__):
        if near:
            yield [_Excerpt(texts[i].source, separated[i]) for i in group]


def _after_split(excerpts: list[str], split: list[bool]) -> list[bool]:
    """For each excerpt, whether it begins within SPLIT_CONTEXT_CHARS after a boundary where a word may be split.

    split: for each boundary between neighbouring excerpts, whether a word may be split there.
    """
    result, remaining_chars = [], 0
    for excerpt, follows_split in zip(excerpts, [False, *split], strict=False):
        remaining_chars = SPLIT_CONTEXT_CHARS if follows_split else remaining_chars
        result.append(remaining_chars > 0)
        remaining_chars -= len(excerpt)
    return result


def _without_billing_header(text: RequestText) -> str:
    """The text without a header that vLLM removes."""
    has_header = text.role == "system" and text.text.startswith(BILLING_HEADER)
    return text.text.partition("\n")[2] if has_header else text.text


def _both_ends(text: str, size: int) -> str:
    """The text, or both ends of a long one."""
    return text if len(text) <= 2 * size else f"{text[:size]}\n...\n{text[-size:]}"
