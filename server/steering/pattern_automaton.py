"""A pattern as an automaton that says which texts it can produce a part of: of regular expressions and grammars.

Letters are compared folded (`corruption/phrases/normalize.py`), and everything that is neither letter nor digit is a
separator. The language may come out larger than the pattern's, never smaller: long repeats become loops, look-around
and back references match anything. Nothing here backtracks: a text is run through a set of positions, character by
character, so time is linear in the text.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser as sre_parser  # type: ignore[attr-defined]
from typing import Any, Final, NamedTuple

from lethe.classifier.work_limit import check_work
from lethe.corruption.phrases.normalize import SEPARATOR, fold

# Copies of a repeated part; a longer repeat becomes a loop. Chosen: longer than nearly all words, which are what
# repeats stand for.
MAX_COPIES: Final = 16
# Positions of an automaton. Chosen: bounds memory to some megabytes; past it everything matches.
MAX_POSITIONS: Final = 4096
# Steps from one set of positions to the next that are kept. Chosen: bounds memory.
MAX_CACHED_STEPS: Final = 20_000
# Separators in a row that count as one. Chosen: a comma and a blank, with one to spare.
MAX_SEPARATORS: Final = 3
# Depth to which rules of a grammar are written out in each other; deeper ones match anything. Chosen: bounds the size.
MAX_RULE_DEPTH: Final = 12

# Stands for every letter that has no entry of its own.
OTHER_LETTER: Final = "other"

_DIGITS: Final = frozenset("0123456789")
_LETTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyz")
_ASCII: Final = [(chr(code), fold(chr(code)).strip() or SEPARATOR) for code in range(0x80)]
# What one `.` accepts.
_ANYTHING: Final = _LETTERS | _DIGITS | {SEPARATOR}
# Unicode classes that Python's parser doesn't know; a rough equivalent is enough.
_UNICODE_CLASS = re.compile(r"\\[pP](?:\{\^?[^{}]{1,40}\}|[A-Z])")
_NAMED_GROUP = re.compile(r"\(\?<([A-Za-z_]\w*)>")
_LITERAL_RUN = re.compile(r"\w+")


class Fragment(NamedTuple):
    """A part of an automaton: the positions that it can begin with and end with, and whether it may be empty.

    first, last: sets of positions, as the bits of a number.
    """

    first: int
    last: int
    empty: bool


_EMPTY: Final = Fragment(0, 0, True)


@dataclass
class Automaton:
    """Positions, each with the folded characters that it accepts, and the positions that may follow each.

    accepts: character → the positions that accept it; OTHER_LETTER for all letters that have no entry. follow: of each
    position. Sets of positions are the bits of a number. whole: the automaton's parts that stand for a whole text.
    """

    accepts: dict[str, int] = field(default_factory=lambda: dict.fromkeys([*sorted(_ANYTHING), OTHER_LETTER], 0))
    follow: list[int] = field(default_factory=list)
    whole: list[Fragment] = field(default_factory=list)
    _after: dict[int, int] = field(default_factory=dict)
    _steps: dict[tuple[int, str], int] = field(default_factory=dict)

    def run(self, position: int, folded: str) -> int:
        """The positions that producing `folded` can end at, beginning at a position; 0 if it can't be produced.

        folded: words with single separators between them.
        """
        states = (1 << position) & self._accepting(folded[0])
        for character in folded[1:]:
            if not states:
                return 0
            key = states, character
            following = self._steps.get(key)
            if following is None:
                if len(self._steps) >= MAX_CACHED_STEPS:
                    check_work()
                    self._steps.clear()
                following = self._steps[key] = self._step(states, character)
            states = following
        return states

    def starts(self, character: str) -> list[int]:
        """The positions that accept a folded character."""
        return list(_positions(self._accepting(character)))

    def is_whole(self, start: int, ends: int) -> bool:
        """Whether a text from `start` to one of `ends` is all that the pattern produces."""
        return any(part.first >> start & 1 and part.last & ends for part in self.whole)

    def _accepting(self, character: str) -> int:
        accepting = self.accepts.get(character)
        return self.accepts[OTHER_LETTER] if accepting is None else accepting

    def _following(self, states: int) -> int:
        following = self._after.get(states)
        if following is None:
            following = 0
            for position in _positions(states):
                following |= self.follow[position]
            if len(self._after) >= MAX_CACHED_STEPS:
                self._after.clear()
            self._after[states] = following
        return following

    def _step(self, states: int, character: str) -> int:
        if character != SEPARATOR:
            return self._following(states) & self._accepting(character)
        # One separator of a phrase stands for none or several of the pattern.
        reached = found = states
        for _ in range(MAX_SEPARATORS):
            reached = self._following(reached) & self.accepts[SEPARATOR] & ~found
            found |= reached
        return found

    # Building

    def leaf(self, characters: Iterable[str], *, any_letter: bool = False) -> Fragment:
        """A position that accepts these folded characters. any_letter: and all letters outside ASCII."""
        is_last = len(self.follow) >= MAX_POSITIONS
        position = len(self.follow) - is_last
        bit = 1 << position
        if is_last:
            # No room is left: the last position accepts anything from now on.
            characters, any_letter = _ANYTHING, True
            self.follow[position] |= bit
        else:
            self.follow.append(0)
        if position % 256 == 0:
            check_work()
        for character in characters:
            self.accepts[character] = self.accepts.get(character, self.accepts[OTHER_LETTER]) | bit
        if any_letter:
            for character in self.accepts.keys() - _ANYTHING:
                self.accepts[character] |= bit
        return Fragment(bit, bit, is_last)

    def anything(self) -> Fragment:
        """Any text."""
        return self.loop(self.leaf(_ANYTHING, any_letter=True))

    def text(self, text: str) -> Fragment:
        """Exactly this text, folded."""
        return self.sequence([self.leaf([character]) for character in fold(text)])

    def sequence(self, parts: Iterable[Fragment]) -> Fragment:
        """The parts after each other."""
        result = _EMPTY
        for part in parts:
            self._connect(result.last, part.first)
            first = result.first | part.first if result.empty else result.first
            last = part.last | result.last if part.empty else part.last
            result = Fragment(first, last, result.empty and part.empty)
        return result

    def either(self, parts: Sequence[Fragment]) -> Fragment:
        """One of the parts."""
        first = last = 0
        for part in parts:
            first, last = first | part.first, last | part.last
        return Fragment(first, last, any(part.empty for part in parts) or not parts)

    def loop(self, part: Fragment) -> Fragment:
        """The part any number of times."""
        self._connect(part.last, part.first)
        return Fragment(part.first, part.last, True)

    def _connect(self, last: int, first: int) -> None:
        for position in _positions(last):
            self.follow[position] |= first


def _positions(states: int) -> Iterator[int]:
    """The positions of a set, as its bits."""
    while states:
        low = states & -states
        yield low.bit_length() - 1
        states ^= low


def regex_automaton(pattern: str) -> Automaton:
    """The automaton of a regular expression. One that Python can't parse becomes its words, with anything between."""
    automaton = Automaton()
    automaton.whole.append(add_regex(automaton, pattern))
    return automaton


def add_regex(automaton: Automaton, pattern: str) -> Fragment:
    """Add a regular expression to an automaton."""
    plain = _NAMED_GROUP.sub(r"(?P<\1>", _UNICODE_CLASS.sub(r"\\w", pattern))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = sre_parser.parse(plain)
        return _Regex(automaton).sequence(tree)
    except (re.error, RecursionError, OverflowError, ValueError, TypeError, KeyError):
        parts = [part for run in _LITERAL_RUN.findall(pattern) for part in (automaton.anything(), automaton.text(run))]
        return automaton.sequence([*parts, automaton.anything()])


class _Regex:
    """Adds the parse tree of a regular expression (`re._parser`) to an automaton."""

    def __init__(self, automaton: Automaton) -> None:
        self._automaton = automaton
        self._groups: dict[int, Any] = {}

    def sequence(self, tree: Any) -> Fragment:
        """The automaton's part for a list of nodes."""
        return self._automaton.sequence([self._node(kind, value) for kind, value in tree])

    def _node(self, kind: Any, value: Any) -> Fragment:
        automaton = self._automaton
        if kind is sre.LITERAL:
            return automaton.text(chr(value))
        if kind is sre.IN or kind is sre.NOT_LITERAL or kind is sre.ANY or kind is sre.CATEGORY:
            return _class_leaf(automaton, kind, value)
        if kind is sre.BRANCH:
            return automaton.either([self.sequence(branch) for branch in value[1]])
        if kind is sre.SUBPATTERN:
            self._groups[value[0]] = value[3]
            return self.sequence(value[3])
        if kind is sre.ATOMIC_GROUP:
            return self.sequence(value)
        if kind in (sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT):
            low, high, inner = value
            return self._repeat(int(low), None if high is sre.MAXREPEAT else int(high), inner)
        if kind is sre.GROUPREF and value in self._groups:
            return self.sequence(self._groups[value])
        return _EMPTY if kind in (sre.AT, sre.ASSERT, sre.ASSERT_NOT) else automaton.anything()

    def _repeat(self, low: int, high: int | None, inner: Any) -> Fragment:
        return repeated(self._automaton, low, high, lambda: self.sequence(inner))


def repeated(automaton: Automaton, low: int, high: int | None, make: Callable[[], Fragment]) -> Fragment:
    """A part `low` to `high` times (None: any number). make: adds the part once more."""
    copies = [make() for _ in range(min(low, MAX_COPIES))]
    if high is None or high > MAX_COPIES:
        return automaton.sequence([*copies, automaton.loop(make())])
    optional = _EMPTY
    for _ in range(max(high - low, 0)):
        optional = automaton.sequence([make(), optional])._replace(empty=True)
    return automaton.sequence([*copies, optional])


def _class_leaf(automaton: Automaton, kind: Any, value: Any) -> Fragment:
    """A position for a character class. Characters beyond ASCII count as accepted where letters as such are."""
    if kind is sre.ANY:
        return automaton.leaf(_ANYTHING, any_letter=True)
    items = [(kind, value)] if kind is not sre.IN else value
    negated = bool(items) and items[0][0] is sre.NEGATE
    accepted, any_letter = set[str](), False
    for character, folded in _ASCII:
        if any(_in_class(ord(character), item) for item in items) != negated:
            accepted.add(folded)
    for item_kind, item in items:
        if item_kind is sre.LITERAL and item >= 0x80:
            accepted.update(fold(chr(item)))
        any_letter |= item_kind in (sre.CATEGORY, sre.NOT_LITERAL) or (item_kind is sre.RANGE and item[1] >= 0x100)
    return automaton.leaf(accepted, any_letter=any_letter or negated)


_CATEGORIES: Final[dict[Any, Callable[[str], Any]]] = {
    sre.CATEGORY_DIGIT: str.isdigit,
    sre.CATEGORY_SPACE: str.isspace,
    sre.CATEGORY_WORD: re.compile(r"\w").match,
}
_NEGATED: Final = {
    sre.CATEGORY_NOT_DIGIT: sre.CATEGORY_DIGIT,
    sre.CATEGORY_NOT_SPACE: sre.CATEGORY_SPACE,
    sre.CATEGORY_NOT_WORD: sre.CATEGORY_WORD,
}


def _in_class(code: int, item: tuple[Any, Any]) -> bool:
    kind, value = item
    if kind is sre.LITERAL:
        return bool(code == value)
    if kind is sre.NOT_LITERAL:
        return bool(code != value)
    if kind is sre.RANGE:
        return bool(value[0] <= code <= value[1])
    if kind is sre.CATEGORY:
        if value in _NEGATED:
            return not bool(_CATEGORIES[_NEGATED[value]](chr(code)))
        return bool(_CATEGORIES[value](chr(code)))
    return False
