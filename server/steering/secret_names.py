"""The names and titles in an artifact's items: what a constraint on the answer may steer to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from random import Random
from typing import Final, Protocol

from lethe.classifier.artifact import Artifact
from lethe.classifier.work_limit import check_work
from lethe.corruption.phrases.extraction import distinctive_names
from lethe.corruption.phrases.normalize import SEPARATOR, count_letters, fold
from lethe.corruption.phrases.stopwords import STOP_WORDS

# Ordinary texts of each number of words with which a constraint is compared. Chosen: 1 in 64 can be told from none.
SAMPLES: Final = 256
# Texts that nearly any constraint without given letters can produce. Chosen: a few, since one is hardly ever enough to
# tell, and each costs a run.
LONG_TEXTS: Final = 8
# Words of each. Chosen: more than a title has.
LONG_TEXT_WORDS: Final = 24
# Letters of the shortest single word that counts as a name. Chosen: patterns of codes and units are shorter.
MIN_NAME_LETTERS: Final = 5
# The same of a name of several words. Chosen: two initials and a short word are no name.
MIN_FULL_NAME_LETTERS: Final = 8
# Words for comparison where an artifact has none.
ORDINARY_WORDS: Final = ("answer", "because", "children", "different", "evening", "friend", "garden", "history")

# The words of a text: stop words, and None for all others.
Shape = tuple[str | None, ...]


class CountsWords(Protocol):
    """How often words occur in ordinary text."""

    def count(self, word: str) -> int:
        """How often a word occurs; 0 for a rare one."""


@dataclass(frozen=True)
class SecretNames:
    """The names and titles in an artifact's items, folded, each with the items that hold it; words for comparison.

    titles: those of `names` that are titles.
    """

    names: Mapping[str, tuple[int, ...]]
    titles: frozenset[str]
    words: Sequence[str]
    _other_texts: dict[Shape, list[str]] = field(default_factory=dict)

    @cached_property
    def by_first_letter(self) -> Mapping[str, list[str]]:
        """First character → the names that begin with it."""
        result: defaultdict[str, list[str]] = defaultdict(list)
        for name in self.names:
            result[name[0]].append(name)
        return result

    @cached_property
    def long_texts(self) -> list[str]:
        """A few texts of more words than any name has. What can produce them all can produce nearly anything."""
        rng = Random(0)
        return [SEPARATOR.join(rng.choices(self.words, k=LONG_TEXT_WORDS)) for _ in range(LONG_TEXTS)]

    def shape(self, name: str) -> Shape:
        """The stop words of a folded name, and None for each of its other words."""
        return tuple(word if word in STOP_WORDS else None for word in name.split(SEPARATOR))

    def other_texts(self, shape: Shape) -> list[str]:
        """Ordinary texts of a shape, always the same."""
        if shape not in self._other_texts:
            rng = Random(len(shape))
            self._other_texts[shape] = [
                SEPARATOR.join(word or rng.choice(self.words) for word in shape) for _ in range(SAMPLES)
            ]
        return self._other_texts[shape]


class _NamesOfArtifact:
    """Collects the names of an artifact. `collect` may be interrupted, and then goes on where it stopped."""

    def __init__(self, artifact: Artifact, words: CountsWords) -> None:
        self._artifact = artifact
        self._count = words.count
        self._of_item: dict[int, list[tuple[str, bool]]] = {}

    def collect(self) -> SecretNames:
        """All names. Raises WorkExceeded or WorkCancelled where a limit is in force."""
        items: defaultdict[str, dict[int, None]] = defaultdict(dict)
        titles = set[str]()
        for number in self._artifact.live_items:
            if number not in self._of_item:
                check_work()
                self._of_item[number] = list(self._names_of(number))
            for name, is_title in self._of_item[number]:
                items[name][number] = None
                titles |= {name} if is_title else set()
        names = {name: tuple(numbers) for name, numbers in sorted(items.items())}
        words = [word for word in self._artifact.words if word.isascii() and word.isalpha() and len(word) > 1]
        return SecretNames(names, frozenset(titles), words or ORDINARY_WORDS)

    def _names_of(self, number: int) -> Iterator[tuple[str, bool]]:
        """The names of one item, folded; True for titles."""
        item = self._artifact.items[number]
        for text in (item.answer or item.text, item.prompt):
            for name, is_title in distinctive_names(text, self._count):
                folded = fold(name).strip()
                if count_letters(folded) >= (MIN_FULL_NAME_LETTERS if SEPARATOR in folded else MIN_NAME_LETTERS):
                    yield folded, is_title


class LazySecretNames(dict[str, SecretNames]):
    """Artifact name → its names, collected on first use: few requests have constraints."""

    def __init__(self, artifacts: Mapping[str, Artifact], words: Mapping[str, CountsWords]) -> None:
        super().__init__()
        self._artifacts = artifacts
        self._words = words

        self._unfinished: dict[str, _NamesOfArtifact] = {}

    def __missing__(self, name: str) -> SecretNames:
        if name not in self._unfinished:
            self._unfinished[name] = _NamesOfArtifact(self._artifacts[name], self._words[name])
        names = self.setdefault(name, self._unfinished[name].collect())
        self._unfinished.pop(name, None)
        return names
