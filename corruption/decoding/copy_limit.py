"""How long a copy of protected text an answer has just made, in tokens, and which tokens would make it longer.

A *run* is a stretch of an answer whose letters stand in the protected text in the same order with no letter
between them (`corruption/decoding/suffix_index.py`). Its length is the number of tokens it touches, those included that it
touches in part: a token that only begins as the text goes on counts in full. So the same words are the same
run with other spaces, quotes or capitals. Tokens without letters (spaces, punctuation) within and before a run
count as well, up to three in a row, once it has N letters; fewer are what code and tables have by chance.

A run of N tokens may be there, one of N + 1 may not. A token adds at most one to a run, and only if its
first letter goes on as the text does; so nothing has to be asked before a run has N tokens, and then the
tokens to forbid are those that begin with a letter that follows it in the text, and those without letters. That
is a look-up by first letter: all of the vocabulary at less cost than a check of its top candidates one by one.

Only what the answer itself says counts, not the prompt before it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from lethe.corruption.bounded import ByteCache
from lethe.corruption.decoding.suffix_index import SuffixIndex
from lethe.corruption.decoding.token_text import TokenIds, TokenVocabulary, decode_bytes
from lethe.corruption.phrases.normalize import SEPARATOR, fold

# Letters of the newest tokens, the newest last; "" for a token without letters.
RecentLetters = tuple[str, ...]

DEFAULT_COPY_LIMIT = 12
MAX_COPY_LIMIT = 256
MAX_BLANK_TOKENS = 3
# One set of tokens may be half a vocabulary.
MAX_BAN_CACHE_BYTES = 16 * 2**20


class CopyLimiter:
    """Protected texts with their limits in tokens, made ready for one vocabulary.

    keep: token ids that are never banned (the end of the answer). known: what was found for this vocabulary before.
    """

    def __init__(
        self,
        protected: Sequence[tuple[SuffixIndex, int]],
        vocabulary: TokenVocabulary,
        *,
        keep: Collection[int] = (),
        known: ByteCache[TokenIds] | None = None,
    ) -> None:
        self._protected = tuple(protected)
        self._vocabulary = vocabulary
        self._longest = max(limit for _, limit in protected) * (1 + MAX_BLANK_TOKENS)
        self._keep = np.array(sorted(keep), dtype=np.int64)
        self._known = ByteCache[TokenIds](MAX_BAN_CACHE_BYTES, lambda ids: ids.nbytes) if known is None else known
        self._kept = frozenset(keep)

    def advance(self, tail: RecentLetters, folded: str, *, inside: bool) -> RecentLetters:
        """The tail after one more token that adds text. folded: its folded text, as far as it is complete.

        inside: the token goes on with a character that an earlier one began.
        """
        spelled = folded.replace(SEPARATOR, "")
        if not spelled and (inside or (len(tail) >= MAX_BLANK_TOKENS and not any(tail[-MAX_BLANK_TOKENS:]))):
            return tail
        return (*tail[1 - self._longest :], spelled)

    def followers(self, tail: RecentLetters) -> frozenset[str]:
        """The letters that no further token may begin with, because they would make a run too long."""
        found: frozenset[str] = frozenset()
        for index, limit in self._protected:
            if len(tail) >= limit:
                newest = tail[-limit:]
                found |= _after(index, newest, limit)
                if not all(newest):
                    found |= _after(index, [spelled for spelled in tail if spelled][-limit:], limit)
        return found

    def banned(self, followers: frozenset[str], pending: bytes = b"") -> TokenIds:
        """The ids of the tokens that begin with one of `followers`, and of those without letters; sorted.

        pending: the bytes of an incomplete character before them, which some tokens complete.
        """
        found = self._from_boundary(followers)
        if not pending:
            return found
        inside = [token for token in self._vocabulary.broken if self._first(pending, token) in followers]
        others = np.setdiff1d(found, self._vocabulary.broken)
        return np.setdiff1d(np.union1d(others, np.array(inside, dtype=np.int64)), self._keep)

    def _first(self, pending: bytes, token: int) -> str:
        return fold(decode_bytes(pending, self._vocabulary.pieces[token])[0]).lstrip(SEPARATOR)[:1]

    def _from_boundary(self, followers: frozenset[str]) -> TokenIds:
        found = self._known.get((followers, self._kept))
        if found is None:
            initials = self._vocabulary.initials
            ids = [initials[letter] for letter in sorted({*followers, ""}) if letter in initials]
            whole = np.sort(np.concatenate(ids)) if ids else np.empty(0, dtype=np.int64)
            found = np.setdiff1d(whole, self._keep, assume_unique=True)
            self._known.put((followers, self._kept), found)
        return found


def _after(index: SuffixIndex, newest: Sequence[str], limit: int) -> frozenset[str]:
    """The letters that follow in the text if the `newest` tokens are a run of `limit`, the first of them in part."""
    if len(newest) < limit:
        return frozenset()
    piece = newest[0][-1:] + "".join(newest[1:])
    return (index.followers(piece) or frozenset()) if len(piece) >= limit else frozenset()
