"""Any number of forbidden phrases as one sorted list, searched letter by letter.

It serves the output filter, whose lists may hold hundreds of thousands of phrases. For the few phrases of one
request, `corruption/phrases/trie.py` also answers what a penalty needs. It knows texts only.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator

from lethe.corruption.phrases.extraction import UserSuppliedText
from lethe.corruption.phrases.normalize import SEPARATOR, count_letters, fold

# Nodes to keep after their first visit; beyond that all are dropped at once. Chosen: about 17 MB.
MAX_CACHED_NODES = 50_000

_LAST_CHARACTER = "\U0010ffff"  # folding never produces it, and it sorts after every other one


class PhraseNode:
    """The phrases with the same beginning: the range low to high of the sorted list.

    depth: characters of the beginning. is_phrase: the beginning is itself a phrase. ends_with_separator: the
    beginning ends with a separator. children: the next nodes by character, computed on the first visit.
    """

    __slots__ = ("low", "high", "depth", "is_phrase", "ends_with_separator", "children")

    def __init__(self, low: int, high: int, depth: int, is_phrase: bool, ends_with_separator: bool) -> None:
        self.low = low
        self.high = high
        self.depth = depth
        self.is_phrase = is_phrase
        self.ends_with_separator = ends_with_separator
        self.children: dict[str, PhraseNode] | None = None


class ForbiddenPhrases:
    """The phrases, folded and sorted; those without a letter or digit are left out.

    Construction costs one sort. A node is computed when an answer first reaches it, so memory is that of the texts
    plus at most MAX_CACHED_NODES nodes.
    """

    def __init__(self, phrases: Iterable[str]) -> None:
        self._sorted = sorted({folded for phrase in phrases if (folded := fold(phrase).strip())})
        self._num_cached = 0
        self._root = self._new_root()
        # Characters of the longest phrase.
        self.longest = max(map(len, self._sorted), default=0)

    def __len__(self) -> int:
        return len(self._sorted)

    def _new_root(self) -> PhraseNode:
        return PhraseNode(0, len(self._sorted), 0, False, True)

    def first_nodes(self) -> dict[str, PhraseNode]:
        """The nodes after one letter, by letter."""
        if self._num_cached > MAX_CACHED_NODES:
            self._root, self._num_cached = self._new_root(), 0
        return self.children(self._root)

    def children(self, node: PhraseNode) -> dict[str, PhraseNode]:
        """The nodes after one more character, by character."""
        if node.children is None:
            node.children = dict(self._search_children(node))
            self._num_cached += len(node.children)
        return node.children

    def _search_children(self, node: PhraseNode) -> Iterator[tuple[str, PhraseNode]]:
        depth, low = node.depth, node.low + node.is_phrase
        while low < node.high:
            beginning = self._sorted[low][: depth + 1]
            high = bisect_left(self._sorted, beginning + _LAST_CHARACTER, low, node.high)
            is_phrase = len(self._sorted[low]) == depth + 1
            yield beginning[-1], PhraseNode(low, high, depth + 1, is_phrase, beginning[-1] == SEPARATOR)
            low = high

    def open_after(self, folded: str) -> list[PhraseNode]:
        """The nodes that suffixes of a folded text have reached, each beginning with a word of the text."""
        nodes: list[PhraseNode] = []
        at_boundary = True
        for character in folded:
            following = [
                child
                for node in nodes
                if (child := self.children(node).get(character)) is not None
            ]  # fmt: skip
            if character == SEPARATOR:
                following += [node for node in nodes if node.ends_with_separator]
            elif at_boundary and (first := self.first_nodes().get(character)) is not None:
                following.append(first)
            nodes, at_boundary = following, character == SEPARATOR
        return nodes

    def phrase_at(self, node: PhraseNode) -> str:
        """The phrase that ends at a node with `is_phrase`."""
        return self._sorted[node.low]

    def is_past_half(self, node: PhraseNode, user_text: UserSuppliedText | None) -> bool:
        """Whether a text that ends at `node` holds more than half of a phrase that `user_text` doesn't allow."""
        twice_the_letters = 2 * count_letters(self._sorted[node.low][: node.depth])
        return any(
            count_letters(phrase) < twice_the_letters and not (user_text and user_text.allows(phrase))
            for phrase in self._sorted[node.low : node.high]
        )

    def contain_word(self, word: str) -> bool:
        """Whether a folded word occurs in a phrase, even as part of another word."""
        return any(word in phrase for phrase in self._sorted)
