"""Overlapping windows over the texts of a conversation, so that a question split over messages or parts is judged too.

Pure. Which texts a request has is `server/requests/extract.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import groupby, pairwise
from typing import Final

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


def conversation_windows(texts: list[RequestText]) -> tuple[str, ...]:
    """The conversation in overlapping windows, each once; none for a conversation of one text.

    The windows cover, for each conversation of a batch separately:
    - the texts of all roles, in order, separated by line breaks;
    - the contents alone, and those of the user and of the system alone (tool calls between them separate nothing);
    - around boundaries where a word may be split over texts: the same texts joined without a separator.

    Of a long text only both ends are included, because each text is also judged by itself. One more turn leaves all
    windows but the last unchanged, and the judge caches unchanged ones.
    """
    by_conversation = groupby(texts, key=lambda text: text.conversation)
    readings = [reading for _, group in by_conversation for reading in _readings(list(group))]
    windows = (window for parts, separator in readings for window in _windows(parts, separator))
    return tuple(window for window in dict.fromkeys(windows) if window.strip())


def messages_without_separators(texts: Iterable[RequestText]) -> list[str]:
    """Each message of several parts, its parts joined without a separator.

    vLLM joins parts by line breaks or passes them to the chat template, and templates may print them one right after
    another, without the surrounding white space. A word split over parts is whole only here.
    """
    parts: dict[tuple[int, str | None], list[str]] = {}
    for text in texts:
        if text.target is not None and text.target[1] is not None:
            # As in the body, and without parts that vLLM may remove from between them.
            for group in (None, text.detached_group):
                parts.setdefault((text.target[0], group), []).append(_without_billing_header(text).strip())
    return list(dict.fromkeys("".join(strings) for strings in parts.values() if len(strings) > 1))


def _windows(parts: list[str], separator: str) -> Iterator[str]:
    """Windows of neighbouring parts: about WINDOW_CHARS each, about OVERLAP_CHARS of them in the next window too."""
    start = 0
    while start < len(parts):
        end, size = start, 0
        # A long first part doesn't fill the window alone: what follows it is judged together with its end.
        while end < len(parts) and (size < WINDOW_CHARS or size - len(parts[start]) < OVERLAP_CHARS):
            size += len(parts[end])
            end += 1
        yield separator.join(parts[start:end])
        if end == len(parts):
            return
        first, size = end - 1, len(parts[end - 1])
        while first - 1 > start and size < OVERLAP_CHARS:
            first -= 1
            size += len(parts[first])
        start = first


def _readings(texts: list[RequestText]) -> list[tuple[list[str], str]]:
    """Sequences of texts that a template may show one after another, each with the separator between them."""
    pieces = [text for text in texts if text.message and text.text.strip()]
    if len(pieces) < 2:
        return []
    contents = [text for text in pieces if text.target is not None and not text.detached_group]
    all_roles = [_without_billing_header(text) for text in contents]
    user = [_without_billing_header(text) for text in contents if text.role == "user"]
    # Templates and vLLM move these to the front.
    system = [_without_billing_header(text) for text in contents if text.role in ("system", "developer")]
    readings = [([_both_ends(text.text, MAX_END_CHARS) for text in pieces], "\n")]
    readings += [([message], "") for message in messages_without_separators(texts)]
    if contents and len(contents) < pieces.index(contents[-1]) - pieces.index(contents[0]) + 1:
        # Something else is between the contents that the template may not show.
        readings.append(([_both_ends(text, MAX_END_CHARS) for text in all_roles], "\n"))
    for role_texts in (user, system):
        if 1 < len(role_texts) < len(pieces):
            readings.append(([_both_ends(text, MAX_END_CHARS) for text in role_texts], "\n"))
    for role_texts in (all_roles, user, system):
        stripped = [text.strip() for text in role_texts if text.strip()]
        readings += ((parts, "") for parts in _around_split_words(stripped))
    return readings


def _around_split_words(texts: list[str]) -> Iterator[list[str]]:
    """Runs of texts between which a word may be split, to be joined without a separator, with their context."""
    split = [bool(_SPLIT_WORD.search(f"{a[-1:]}{b[:1]}")) for a, b in pairwise(texts)]
    parts = [_both_ends(text, SPLIT_CONTEXT_CHARS) for text in texts]
    after = _after_split(parts, split)
    before = _after_split(parts[::-1], split[::-1])[::-1]
    is_near = [a or b for a, b in zip(after, before, strict=True)]
    separated = [part if is_joined else f"\n{part}" for part, is_joined in zip(parts, [True, *split], strict=False)]
    for near, group in groupby(range(len(parts)), key=is_near.__getitem__):
        if near:
            yield [separated[i] for i in group]


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
