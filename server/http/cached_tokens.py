"""Withhold how many prompt tokens vLLM found in its prefix cache, in the bytes of a response.

A corrupted prompt reaches vLLM as embeddings and misses the cache, where its text would have hit it. So the number
tells which request was corrupted; a client can also ask about a text that it sent before, on another endpoint.

The filter keeps the length of the response, so `content-length` stays right, and parses nothing. It relies on two
facts: quotes inside a JSON string are escaped, so no text in an answer can look like a key; and JSON allows white space
after a value. An object that a model writes as JSON (`input` of a tool call, Messages endpoint) is no string: a key of
these names loses its number there, too.
"""

from __future__ import annotations

import re
from typing import Final

# Members of `usage` whose numbers become 0: chat and completions, then responses.
_ZEROED: Final = (b'"cached_tokens"', b'"created_cache_tokens"', b'"cached_tokens_per_turn"')
# Messages. There `input_tokens` leaves out what was cached, and stands before the members that name the cached tokens.
_INPUT_TOKENS: Final = b'"input_tokens"'
_CACHE_MEMBERS: Final = (b'"cache_read_input_tokens"', b'"cache_creation_input_tokens"')
_KEYS: Final = (*_ZEROED, _INPUT_TOKENS, *_CACHE_MEMBERS)
# A quote after a backslash belongs to the text of a string.
_KEY: Final = re.compile(rb"(?<!\\)(?:" + b"|".join(_KEYS) + rb")")
_LONGEST_KEY: Final = max(map(len, _KEYS))

_NUMBER: Final = re.compile(rb"[-+.0-9eE]+")
# What follows a key: a number, or a list of numbers.
_NUMBERS: Final = re.compile(rb"\s*:\s*[-\[0-9]")
_AFTER_NUMBERS: Final = re.compile(rb"[^\s:,\[\-+.0-9eE]")
# What follows `input_tokens` up to the end of its object: members with whole numbers, words or null.
_MEMBERS: Final = re.compile(rb'\s*:\s*(\d+)((?:\s*,\s*"\w+"\s*:\s*(?:\d+|null|"\w*"))*\s*)')
_AFTER_MEMBERS: Final = re.compile(rb'[^\s:,"\w]')
_CACHE_MEMBER: Final = re.compile(rb"\s*,\s*(?:" + b"|".join(_CACHE_MEMBERS) + rb")\s*:\s*(\d+)")
# Bytes after a key that are looked at and, at the end of a chunk, held back. Chosen: vLLM's longest list has one number
# for each turn of tool calls; this holds several hundred.
_MAX_VALUE_BYTES: Final = 4096


class CachedTokensFilter:
    """The filter of one response; it takes the body in chunks of any size, and gives the same bytes for any of them.

    Numbers under the keys of chat, completions and responses become 0. In Messages the members are removed, as vLLM
    leaves them out by default, and `input_tokens` becomes the number of all prompt tokens. null stays null.
    """

    def __init__(self) -> None:
        self._held = b""
        # Bytes at the beginning of `_held` that were sent already. They are kept for the look at what precedes a quote.
        self._sent = 0

    def feed(self, chunk: bytes) -> bytes:
        """The bytes that may be sent now. Held back: what may be the beginning of a member that is to be changed."""
        return self._process(self._held + chunk, is_end=False)

    def end(self) -> bytes:
        """The rest, once the response has ended."""
        return self._process(self._held, is_end=True)

    def _process(self, data: bytes, *, is_end: bool) -> bytes:
        pieces = []
        done = self._sent
        while (key := _KEY.search(data, done)) is not None:
            is_total = key[0] == _INPUT_TOKENS
            limit = key.end() + _MAX_VALUE_BYTES
            after = (_AFTER_MEMBERS if is_total else _AFTER_NUMBERS).search(data, key.end(), limit)
            if after is None and len(data) < limit and not is_end:
                break
            pieces.append(data[done : key.end()])
            done = key.end()
            if after is None and len(data) >= limit:
                continue
            stop = len(data) if after is None else after.start()
            if not is_total:
                changed = _with_zeros(data[done:stop])
            else:
                # An object that goes on with values of other kinds is none of vLLM's `usage`.
                changed = _with_all_input_tokens(data[done:stop]) if data[stop : stop + 1] == b"}" else None
            if changed is not None:
                pieces.append(changed)
                done = stop
        if is_end:
            begins = len(data)
        else:
            begins = _begin_of_key(data, done) if key is None else key.start()
        pieces.append(data[done:begins])
        self._sent = min(begins, 1)
        self._held = data[begins - self._sent :]
        return b"".join(pieces)


def _begin_of_key(data: bytes, done: int) -> int:
    """Where, from `done` on, a key begins that the end of `data` cuts; the length of `data` if nowhere."""
    quote = data.rfind(b'"', max(done, len(data) - _LONGEST_KEY))
    return quote if quote >= 0 and any(key.startswith(data[quote:]) for key in _KEYS) else len(data)


def _with_zeros(value: bytes) -> bytes | None:
    """What follows a key, with 0 and blanks for each number; None if no number follows."""
    if not _NUMBERS.match(value):
        return None
    return _NUMBER.sub(lambda number: b"0".ljust(len(number[0])), value)


def _with_all_input_tokens(value: bytes) -> bytes | None:
    """What follows the key `input_tokens` up to the end of its object, without members that name cached tokens.

    None if there is none, or if other values than numbers and null follow. Their numbers are added to `input_tokens`,
    and the members' room always suffices for its new digits.
    """
    members = _MEMBERS.fullmatch(value)
    if members is None or not (cached := _CACHE_MEMBER.findall(members[2])):
        return None
    total = int(members[1]) + sum(map(int, cached))
    kept = b":%d%s" % (total, _CACHE_MEMBER.sub(b"", members[2]))
    return kept.ljust(len(value))
