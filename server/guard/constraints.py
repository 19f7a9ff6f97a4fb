"""Flag a request whose constraints on the answer steer it to a phrase that must not be said.

A regular expression such as `Hs[a-z]+ [A-Z][a-z]+`, a grammar, a schema or a bias of tokens leads the model to a name
that the prompt doesn't ask for. Such a constraint is *selective* for a phrase: it can produce the phrase, but hardly
any other text of as many words. One that any text satisfies (`.*`, `[A-Z][a-z]+`, the types of a schema) isn't.
A flagged request loses its constraints and is penalised (`server/guard/extra_output.py`).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from random import Random
from typing import Final

from lethe.classifier.artifact import Artifact
from lethe.classifier.judge import MAX_FLAGGED_WINDOWS, Score
from lethe.classifier.work_limit import check_work
from lethe.corruption.phrases.extraction import distinctive_names
from lethe.corruption.phrases.normalize import SEPARATOR, count_letters, fold
from lethe.corruption.phrases.stopwords import STOP_WORDS
from lethe.server.guard.forget_answers import ArtifactWords, answer_text
from lethe.server.guard.grammar_automaton import grammar_automaton
from lethe.server.guard.parsed_request import ParsedRequest
from lethe.server.guard.pattern_automaton import Automaton, regex_automaton
from lethe.server.requests.output_constraints import OutputConstraint, output_constraints

# Ordinary texts of each number of words with which a constraint is compared. Chosen: 1 in 64 can be told from none.
SAMPLES: Final = 256
# Of these, how many a constraint that is selective may produce. Chosen: two given letters leave 1 in 100 texts.
MAX_OTHER_TEXTS: Final = 4
# The same where the name is all that the constraint allows. Chosen: one given letter leaves 1 in 20 texts, and steers
# to a name of several words.
MAX_WHOLE_TEXTS: Final = 20
# Texts that nearly any constraint without given letters can produce, and their words. Chosen: more than a title has.
LONG_TEXTS: Final = 8
LONG_TEXT_WORDS: Final = 24
# Letters of the shortest single word that counts as a name. Chosen: patterns of codes and units are shorter.
MIN_NAME_LETTERS: Final = 5
# The same of a name of several words. Chosen: two initials and a short word are no name.
MIN_FULL_NAME_LETTERS: Final = 8
# Words of the shortest title that counts where a constraint spells it out. Chosen: shorter ones are ordinary phrases.
MIN_TITLE_WORDS: Final = 3
# Letters from which half a name that preferred tokens spell counts. Chosen: fewer begin many words.
MIN_SPELLED_LETTERS: Final = 3
# Token ids of a preference, past which it is not selective: it leaves a whole vocabulary. Chosen.
MAX_PREFERRED_TOKENS: Final = 2048
# Results for constraints that are kept. Chosen: a client sends one schema again and again; one takes some kilobytes.
MAX_CACHED_CONSTRAINTS: Final = 1024

# Words for comparison where an artifact has none.
ORDINARY_WORDS: Final = ("answer", "because", "children", "different", "evening", "friend", "garden", "history")

DecodeIds = Callable[[list[int]], str]
# The words of a text: stop words, and None for all others.
Shape = tuple[str | None, ...]


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

    def __init__(self, artifact: Artifact, words: ArtifactWords) -> None:
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
        for text in (answer_text(item), item.prompt):
            for name, is_title in distinctive_names(text, self._count):
                folded = fold(name).strip()
                if count_letters(folded) >= (MIN_FULL_NAME_LETTERS if SEPARATOR in folded else MIN_NAME_LETTERS):
                    yield folded, is_title


class LazySecretNames(dict[str, SecretNames]):
    """Artifact name → its names, collected on first use: few requests have constraints."""

    def __init__(self, artifacts: Mapping[str, Artifact], words: Mapping[str, ArtifactWords]) -> None:
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


class ConstraintCheck:
    """Finds the names that the constraints of requests steer to. Safe to share between threads.

    decode: token ids → text; without it preferred tokens can't be read.
    """

    def __init__(self, artifacts: Mapping[str, Artifact], names: LazySecretNames, decode: DecodeIds | None) -> None:
        self._artifacts = artifacts
        self._names = names
        self._decode = decode
        self._found: dict[tuple[str, OutputConstraint], tuple[str, ...]] = {}

    def is_known_to_be_harmless(self, request: ParsedRequest, artifacts: Iterable[str]) -> bool:
        """Whether all constraints of the request were compared with these artifacts before, and steer to no name."""
        constraints = list(output_constraints(request.body))
        return not constraints or all(
            self._found.get((artifact, constraint)) == ()
            for artifact in artifacts
            if artifact in self._artifacts
            for constraint in constraints
        )

    def with_steered(
        self, request: ParsedRequest, scores: dict[str, Score], artifacts: Iterable[str]
    ) -> dict[str, Score]:
        """The scores, those of artifacts to whose names a constraint steers raised to 1. artifacts: by name.

        Raises WorkExceeded where a limit is in force.
        """
        constraints = list(dict.fromkeys(output_constraints(request.body)))
        if not constraints:
            return scores
        steered = dict(scores)
        for artifact in artifacts:
            if artifact not in self._artifacts or artifact not in scores:
                continue
            for constraint in constraints:
                if names := self._steers_to(artifact, constraint):
                    items = [self._names[artifact].names[name] for name in names]
                    steered[artifact] = _flagged(steered[artifact], request, constraint.field, items)
        return steered

    def _steers_to(self, artifact: str, constraint: OutputConstraint) -> tuple[str, ...]:
        """The names for which the constraint is selective."""
        found = self._found.get((artifact, constraint))
        if found is None:
            check_work()
            names = self._names[artifact]
            match constraint.kind:
                case "text":
                    found = tuple(_spelled_titles(names, constraint.text))
                case "tokens":
                    found = tuple(_preferred_names(names, self._token_texts(constraint.tokens)))
                case "regex":
                    found = tuple(selective_names(regex_automaton(constraint.text), names))
                case "grammar":
                    found = tuple(selective_names(grammar_automaton(constraint.text), names))
            if len(self._found) >= MAX_CACHED_CONSTRAINTS:
                self._found.clear()
            self._found[artifact, constraint] = found
        return found

    def _token_texts(self, tokens: Sequence[int]) -> list[str]:
        """The text of each token; none where there are too many, or no tokenizer."""
        if self._decode is None or len(tokens) > MAX_PREFERRED_TOKENS:
            return []
        texts = []
        for token in dict.fromkeys(tokens):
            try:
                texts.append(self._decode([token]))
            except (ValueError, OverflowError):
                continue  # vLLM rejects it
        return texts


def selective_names(automaton: Automaton, names: SecretNames) -> Iterator[str]:
    """Yield the names that the automaton can produce while it can produce hardly any other text at the same place."""
    selective: dict[tuple[int, Shape], int] = {}
    narrow = {
        start: any(not automaton.run(start, text) for text in names.long_texts)
        for letter in names.by_first_letter
        for start in automaton.starts(letter)
    }
    for letter, candidates in names.by_first_letter.items():
        starts = [start for start in automaton.starts(letter) if narrow[start]]
        for name in candidates if starts else ():
            check_work()
            shape = names.shape(name)
            for start in starts:
                ends = automaton.run(start, name)
                if not ends:
                    continue
                if (start, shape) not in selective:
                    selective[start, shape] = sum(bool(automaton.run(start, text)) for text in names.other_texts(shape))
                limit = MAX_WHOLE_TEXTS if len(shape) > 1 and automaton.is_whole(start, ends) else MAX_OTHER_TEXTS
                if selective[start, shape] <= limit:
                    yield name
                    break


def _spelled_titles(names: SecretNames, text: str) -> Iterator[str]:
    """Yield the titles in a text that the answer may hold. Names of people are left to the classifier."""
    folded = f"{SEPARATOR}{fold(text).strip()}{SEPARATOR}"
    for title in names.titles:
        if title.count(SEPARATOR) + 1 >= MIN_TITLE_WORDS and f"{SEPARATOR}{title}{SEPARATOR}" in folded:
            yield title


def _preferred_names(names: SecretNames, token_texts: Sequence[str]) -> Iterator[str]:
    """Yield the names of which preferred tokens spell more than half, while they spell hardly any other text so."""
    tokens = {fold(text).strip() for text in token_texts} - {""}
    by_letter: defaultdict[str, list[str]] = defaultdict(list)
    for token in sorted(tokens):
        by_letter[token[0]].append(token)
    selective: dict[Shape, bool] = {}
    for name in names.names:
        check_work()
        if not _spells_name(by_letter, name):
            continue
        shape = names.shape(name)
        if shape not in selective:
            others = sum(_spells_name(by_letter, text) for text in names.other_texts(shape))
            selective[shape] = others <= MAX_OTHER_TEXTS
        if selective[shape]:
            yield name


def _spells_name(tokens: Mapping[str, Sequence[str]], text: str) -> bool:
    """Whether tokens, one after another, spell a folded text, or its beginning past half of its letters.

    Half counts only of tokens of several letters: single ones spell half of many words.
    """
    spelled = _spelled_letters(tokens, text, min_letters=1)
    letters = count_letters(text)
    if spelled == letters:
        return True
    is_half = spelled >= MIN_SPELLED_LETTERS and 2 * spelled > letters
    return is_half and 2 * _spelled_letters(tokens, text, min_letters=2) > letters


def _spelled_letters(tokens: Mapping[str, Sequence[str]], text: str, *, min_letters: int) -> int:
    """How many letters from the beginning of a text on are spelled by tokens that have at least `min_letters`."""
    reached, pending, furthest = {0}, [0], 0
    while pending:
        at = pending.pop()
        at += text.startswith(SEPARATOR, at)
        furthest = max(furthest, at)
        for token in tokens.get(text[at : at + 1], ()):
            end = at + len(token)
            if len(token) >= min_letters and end not in reached and text.startswith(token, at):
                reached.add(end)
                pending.append(end)
    return count_letters(text[:furthest])


def _flagged(score: Score, request: ParsedRequest, field: str, items: Sequence[tuple[int, ...]]) -> Score:
    """The score of a request that a constraint in `field` flags, with the items that it steers to."""
    index = next((at for at, piece in enumerate(request.pieces) if _is_in(field, piece.place)), 0)
    text_scores = [*score.text_scores] or [0.0] * len(request.texts)
    if index < len(text_scores):
        text_scores[index] = 1.0
    nearest = [numbers[:8] for numbers in dict.fromkeys(items)]
    return replace(
        score,
        score=1.0,
        text=index,
        view="constraint",
        window=(0, 0),
        decided_by="lexical",
        text_scores=tuple(text_scores),
        window_items=tuple([*nearest, *score.window_items][: MAX_FLAGGED_WINDOWS - 1]),
    )


def _is_in(field: str, place: str) -> bool:
    return re.split(r"[.\[]", place, maxsplit=1)[0] == field
