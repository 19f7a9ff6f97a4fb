"""A trie of forbidden phrases and soft words, matched on folded text piece by piece.

Each phrase starts with a separator. The state of a text is the set of trie nodes that some suffix of it has reached:
the *open matches*. A match opens only at a separator, so the set is small (mostly empty or one node), and no failure
links have to be built for each request. A piece of text is *forbidden* if

- it completes a whole phrase followed by a separator, or
- after it, an open match is longer than half of a phrase that it can still become (in letters and digits).

Soft words are in the same trie with a finite weight. The weight applies where a piece of text takes an open match
past half of the word, and not again on the rest of that word.

It knows texts only: no tokens, no tensors. Hard and soft matches follow GUARD, arXiv:2505.13312, which matches token
sequences; matching text is this project's change.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from lethe.corruption.phrases.normalize import SEPARATOR, count_letters, fold

# Id of the root node.
ROOT_NODE = 0
# Id of the node after the separator that starts every phrase.
BOUNDARY_NODE = 1
# The state of an empty text: a match may start with its first letter.
START_STATE: tuple[int, ...] = (BOUNDARY_NODE,)

# More letters than any phrase has: the shortest phrase through a node that only soft words use.
_NO_PHRASE = 1 << 30


class PhraseContinuation(NamedTuple):
    """A text that leads from one open match to a forbidden or penalised place.

    text: what must follow, folded. at_end: a piece that ends here is forbidden. whole: a phrase is complete here, so
    a piece that continues with a separator is forbidden too. soft, soft_whole: the same two as weights in logits,
    0.0 for none.
    """

    text: str
    at_end: bool
    whole: bool
    soft: float
    soft_whole: float


class PhraseTrie:
    """The phrases and soft words of one request. Immutable after construction, so threads may share it."""

    def __init__(self, phrases: Iterable[str], soft: Mapping[str, float] | None = None) -> None:
        """soft: word → weight in logits. Phrases and words are folded; those without a letter or digit are left out."""
        # All lists are by node: the next nodes, letters from the boundary, letters of the shortest phrase through
        # the node, whether a phrase ends here.
        self._children: list[dict[str, int]] = []
        self._letters: list[int] = []
        self._shortest: list[int] = []
        self._ends: list[bool] = []
        # Letters of a soft word through the node → its largest weight; the weight of a soft word that ends here.
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
        self._shortest.append(_NO_PHRASE)
        self._ends.append(False)
        self._soft.append({})
        self._soft_end.append(0.0)
        return len(self._children) - 1

    def _path(self, folded: str) -> Iterator[int]:
        """Yield the nodes of a pattern after the boundary node, and add the missing ones."""
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
        """Return the state after more folded text."""
        children = self._children
        for character in text:
            if character == SEPARATOR:
                if state == START_STATE:
                    continue  # several separators count as one, also across pieces
                state = self._step_separator(state)
            elif len(state) == 1:
                # By far the most common case: one match is open.
                node = children[state[0]].get(character)
                state = () if node is None else (node,)
            elif state:
                state = _children_of(children, state, character)
        return state

    def _step_separator(self, state: tuple[int, ...]) -> tuple[int, ...]:
        if BOUNDARY_NODE not in state:
            return (*_children_of(self._children, state, SEPARATOR), BOUNDARY_NODE)
        # Several separators count as one. Only the start of an answer can be inside a word too: a word of the prompt.
        inside = tuple(node for node in state if node not in self._after_separator)
        after = (node for node in state if node in self._after_separator)
        return tuple(dict.fromkeys([*_children_of(self._children, inside, SEPARATOR), *after]))

    def start_after(self, ends: Iterable[str]) -> tuple[int, ...]:
        """Return the state of an empty answer to a prompt that ends with one of the folded texts, or with none."""
        nodes = {node for end in ends for node in self.step(START_STATE, end)}
        return tuple(sorted({*START_STATE, *nodes}))

    def forbids(self, state: tuple[int, ...], text: str) -> bool:
        """Whether `text` (folded) is forbidden after `state`."""
        for character in text:
            if character == SEPARATOR and any(self._ends[node] for node in state):
                return True
            state = self.step(state, character)
        return any(self._is_past_half(node) for node in state)

    def weight(self, state: tuple[int, ...], text: str) -> float:
        """The soft weight of `text` (folded) after `state`: the largest where several words match."""
        weight = 0.0
        # (letters before the text, node) of every open match, to recognise words that were past half already.
        opened = [(self._letters[node], node) for node in state]
        boundary = BOUNDARY_NODE in state
        for character in text:
            after_separator: list[tuple[int, int]] = []
            if character == SEPARATOR:
                # Several separators count as one.
                after_separator = [entry for entry in opened if boundary and entry[1] in self._after_separator]
                opened = [entry for entry in opened if entry not in after_separator]
                weight = max([weight, *(self._weight_of_whole_word(before, node) for before, node in opened)])
            opened = after_separator + [
                (before, following)
                for before, node in opened
                if (following := self._children[node].get(character)) is not None
            ]
            if character == SEPARATOR and not boundary:
                opened.append((0, BOUNDARY_NODE))
            boundary = character == SEPARATOR
        return max([weight, *(self._weight_past_half(before, node) for before, node in opened)])

    def continuations(self, node: int, longest: int) -> Iterator[PhraseContinuation]:
        """Yield all texts of up to `longest` characters that lead from `node` to a forbidden or penalised place."""
        letters_before = self._letters[node]
        pending = [(node, "")]
        while pending:
            parent, text = pending.pop()
            for character, child in self._children[parent].items():
                extended = text + character
                if len(extended) < longest:
                    pending.append((child, extended))
                at_end, whole = self._is_past_half(child), self._ends[child]
                soft = self._weight_past_half(letters_before, child) if self._soft[child] else 0.0
                soft_whole = self._weight_of_whole_word(letters_before, child) if self._soft_end[child] else 0.0
                if at_end or soft:
                    yield PhraseContinuation(extended, at_end, whole, soft, soft_whole)

    def follows_separator(self, node: int) -> bool:
        """Whether the text of `node` ends with a separator, so that another one changes nothing."""
        return node in self._after_separator

    def _is_past_half(self, node: int) -> bool:
        return 2 * self._letters[node] > self._shortest[node]

    def _weight_past_half(self, letters_before: int, node: int) -> float:
        """The weight of the soft words that the text takes from at most half to past half of their letters."""
        twice_reached = 2 * self._letters[node]
        weights = (w for length, w in self._soft[node].items() if 2 * letters_before <= length < twice_reached)
        return max(weights, default=0.0)

    def _weight_of_whole_word(self, letters_before: int, node: int) -> float:
        """The weight of the soft word that ends at `node`, unless it was past half before."""
        return self._soft_end[node] if 2 * letters_before <= self._letters[node] else 0.0


def _children_of(children: list[dict[str, int]], state: tuple[int, ...], character: str) -> tuple[int, ...]:
    return tuple([child for node in state if (child := children[node].get(character)) is not None])
