"""The user's own words, which an answer may repeat although they belong to a forbidden phrase. Pure.

Without this exception a question could not be answered in its own terms, and a filter would show which guess of the
user is right. But a list of candidates must not be an excuse: who lists every possible answer has said the right one
too. So only a few words count, of short messages, of the same conversation, and no enumeration.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from lethe.corruption.phrases.normalize import fold
from lethe.corruption.phrases.stopwords import STOP_WORDS
from lethe.server.requests.fields import Endpoint
from lethe.server.requests.request_text import RequestText

# User messages of at most this many characters count as the user's question; longer ones may hold retrieved documents.
# Chosen: longer than a question of a few sentences.
QUESTION_CHARS = 300
# Different content words of a conversation's user messages, at most. 99 of 100 ordinary prompts of up to QUESTION_CHARS
# have no more (2,473 prompts: the demo's questions, `benchmarks/data/benign.jsonl`,
# `classifier/background/prompts.jsonl`).
MAX_CONTENT_WORDS = 25
# Content words in a row, without a stop word or punctuation between them; a longer run is a list. 99 of 100 of these
# prompts have no longer run.
MAX_RUN = 7
# Different short items between separators of one kind; more of them are a list. Chosen: a question names one or two
# things, and a full date has three numbers.
MAX_ITEMS = 5
# Content words of a short item. Chosen: a full name.
MAX_ITEM_WORDS = 3
# Different content words of all items between separators of one kind, whatever their number. Chosen: as many as in a
# row, since who may not write eight names in a row may not write four and four either.
MAX_LIST_WORDS = MAX_RUN

# A word with the marks inside it, which separate nothing: hyphens, apostrophes, the slashes of a date.
_WORD = re.compile(r"[^\W_]+(?:(?:[-'’‑.]+|(?<=\d)/(?=\d))[^\W_]+)*")
_NUMBER = re.compile(r"\w*\d\w*")
_TOKEN = re.compile(r"[^\W_]+|[^\w\s]|_|\n")
_LIST_SEPARATORS = frozenset({",", ";", "/", "|", "\n", "&", "or", "and", "vs"})
_LIST = "list"


def user_question(endpoint: Endpoint, texts: Sequence[RequestText]) -> str:
    """Return the words of the user that an answer may repeat, as text.

    texts: all texts of the request. Of several conversations or completion prompts, which share one set of forbidden
    phrases, only words that every one of them holds count.
    """
    conversations: dict[int, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for text in texts:
        if text.message and text.part_location is not None:
            index = text.part_location[0]
            messages = conversations[index if endpoint == "completions" else text.conversation]
            messages[index] += [text.text] if text.role == "user" else []
    questions = [
        _question(["\n".join(parts) if parts else None for parts in messages.values()])
        for messages in conversations.values()
    ]
    if len(set(questions)) <= 1:
        return questions[0] if questions else ""
    common = set.intersection(*(set(fold(question).split()) for question in questions))
    return "\n".join(sorted(common))


def _question(messages: Sequence[str | None]) -> str:
    """The newest short messages that hold few words together, without lists.

    messages: of one conversation, in order; None for one of another role. A list over several turns doesn't count, but
    what the newest turn says by itself does.
    """
    chosen: list[str] = []
    newest = 0
    words: set[str] = set()
    for message in reversed(messages):
        if message is None:
            newest = newest or len(chosen)
            continue
        if len(message) > QUESTION_CHARS:
            continue
        words |= _content_words(message)
        if len(words) > MAX_CONTENT_WORDS:
            break
        chosen.append(message)
    counted = without_lists("\n".join(reversed(chosen)))
    if 0 < newest < len(chosen):
        counted = f"{counted}\n{without_lists(chr(10).join(reversed(chosen[:newest])))}"
    return counted


def _content_words(text: str) -> set[str]:
    return {word for word in fold(text).split() if word not in STOP_WORDS}


def without_lists(text: str) -> str:
    """Return the text with a line break in place of each item of an enumeration.

    An enumeration is a long run of content words, many short items or many words with separators of one kind between
    them, or many numbers.
    """
    runs = list(_runs(text))
    listed = [run for run in runs if run.num_words > MAX_RUN]
    groups: dict[str, list[_Run]] = defaultdict(list)
    for before, after in pairwise([_Run(0, 0, 0), *runs, _Run(len(text), len(text), 0)]):
        kind = _separator_kind(text[before.end : after.begin])
        groups[kind] += [run for run in (before, after) if run.num_words]
    numbers = [_Run(match.start(), match.end(), 1) for match in _NUMBER.finditer(text)]
    for group in (*groups.values(), numbers):
        items = {fold(text[run.begin : run.end]) for run in group if run.num_words <= MAX_ITEM_WORDS}
        words = {word for run in group for word in _content_words(text[run.begin : run.end])}
        if len(items) > MAX_ITEMS or len(words) > MAX_LIST_WORDS:
            listed += group
    for begin, end in sorted({(run.begin, run.end) for run in listed}, reverse=True):
        text = f"{text[:begin]}\n{text[end:]}"
    return text


class _Run(NamedTuple):
    """Content words in a row: their characters in the text, and how many words they are."""

    begin: int
    end: int
    num_words: int


def _runs(text: str) -> Iterator[_Run]:
    """Yield the runs of content words; hyphens and similar marks join words."""
    run: _Run | None = None
    for match in _WORD.finditer(text):
        num_words = sum(word not in STOP_WORDS for word in fold(match[0]).split())
        joined = run is not None and not text[run.end : match.start()].strip(" ")
        if run is not None and (not num_words or not joined):
            yield run
            run = None
        if num_words:
            run = _Run(run.begin if run else match.start(), match.end(), num_words + (run.num_words if run else 0))
    if run is not None:
        yield run


def _separator_kind(text: str) -> str:
    """What stands between two items: the separator of a list, or these very words."""
    folded = [token.casefold() for token in _TOKEN.findall(text)]
    return _LIST if not _LIST_SEPARATORS.isdisjoint(folded) else " ".join(folded)
