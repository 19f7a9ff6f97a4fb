"""Find forbidden phrases in a text that arrives in pieces, and stop or replace them: text in, text out.

A `StreamMatcher` reads one text, folded as in `corruption/phrases/normalize.py`. It holds back what may become a
forbidden phrase and releases everything else. A complete phrase is never released: the text ends before it, or a
replacement takes its place. The result doesn't depend on where the pieces are cut. It knows no JSON, no server and
no tokens.

Some text has two readings, because it may be the inside of a JSON string (`\\u0041` is also A, `\\n` also ends a
word) or Markdown (`*` and similar marks separate two words, or nothing). A phrase is found in either reading.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from lethe.corruption.phrases.extraction import UserSuppliedText
from lethe.corruption.phrases.normalize import FOLD_TABLE, SEPARATOR, fold
from lethe.corruption.phrases.phrase_list import ForbiddenPhrases, PhraseNode

# Characters of the answer that the spelling of a phrase may be longer than the phrase (white space, invisible
# characters) before it counts as a hit. Chosen: it limits how much text is held back.
MAX_EXTRA_CHARACTERS = 1024
# Characters of the answer that each character of a phrase may take, before MAX_EXTRA_CHARACTERS are used up. Chosen:
# room for a combining mark, an invisible character and a Markdown mark at each letter.
_CHARACTERS_PER_LETTER = 4

_BACKSLASHES = r"\\{1,8}+"  # more than one: JSON inside JSON
_HIGH_SURROGATE, _LOW_SURROGATE = "[dD][89abAB][0-9a-fA-F]{2}", "[dD][c-fC-F][0-9a-fA-F]{2}"
_ESCAPE = re.compile(
    rf"{_BACKSLASHES}u(?P<high>{_HIGH_SURROGATE}){_BACKSLASHES}u(?P<low>{_LOW_SURROGATE})"
    rf"|{_BACKSLASHES}u(?P<code>[0-9a-fA-F]{{4}})|{_BACKSLASHES}(?P<control>[nrtbf])|(?P<mark>[*_~`])"
)
_UNFINISHED_ESCAPE = re.compile(
    rf"{_BACKSLASHES}(?:u(?:[0-9a-fA-F]{{0,3}}|{_HIGH_SURROGATE}(?:{_BACKSLASHES}(?:u[0-9a-fA-F]{{0,3}})?)?))?\Z"
)
# Characters of the longest escape: two surrogates, each with 8 backslashes, `u` and 4 digits.
_LONGEST_ESCAPE = 26
# Start of a match inside a phrase that was replaced already.
_IN_REPLACED = -1


@dataclass(frozen=True)
class FilterRule:
    """One policy's phrases for one answer, and what happens on a hit.

    name: the policy's name. replacement: the text in a phrase's place; None ends the answer before it. user_text: what
    the prompt says, so that the answer may repeat it, where the phrases were chosen without regard to the prompt.
    prompt_ends: what the prompt ends with (`corruption/phrases/prompt_end.py`); the answer must not complete a phrase
    that begins there.
    """

    name: str
    phrases: ForbiddenPhrases
    replacement: str | None = None
    user_text: UserSuppliedText | None = None
    prompt_ends: Collection[str] = ()


class AnswerFilter:
    """The rules for one answer. Each text of the answer gets a matcher of its own.

    replacements: one for each rule, changed where they could form a phrase. max_held: characters that a matcher
    holds back, at most.
    """

    def __init__(self, rules: Iterable[FilterRule]) -> None:
        self.rules = tuple(rules)
        self.replacements = tuple(self._safe_replacement(rule.replacement) for rule in self.rules)
        longest = max((rule.phrases.longest for rule in self.rules), default=0)
        self.max_held = MAX_EXTRA_CHARACTERS + _CHARACTERS_PER_LETTER * longest
        # The phrases that the prompt has begun: the index of the rule, and the node that was reached.
        self._begun = tuple(
            {
                (number, node)
                for number, rule in enumerate(self.rules)
                for end in rule.prompt_ends
                for node in rule.phrases.open_after(end)
            }
        )

    def new_matcher(self, *, continues_prompt: bool = True) -> StreamMatcher:
        """Return a matcher for one text. continues_prompt: the text may complete a phrase that the prompt has begun."""
        matcher = StreamMatcher(self)
        if continues_prompt and self._begun:
            matcher.open_matches(self._begun)
        return matcher

    def _safe_replacement(self, replacement: str | None) -> str | None:
        """Return the replacement, or a similar one of which no word occurs in a phrase.

        Such a word can't form a phrase with its neighbours, and keeps them apart.
        """
        if replacement is None:
            return None
        words, size = fold(replacement).split(), 2
        while not words or any(rule.phrases.contain_word(word) for rule in self.rules for word in words):
            size += 1
            replacement, words = f"[{'x' * size}]", ["x" * size]
        return replacement


@dataclass(slots=True)
class _OpenMatch:
    """A text that may become a phrase. start: index in the units held back, or _IN_REPLACED. rule: its index.

    in_prompt: all letters so far are the prompt's, so that the answer has not said anything of the phrase.
    """

    start: int
    rule: int
    node: PhraseNode
    in_prompt: bool = False


@dataclass(slots=True)
class _PhraseHit:
    """A complete phrase: units start to end of those held back, and the index of its rule."""

    start: int
    end: int
    rule: int


@dataclass(slots=True)
class StreamMatcher:
    """Filters one text.

    hits: the names of the rules that were hit, one for each phrase. stopped: the text has ended before a phrase, and
    nothing is released any more.
    """

    answer_filter: AnswerFilter
    stopped: bool = False
    hits: list[str] = field(default_factory=list)
    # Units held back: characters, or whole escapes.
    _held: list[str] = field(default_factory=list)
    _open: list[_OpenMatch] = field(default_factory=list)
    _pending_hits: list[_PhraseHit] = field(default_factory=list)
    _at_boundary: bool = True
    _unfinished_escape: str = ""

    def open_matches(self, begun: Iterable[tuple[int, PhraseNode]]) -> None:
        """Begin the text inside phrases of the prompt: (index of the rule, node that the prompt has reached)."""
        self._open = [_OpenMatch(0, rule, node, in_prompt=True) for rule, node in begun]

    def feed(self, text: str) -> str:
        """Read more text, and return the text that is released."""
        if self.stopped:
            return ""
        out: list[str] = []
        text, self._unfinished_escape = self._unfinished_escape + text, ""
        if unfinished := _UNFINISHED_ESCAPE.search(text, max(0, len(text) - _LONGEST_ESCAPE)):
            text, self._unfinished_escape = text[: unfinished.start()], unfinished[0]
        self._read(text, out)
        self._release(out)
        return "".join(out)

    def finish(self) -> str:
        """End the text, and return what is still to be released. A phrase cut off past half is a hit."""
        if self.stopped:
            return ""
        out: list[str] = []
        self._read(self._unfinished_escape, out)
        self._unfinished_escape = ""
        self._advance(SEPARATOR, len(self._held), text_ends=True)
        self._open = []
        self._settle_hits(out)
        self._release(out)
        return "".join(out)

    def whole(self, text: str) -> str:
        """Filter a complete text."""
        return self.feed(text) + self.finish()

    def _read(self, text: str, out: list[str]) -> None:
        end = 0
        for escape in _ESCAPE.finditer(text):
            self._read_plain(text[end : escape.start()], out)
            if not self.stopped:
                self._read_both_ways(escape, out)
            if self.stopped:
                return
            end = escape.end()
        self._read_plain(text[end:], out)

    def _read_plain(self, text: str, out: list[str]) -> None:
        for character in text:
            folded = FOLD_TABLE[ord(character)]
            if not self._open and not self._pending_hits:
                # Nothing is held back, and only the first letter of a word can change that.
                if folded == SEPARATOR:
                    self._at_boundary = True
                if not folded or folded == SEPARATOR or (not self._at_boundary and SEPARATOR not in folded):
                    out.append(character)
                    continue
            index = len(self._held)
            self._held.append(character)
            self._advance(folded, index)
            self._after_unit(out)
            if self.stopped:
                return

    def _after_unit(self, out: list[str]) -> None:
        """Act on hits, and hold back no more than necessary."""
        max_held = self.answer_filter.max_held
        if self._pending_hits:
            self._settle_hits(out)
        if not self._open and not self._pending_hits:
            out += self._held
            self._held.clear()
        elif len(self._held) > max_held:
            self._release(out)
            if len(self._held) > max_held:
                # No ordinary spelling has this many characters without letters inside a phrase: count it as a hit.
                first = min(self._open, key=lambda match: match.start)
                self._pending_hits.append(_PhraseHit(first.start, len(self._held), first.rule))
                self._open = [match for match in self._open if match is not first]
                self._settle_hits(out)

    def _read_both_ways(self, escape: re.Match[str], out: list[str]) -> None:
        """Read an escape or mark in both of its readings; later text continues the matches of either."""
        index = len(self._held)
        self._held.append(escape[0])
        open_before, boundary_before = list(self._open), self._at_boundary
        self._advance(fold(escape[0]), index)
        literal_open, literal_boundary = self._open, self._at_boundary
        self._open, self._at_boundary = open_before, boundary_before
        self._advance(_second_reading(escape), index)
        present = {(match.start, match.rule, match.node, match.in_prompt) for match in self._open}
        self._open += [
            match for match in literal_open if (match.start, match.rule, match.node, match.in_prompt) not in present
        ]
        self._at_boundary |= literal_boundary
        self._after_unit(out)

    def _advance(self, folded: str, index: int, *, text_ends: bool = False) -> None:
        """Advance all matches by one unit's folded text.

        index: the unit's number in the text. text_ends: nothing follows it.
        """
        rules = self.answer_filter.rules
        has_letter = False
        for character in folded:
            advanced: list[_OpenMatch] = []
            for match in self._open:
                node, rule = match.node, rules[match.rule]
                if character == SEPARATOR:
                    if not match.in_prompt and _is_hit(rule, node, text_ends=text_ends):
                        self._pending_hits.append(_PhraseHit(match.start, index + has_letter, match.rule))
                    if node.ends_with_separator:
                        advanced.append(match)  # several separators count as one
                        continue
                following = rule.phrases.children(node).get(character)
                if following is not None:
                    in_prompt = match.in_prompt and character == SEPARATOR
                    advanced.append(_OpenMatch(match.start, match.rule, following, in_prompt))
            if character == SEPARATOR:
                self._at_boundary = True
            else:
                has_letter = True
                if self._at_boundary:
                    self._at_boundary = False
                    for number, rule in enumerate(rules):
                        first = rule.phrases.first_nodes().get(character)
                        if first is not None:
                            advanced.append(_OpenMatch(index, number, first))
            self._open = advanced

    def _settle_hits(self, out: list[str]) -> None:
        """Stop at or replace the phrases that were hit, unless a longer match that started earlier is still open."""
        rules, replacements = self.answer_filter.rules, self.answer_filter.replacements
        while self._pending_hits:
            stopping = [hit for hit in self._pending_hits if replacements[hit.rule] is None]
            if stopping:
                self.hits.append(rules[stopping[0].rule].name)
                out.append("".join(self._held[: self._earliest_match()]))
                self.stopped = True
                self._held, self._open, self._pending_hits, self._unfinished_escape = [], [], [], ""
                return
            hit = min(self._pending_hits, key=lambda hit: (hit.start, -hit.end))
            if any(match.start < hit.start for match in self._open):
                return
            if hit.start != _IN_REPLACED:
                out.append("".join(self._held[: hit.start]))
                out.append(replacements[hit.rule] or "")
            self.hits.append(rules[hit.rule].name)
            end = hit.end
            del self._held[:end]
            # A match that starts inside the replaced phrase and ends after it is replaced along with it.
            for match in self._open:
                match.start = match.start - end if match.start >= end else _IN_REPLACED
            self._pending_hits = [
                _PhraseHit(other.start - end if other.start >= end else _IN_REPLACED, other.end - end, other.rule)
                for other in self._pending_hits
                if other is not hit and other.end > end
            ]

    def _earliest_match(self) -> int:
        """The index in the units held back where the first open or complete match starts."""
        starts = [*(match.start for match in self._open), *(hit.start for hit in self._pending_hits)]
        return max(min(starts, default=len(self._held)), 0)

    def _release(self, out: list[str]) -> None:
        """Release the units before the first match."""
        if count := self._earliest_match():
            out.append("".join(self._held[:count]))
            del self._held[:count]
            for match in self._open:
                match.start = max(match.start - count, _IN_REPLACED)
            self._pending_hits = [
                _PhraseHit(max(hit.start - count, _IN_REPLACED), hit.end - count, hit.rule)
                for hit in self._pending_hits
            ]


def _is_hit(rule: FilterRule, node: PhraseNode, *, text_ends: bool) -> bool:
    """Whether a separator after `node` completes a phrase that the user's text doesn't allow.

    text_ends: the answer ends here, so more than half of a phrase is enough.
    """
    phrases, user_text = rule.phrases, rule.user_text
    if node.is_phrase and not (user_text and user_text.allows(phrases.phrase_at(node))):
        return True
    return text_ends and phrases.is_past_half(node, user_text)


def fold_decoded(text: str) -> str:
    """Return the folded text with escapes decoded and Markdown marks left out."""
    return fold(_ESCAPE.sub(_second_reading, text) if _ESCAPE.search(text) else text)


def _second_reading(escape: re.Match[str]) -> str:
    """The folded text of an escape as JSON decodes it; nothing for a Markdown mark."""
    if escape["mark"]:
        return ""
    if escape["control"]:
        return SEPARATOR
    if escape["code"]:
        return fold(chr(int(escape["code"], 16)))
    high, low = int(escape["high"], 16) - 0xD800, int(escape["low"], 16) - 0xDC00
    return fold(chr(0x10000 + (high << 10) + low))
