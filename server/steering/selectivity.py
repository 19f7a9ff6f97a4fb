"""Which names a constraint is selective for: it can produce the name, but hardly any other text of as many words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from lethe.classifier.work_limit import check_work
from lethe.corruption.phrases.normalize import SEPARATOR, count_letters, fold
from lethe.server.steering.pattern_automaton import Automaton
from lethe.server.steering.secret_names import SecretNames, Shape

# Of these, how many a constraint that is selective may produce. Chosen: two given letters leave 1 in 100 texts.
MAX_OTHER_TEXTS: Final = 4
# The same where the name is all that the constraint allows. Chosen: one given letter leaves 1 in 20 texts, and steers
# to a name of several words.
MAX_WHOLE_TEXTS: Final = 20
# Words of the shortest title that counts where a constraint spells it out. Chosen: shorter ones are ordinary phrases.
MIN_TITLE_WORDS: Final = 3
# Letters from which half a name that preferred tokens spell counts. Chosen: fewer begin many words.
MIN_SPELLED_LETTERS: Final = 3


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


def spelled_titles(names: SecretNames, text: str) -> Iterator[str]:
    """Yield the titles in a text that the answer may hold. Names of people are left to the classifier."""
    folded = f"{SEPARATOR}{fold(text).strip()}{SEPARATOR}"
    for title in names.titles:
        if title.count(SEPARATOR) + 1 >= MIN_TITLE_WORDS and f"{SEPARATOR}{title}{SEPARATOR}" in folded:
            yield title


def preferred_names(names: SecretNames, token_texts: Sequence[str]) -> Iterator[str]:
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
