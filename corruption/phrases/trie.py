"""Forbidden phrases as an automaton over folded text, advanced piece by piece.

The automaton is a trie of the phrases, each led by a separator, and its state is the set of trie nodes
that some suffix of the text has reached: the *open matches*. A match opens only at a separator, so the
set is small (mostly empty or one node) and no failure links have to be built for every request. What is
*forbidden* after a piece of text:

- a whole phrase followed by a separator has gone by, or
- an open match is longer than half of a phrase that it can still become (counted in letters and digits).

Soft words live in the same trie with a finite weight; they count where a piece of text takes an open match
past half of the word, and not again on the rest of that word.

It knows texts only: no tokens, no tensors. Hard and soft matches follow GUARD, arXiv:2505.13312, which
matches token sequences; matching text is this project's change.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from lethe.corruption.phrases.normalize import SEPARATOR, count_letters, fold

ROOT_NODE = 0
BOUNDARY_NODE = 1
# The state of an empty text: a match may begin at once.
START_STATE: tuple[int, ...] = (BOUNDARY_NODE,)

_UNREACHED = 1 << 30


class PhraseContinuation(NamedTuple):
    """A text that leads from one open match to a forbidden or penalised place.

    text: folded, what has to follow. at_end: forbidden when a piece ends right here. whole: a phrase is
    complete here, so anything after a separator is forbidden too. soft, soft_whole: the same two as
    weights to subtract, 0.0 for none.
    """

    text: str
    at_end: bool
    whole: bool
    soft: float
    soft_whole: float


class PhraseTrie:
    """The automaton of one request's phrases and soft words; immutable after construction.

    Phrases and words are folded here; those without any letter or digit are left out.
    """

    def __init__(self, phrases: Iterable[str], soft: Mapping[str, float] | None = None) -> None:
        self._children: list[dict[str, int]] = []
        self._letters: list[int] = []
        self._shortest: list[int] = []
        self._ends: list[bool] = []
        # Per node: letters of a soft word that runs through it → its weight.
        self._soft: list[dict[int, float]] = []
        self._soft_end: list[float] = []
        self._after_separator = {BOUNDARY_NODE}
        self._add_node(0)
        self._children[ROOT_NODE][SEPARATOR] = self._add_node(0)
        for phrase in phrases:
            self._add_phrase(fold(phrase).strip())
        for word, weight in (soft or {}).items():
            self._add_soft(fold(word).strip(), weight)

    def _add_node(self, length: int) -> int:
        self._children.append({})
        self._letters.append(length)
        self._shortest.append(_UNREACHED)
        self._ends.append(False)
        self._soft.append({})
        self._soft_end.append(0.0)
        return len(self._children) - 1

    def _path(self, folded: str) -> Iterator[int]:
        """The nodes of a pattern after the boundary node, made where they are missing."""
        node = BOUNDARY_NODE
        for character in folded:
            following = self._children[node].get(character)
            if following is None:
                following = self._add_node(self._letters[node] + (character != SEPARATOR))
                self._children[node][character] = following
                if character == SEPARATOR:
                    self._after_separator.add(following)
            node = following
            yield node

    def _add_phrase(self, folded: str) -> None:
        if not folded:
            return
        length = count_letters(folded)
        node = BOUNDARY_NODE
        for node in self._path(folded):
            self._shortest[node] = min(self._shortest[node], length)
        self._ends[node] = True

    def _add_soft(self, folded: str, weight: float) -> None:
        if not folded:
            return
        length = count_letters(folded)
        node = BOUNDARY_NODE
        for node in self._path(folded):
            self._soft[node][length] = max(weight, self._soft[node].get(length, 0.0))
        self._soft_end[node] = max(weight, self._soft_end[node])

    def step(self, state: tuple[int, ...], text: str) -> tuple[int, ...]:
        """The state after more folded text."""
        children = self._children
        for character in text:
            if character == SEPARATOR:
                if BOUNDARY_NODE in state:
                    continue  # runs of separators count as one, also across pieces
                state = (*_along(children, state, character), BOUNDARY_NODE)
            elif len(state) == 1:
                # By far the most common: one match is open.
                node = children[state[0]].get(character)
                state = () if node is None else (node,)
            elif state:
                state = _along(children, state, character)
        return state

    def forbids(self, state: tuple[int, ...], text: str) -> bool:
        """Whether `text`, folded, read from `state`, is forbidden."""
        for character in text:
            if character == SEPARATOR and any(self._ends[node] for node in state):
                return True
            state = self.step(state, character)
        return any(self._is_open_too_far(node) for node in state)

    def weight(self, state: tuple[int, ...], text: str) -> float:
        """The soft weight of `text`, folded, read from `state`; the largest where several words count."""
        found = 0.0
        # (letters at the start, node) of every open match, so that a word already past half is told.
        opened = [(self._letters[node], node) for node in state]
        boundary = BOUNDARY_NODE in state
        for character in text:
            if character == SEPARATOR:
                if boundary:
                    continue
                found = max([found, *(self._soft_whole(begun, node) for begun, node in opened)])
            opened = [
                (begun, following)
                for begun, node in opened
                if (following := self._children[node].get(character)) is not None
            ]
            boundary = character == SEPARATOR
            if boundary:
                opened.append((0, BOUNDARY_NODE))
        return max([found, *(self._soft_open(begun, node) for begun, node in opened)])

    def continuations(self, node: int, longest: int) -> Iterator[PhraseContinuation]:
        """All texts of up to `longest` characters that lead from `node` to a forbidden or penalised place."""
        begun = self._letters[node]
        todo = [(node, "")]
        while todo:
            parent, text = todo.pop()
            for character, child in self._children[parent].items():
                grown = text + character
                if len(grown) < longest:
                    todo.append((child, grown))
                at_end, whole = self._is_open_too_far(child), self._ends[child]
                soft = self._soft_open(begun, child) if self._soft[child] else 0.0
                soft_whole = self._soft_whole(begun, child) if self._soft_end[child] else 0.0
                if at_end or soft:
                    yield PhraseContinuation(grown, at_end, whole, soft, soft_whole)

    def follows_separator(self, node: int) -> bool:
        """Whether the text of `node` ends with a separator, so that another one changes nothing."""
        return node in self._after_separator

    def _is_open_too_far(self, node: int) -> bool:
        return 2 * self._letters[node] > self._shortest[node]

    def _soft_open(self, begun: int, node: int) -> float:
        reached = 2 * self._letters[node]
        weights = (w for length, w in self._soft[node].items() if 2 * begun <= length < reached)
        return max(weights, default=0.0)

    def _soft_whole(self, begun: int, node: int) -> float:
        return self._soft_end[node] if 2 * begun <= self._letters[node] else 0.0


def _along(children: list[dict[str, int]], state: tuple[int, ...], character: str) -> tuple[int, ...]:
    return tuple([child for node in state if (child := children[node].get(character)) is not None])
