"""How long a copy of protected text an answer has just made, in tokens, and which tokens would make it longer.

A *run* is a part of an answer whose letters occur in the protected text in the same order, with no other letter
between them (`corruption/decoding/suffix_index.py`). Its length is the number of tokens that it touches. A token
counts in full even when the run covers only part of it. Case, spaces and quotes make no difference. Tokens without
letters (spaces, punctuation) within and before a run count too, up to three in a row, once the run has N letters.
Shorter runs occur in code and tables by chance.

A run of N tokens is allowed, one of N + 1 is not. A token adds at most one to a run, and only if its first letter is
the next letter of the text. So nothing has to be checked before a run has N tokens. From then on the forbidden tokens
are those that begin with a letter that follows the run in the text, and those without letters. That is a look-up by
first letter over the whole vocabulary, which costs less than checking its most likely tokens one by one.

Only the answer counts, not the prompt before it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from lethe.corruption.byte_cache import ByteCache
from lethe.corruption.decoding.suffix_index import SuffixIndex
from lethe.corruption.decoding.token_text import TokenIds, TokenVocabulary, decode_bytes
from lethe.corruption.phrases.normalize import SEPARATOR, fold

# Letters of the newest tokens, the newest last; "" for a token without letters.
RecentLetters = tuple[str, ...]

# Tokens that may be copied in a row by default. Chosen: titles, names and idioms are shorter.
DEFAULT_COPY_LIMIT = 12
# Largest limit that a policy may set, in tokens. Chosen: a paragraph. It bounds the state of each answer.
MAX_COPY_LIMIT = 256
# Tokens without letters in a row that count as part of a run. Chosen: more of them are a gap, such as in a table.
MAX_BLANK_TOKENS = 3
# Bytes of cached sets of banned tokens where the caller shares no cache. One set may hold half a vocabulary.
MAX_BAN_CACHE_BYTES = 16 * 2**20


class CopyLimiter:
    """Protected texts with their limits in tokens, prepared for one vocabulary."""

    def __init__(
        self,
        protected: Sequence[tuple[SuffixIndex, int]],
        vocabulary: TokenVocabulary,
        *,
        never_ban: Collection[int] = (),
        cache: ByteCache[TokenIds] | None = None,
    ) -> None:
        """protected: (index, limit in tokens), at least one. never_ban: the ids that end the answer.

        cache: sets of banned tokens, shared by the limiters of one vocabulary.
        """
        self._protected = tuple(protected)
        self._vocabulary = vocabulary
        self._max_recent = max(limit for _, limit in protected) * (1 + MAX_BLANK_TOKENS)
        self._never_ban = np.array(sorted(never_ban), dtype=np.int64)
        self._never_ban_key = frozenset(never_ban)
        self._cache = ByteCache[TokenIds](MAX_BAN_CACHE_BYTES, lambda ids: ids.nbytes) if cache is None else cache

    def advance(self, recent: RecentLetters, folded: str, *, inside_character: bool) -> RecentLetters:
        """Return the recent letters after one more token that adds text.

        folded: the token's folded text, as far as its characters are complete. inside_character: the token
        continues a character that an earlier one began.
        """
        spelled = folded.replace(SEPARATOR, "")
        if not spelled and (inside_character or _ends_with_max_blanks(recent)):
            return recent
        return (*recent[1 - self._max_recent :], spelled)

    def forbidden_letters(self, recent: RecentLetters) -> frozenset[str]:
        """The letters that the next token may not begin with, because they would make a run too long."""
        letters: frozenset[str] = frozenset()
        for index, limit in self._protected:
            if len(recent) >= limit:
                newest = recent[-limit:]
                letters |= _letters_after_run(index, newest, limit)
                if not all(newest):
                    letters |= _letters_after_run(index, [spelled for spelled in recent if spelled][-limit:], limit)
        return letters

    def banned(self, letters: frozenset[str], pending: bytes = b"") -> TokenIds:
        """The ids of the tokens that begin with one of `letters`, and of those without letters; sorted.

        pending: the bytes of an incomplete character before them, which some tokens complete.
        """
        at_boundary = self._banned_at_boundary(letters)
        if not pending:
            return at_boundary
        continuing = self._vocabulary.continuation_tokens
        completing = [token for token in continuing if self._first_letter(pending, token) in letters]
        others = np.setdiff1d(at_boundary, continuing)
        return np.setdiff1d(np.union1d(others, np.array(completing, dtype=np.int64)), self._never_ban)

    def _first_letter(self, pending: bytes, token: int) -> str:
        return fold(decode_bytes(pending, self._vocabulary.pieces[token])[0]).lstrip(SEPARATOR)[:1]

    def _banned_at_boundary(self, letters: frozenset[str]) -> TokenIds:
        key = (letters, self._never_ban_key)
        banned = self._cache.get(key)
        if banned is None:
            initials = self._vocabulary.initials
            ids = [initials[letter] for letter in sorted({*letters, ""}) if letter in initials]
            merged = np.sort(np.concatenate(ids)) if ids else np.empty(0, dtype=np.int64)
            banned = np.setdiff1d(merged, self._never_ban, assume_unique=True)
            self._cache.put(key, banned)
        return banned


def _ends_with_max_blanks(recent: RecentLetters) -> bool:
    return len(recent) >= MAX_BLANK_TOKENS and not any(recent[-MAX_BLANK_TOKENS:])


def _letters_after_run(index: SuffixIndex, newest: Sequence[str], limit: int) -> frozenset[str]:
    """The letters that follow in the text if `newest` is a run of `limit` tokens; of the first, any part counts."""
    if len(newest) < limit:
        return frozenset()
    run = newest[0][-1:] + "".join(newest[1:])
    return (index.followers(run) or frozenset()) if len(run) >= limit else frozenset()
