"""Forbidden phrases in a text that comes piece by piece: text in, text out.

A `Watcher` reads one text, folded as `corruption/phrases/normalize.py` does, and lets out what can no longer be the
beginning of a forbidden phrase. What may become one is held; a phrase that is said whole never leaves: the text
ends before it, or something else stands in its place. How the text is cut into pieces changes nothing. It knows
no JSON, no server and no tokens.

Text has two readings where it may be the inside of a JSON string (`\\u0041` is also A, `\\n` also ends a word)
or Markdown (`*` and its like part two words, or nothing): a phrase is found in either.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from lethe.corruption.phrases.extraction import UserSuppliedText
from lethe.corruption.phrases.normalize import FOLD_TABLE, SEPARATOR, count_letters, fold

# How much longer than a phrase, in characters of the answer, its spelling may be (white space, invisible
# characters) before it counts as said: what is held has to end somewhere.
SLACK = 1024
# Places of a list that are kept after they were first looked at; forgotten all at once beyond that.
MAX_CACHED_NODES = 50_000

_LAST = "\U0010ffff"  # folding never makes it
_SLASHES = r"\\{1,8}+"  # more than one: JSON inside JSON
_HIGH, _LOW = "[dD][89abAB][0-9a-fA-F]{2}", "[dD][c-fC-F][0-9a-fA-F]{2}"
_ESCAPE = re.compile(
    rf"{_SLASHES}u(?P<high>{_HIGH}){_SLASHES}u(?P<low>{_LOW})"
    rf"|{_SLASHES}u(?P<code>[0-9a-fA-F]{{4}})|{_SLASHES}(?P<control>[nrtbf])|(?P<mark>[*_~`])"
)
_UNFINISHED = re.compile(rf"{_SLASHES}(?:u(?:[0-9a-fA-F]{{0,3}}|{_HIGH}(?:{_SLASHES}(?:u[0-9a-fA-F]{{0,3}})?)?))?\Z")
_LONGEST_ESCAPE = 26


class _Place:
    """The phrases that share a beginning: a range of the sorted list. children are found on the first visit."""

    __slots__ = ("low", "high", "depth", "whole", "spaced", "children")

    def __init__(self, low: int, high: int, depth: int, whole: bool, spaced: bool) -> None:
        self.low = low
        self.high = high
        self.depth = depth
        self.whole = whole  # one of the phrases ends here
        self.spaced = spaced  # the beginning ends with a separator
        self.children: dict[str, _Place] | None = None


class ForbiddenPhrases:
    """Any number of phrases as one sorted list, searched letter by letter.

    Making one costs a sort; a place in it is worked out when an answer first comes by, so memory is the texts'
    own and a little for what answers say. Phrases are folded here; those without a letter or digit are left out.
    """

    def __init__(self, phrases: Iterable[str]) -> None:
        self._sorted = sorted({folded for phrase in phrases if (folded := fold(phrase).strip())})
        self._places = 0
        self._root = self._made_root()
        self.longest = max(map(len, self._sorted), default=0)

    def __len__(self) -> int:
        return len(self._sorted)

    def _made_root(self) -> _Place:
        return _Place(0, len(self._sorted), 0, False, True)

    def root(self) -> dict[str, _Place]:
        """The places after one letter."""
        if self._places > MAX_CACHED_NODES:
            self._root, self._places = self._made_root(), 0
        return self.children(self._root)

    def children(self, place: _Place) -> dict[str, _Place]:
        if place.children is None:
            place.children = dict(self._found(place))
            self._places += len(place.children)
        return place.children

    def _found(self, place: _Place) -> Iterator[tuple[str, _Place]]:
        depth, at = place.depth, place.low + place.whole
        while at < place.high:
            begun = self._sorted[at][: depth + 1]
            end = bisect_left(self._sorted, begun + _LAST, at, place.high)
            whole = len(self._sorted[at]) == depth + 1
            yield begun[-1], _Place(at, end, depth + 1, whole, begun[-1] == SEPARATOR)
            at = end

    def at(self, place: _Place) -> str:
        """The phrase that ends at a place that is whole."""
        return self._sorted[place.low]

    def past_half(self, place: _Place, told: UserSuppliedText | None) -> bool:
        """Whether a text that breaks off here has said more than half of a phrase that nothing excuses."""
        reached = 2 * count_letters(self._sorted[place.low][: place.depth])
        return any(
            count_letters(phrase) < reached and not (told and told.allows(phrase))
            for phrase in self._sorted[place.low : place.high]
        )

    def hold(self, word: str) -> bool:
        """Whether a folded word stands in a phrase, be it as a part of another word."""
        return any(word in phrase for phrase in self._sorted)


@dataclass(frozen=True)
class FilterRule:
    """What one policy says of one answer: its phrases, and what happens on a hit.

    replacement: what stands in a phrase's place; None ends the text before it. told: what the prompt says itself
    and the answer may therefore say, where the phrases weren't chosen with the prompt in view.
    """

    name: str
    phrases: ForbiddenPhrases
    replacement: str | None = None
    told: UserSuppliedText | None = None


class AnswerFilter:
    """The rules of one answer, and the watchers of its texts."""

    def __init__(self, rules: Iterable[FilterRule]) -> None:
        self.rules = tuple(rules)
        self.replacements = tuple(self._safe(rule.replacement) for rule in self.rules)
        self.most_held = SLACK + 4 * max((rule.phrases.longest for rule in self.rules), default=0)

    def new_matcher(self) -> StreamMatcher:
        return StreamMatcher(self)

    def _safe(self, replacement: str | None) -> str | None:
        """The replacement, or one like it no word of which stands in a phrase.

        A word that stands in no phrase can't make one up with its neighbours, and keeps them apart.
        """
        if replacement is None:
            return None
        words, size = fold(replacement).split(), 2
        while not words or any(rule.phrases.hold(word) for rule in self.rules for word in words):
            size += 1
            replacement, words = f"[{'x' * size}]", ["x" * size]
        return replacement


@dataclass(slots=True)
class _Open:
    """A match that has begun. start: where in what is held; -1: in a phrase that was replaced already."""

    start: int
    rule: int
    place: _Place


@dataclass(slots=True)
class _Hit:
    start: int
    end: int
    rule: int


@dataclass(slots=True)
class StreamMatcher:
    """One text under watch. `hits` are the names of the rules that were hit, one for each phrase.

    `stopped`: the text has ended before a phrase, and whatever follows is nothing.
    """

    watch: AnswerFilter
    stopped: bool = False
    hits: list[str] = field(default_factory=list)
    _held: list[str] = field(default_factory=list)
    _open: list[_Open] = field(default_factory=list)
    _found: list[_Hit] = field(default_factory=list)
    _boundary: bool = True
    _unfinished: str = ""

    def feed(self, text: str) -> str:
        """The text that may leave now that `text` has come."""
        if self.stopped:
            return ""
        out: list[str] = []
        text, self._unfinished = self._unfinished + text, ""
        if begun := _UNFINISHED.search(text, max(0, len(text) - _LONGEST_ESCAPE)):
            text, self._unfinished = text[: begun.start()], begun[0]
        self._read(text, out)
        self._release(out)
        return "".join(out)

    def finish(self) -> str:
        """The rest of the text, now that it has ended: a phrase that it breaks off past half counts as said."""
        if self.stopped:
            return ""
        out: list[str] = []
        self._read(self._unfinished, out)
        self._unfinished = ""
        self._advance(SEPARATOR, len(self._held), half=True)
        self._open = []
        self._settle(out)
        self._release(out)
        return "".join(out)

    def whole(self, text: str) -> str:
        """What may leave of a text that has come whole."""
        return self.feed(text) + self.finish()

    def _read(self, text: str, out: list[str]) -> None:
        end = 0
        for match in _ESCAPE.finditer(text):
            self._plain(text[end : match.start()], out)
            if not self.stopped:
                self._fork(match, out)
            if self.stopped:
                return
            end = match.end()
        self._plain(text[end:], out)

    def _plain(self, text: str, out: list[str]) -> None:
        for character in text:
            folded = FOLD_TABLE[ord(character)]
            if not self._open and not self._found:
                # Nothing is held, so only the first letter of a word can change that.
                if folded == SEPARATOR:
                    self._boundary = True
                if not folded or folded == SEPARATOR or (not self._boundary and SEPARATOR not in folded):
                    out.append(character)
                    continue
            at = len(self._held)
            self._held.append(character)
            self._advance(folded, at)
            self._act(out)
            if self.stopped:
                return

    def _act(self, out: list[str]) -> None:
        """After one more unit: act on what was found, and see that no more is held than has to be."""
        if self._found:
            self._settle(out)
        if not self._open and not self._found:
            out += self._held
            self._held.clear()
        elif len(self._held) > self.watch.most_held:
            self._release(out)
            if len(self._held) > self.watch.most_held:
                # So much of nothing inside a phrase is no way of writing: it counts as said.
                first = min(self._open, key=lambda match: match.start)
                self._found.append(_Hit(first.start, len(self._held), first.rule))
                self._open = [match for match in self._open if match is not first]
                self._settle(out)

    def _fork(self, match: re.Match[str], out: list[str]) -> None:
        """Read what has a second reading in both; what follows continues either."""
        at = len(self._held)
        self._held.append(match[0])
        opened, boundary = list(self._open), self._boundary
        self._advance(fold(match[0]), at)
        literal = self._open, self._boundary
        self._open, self._boundary = opened, boundary
        if match["mark"]:
            second = ""
        elif match["control"]:
            second = SEPARATOR
        elif match["code"]:
            second = fold(chr(int(match["code"], 16)))
        else:
            high, low = int(match["high"], 16) - 0xD800, int(match["low"], 16) - 0xDC00
            second = fold(chr(0x10000 + (high << 10) + low))
        self._advance(second, at)
        there = {(begun.start, begun.rule, begun.place) for begun in self._open}
        self._open += [begun for begun in literal[0] if (begun.start, begun.rule, begun.place) not in there]
        self._boundary |= literal[1]
        self._act(out)

    def _advance(self, folded: str, at: int, *, half: bool = False) -> None:
        """Lead all matches on through one held unit's folded text. at: the unit's index; half: the text ends here."""
        rules = self.watch.rules
        letter = False
        for character in folded:
            led: list[_Open] = []
            for match in self._open:
                place, phrases = match.place, rules[match.rule].phrases
                if character == SEPARATOR:
                    told = rules[match.rule].told
                    if (place.whole and not (told and told.allows(phrases.at(place)))) or (
                        half and phrases.past_half(place, told)
                    ):
                        self._found.append(_Hit(match.start, at + letter, match.rule))
                    if place.spaced:
                        led.append(match)  # a run of separators is one
                        continue
                following = phrases.children(place).get(character)
                if following is not None:
                    led.append(_Open(match.start, match.rule, following))
            if character == SEPARATOR:
                self._boundary = True
            else:
                letter = True
                if self._boundary:
                    self._boundary = False
                    for number, rule in enumerate(rules):
                        begun = rule.phrases.root().get(character)
                        if begun is not None:
                            led.append(_Open(at, number, begun))
            self._open = led

    def _settle(self, out: list[str]) -> None:
        """Act on the phrases that were found, as far as no longer match that began before can change them."""
        watch = self.watch
        while self._found:
            stopping = [hit for hit in self._found if watch.replacements[hit.rule] is None]
            if stopping:
                self.hits += [watch.rules[hit.rule].name for hit in stopping[:1]]
                cut = self._earliest()
                out.append("".join(self._held[:cut]))
                self.stopped = True
                self._held, self._open, self._found, self._unfinished = [], [], [], ""
                return
            hit = min(self._found, key=lambda found: (found.start, -found.end))
            if any(match.start < hit.start for match in self._open):
                return
            if hit.start >= 0:
                out.append("".join(self._held[: hit.start]))
                out.append(watch.replacements[hit.rule] or "")
            self.hits.append(watch.rules[hit.rule].name)
            end = hit.end
            del self._held[:end]
            # What has begun inside the replaced phrase and goes on after it is replaced along with it.
            for match in self._open:
                match.start = match.start - end if match.start >= end else -1
            self._found = [
                _Hit(found.start - end if found.start >= end else -1, found.end - end, found.rule)
                for found in self._found
                if found is not hit and found.end > end
            ]

    def _earliest(self) -> int:
        """Where in what is held the first match begins that is open or found."""
        starts = [*(match.start for match in self._open), *(hit.start for hit in self._found)]
        return max(min(starts, default=len(self._held)), 0)

    def _release(self, out: list[str]) -> None:
        """Let out what no match holds."""
        if free := self._earliest():
            out.append("".join(self._held[:free]))
            del self._held[:free]
            for match in self._open:
                match.start = max(match.start - free, -1)
            self._found = [_Hit(max(hit.start - free, -1), hit.end - free, hit.rule) for hit in self._found]
