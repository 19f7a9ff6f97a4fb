"""Finds the names of all artifacts' subjects in a text, in one pass over its tokens. Knows no window and no score."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from lethe.classifier.names.subject import Name, Subject
from lethe.classifier.names.tokens import (
    MAX_ENDING,
    MIN_INFLECTED,
    MIN_NAME_SOUND,
    MIN_SOUND,
    SCRIPT_MARK,
    is_form_of,
    name_tokens,
    sound,
)

# Weight at most of a single word that only sounds like a name, in another alphabet. Chosen: a fifth of the surnames
# sound like some common word of Russian, Greek or Hindi.
MAX_SOUND_WEIGHT = 0.6


@dataclass(frozen=True)
class NameHit:
    """A name that a text holds: the artifact, the number of its subject, the name, and its tokens first to last."""

    artifact: str
    subject: int
    name: Name
    first: int
    last: int


class NameMatcher:
    """The names of many artifacts' subjects, by their first token."""

    def __init__(self, subjects: Mapping[str, Sequence[Subject]]) -> None:
        """subjects: by artifact name. For scope "facts" only own names are looked for."""
        self._latin_by_sound = False
        self._by_first: defaultdict[str, list[tuple[tuple[str, ...], str, int, Name]]] = defaultdict(list)
        for artifact, those in subjects.items():
            for number, subject in enumerate(those):
                for name in subject.names:
                    if subject.scope == "facts" and not name.own:
                        continue
                    tokens = tuple(name_tokens(name.text))
                    if tokens:
                        self._by_first[tokens[0]].append((tokens, artifact, number, name))
                    if sounds := _sounds(tokens):
                        by_sound = name if len(sounds) > 1 else replace(name, weight=min(name.weight, MAX_SOUND_WEIGHT))
                        self._by_first[sounds[0]].append((sounds, artifact, number, by_sound))
                    # A name of another alphabet may be written in Latin letters.
                    self._latin_by_sound |= any(token.startswith(SCRIPT_MARK) for token in tokens)
        self._beginnings = frozenset(first[:MIN_INFLECTED] for first in self._by_first)
        for entries in self._by_first.values():
            entries.sort(key=lambda entry: -len(entry[0]))

    def __bool__(self) -> bool:
        return bool(self._by_first)

    def hits(self, tokens: Sequence[str]) -> list[NameHit]:
        """All names in a text's tokens; of names of one subject that overlap, the longest."""
        found = self._hits(tokens)
        if self._latin_by_sound or any(token.startswith(SCRIPT_MARK) for token in tokens):
            by_sound = [sound(t) if self._latin_by_sound or t.startswith(SCRIPT_MARK) else t for t in tokens]
            found += self._hits(by_sound)
        return _without_overlap(sorted(found, key=lambda hit: (hit.first, -hit.last)))

    def _hits(self, tokens: Sequence[str]) -> list[NameHit]:
        found: list[NameHit] = []
        by_first = self._by_first
        for first, token in enumerate(tokens):
            # Nearly all tokens begin no name: a form of a word begins with that word's first letters.
            if token[:MIN_INFLECTED] not in self._beginnings:
                continue
            taken: set[tuple[str, int]] = set()
            for root in _roots(token):
                for words, artifact, number, name in by_first.get(root, ()):
                    last = first + len(words)
                    if (artifact, number) in taken or last > len(tokens):
                        continue
                    if all(is_form_of(tokens[first + i], word) for i, word in enumerate(words)):
                        taken.add((artifact, number))
                        found.append(NameHit(artifact, number, name, first, last))
        return found


def _roots(token: str) -> Iterator[str]:
    """The first tokens of names of which a token may be a form: itself, and itself without an ending."""
    yield token
    for ending in range(1, MAX_ENDING + 1):
        if len(token) - ending >= MIN_INFLECTED:
            yield token[:-ending]


def _sounds(tokens: tuple[str, ...]) -> tuple[str, ...]:
    """The sounds of a name's tokens; () where too few consonants are left to know it by."""
    if any(not token.isascii() or token.isdigit() for token in tokens):
        return ()
    sounds = tuple(map(sound, tokens))
    consonants = sum(len(token) - 1 for token in sounds)
    enough = MIN_SOUND if len(tokens) == 1 else MIN_NAME_SOUND
    return sounds if consonants >= enough and all(len(token) > 1 for token in sounds) else ()


def _without_overlap(hits: Sequence[NameHit]) -> list[NameHit]:
    """The hits without those that begin inside an earlier and longer one of the same subject."""
    ends: dict[tuple[str, int], int] = {}
    kept = []
    for hit in hits:
        key = hit.artifact, hit.subject
        if hit.first >= ends.get(key, 0):
            ends[key] = hit.last
            kept.append(hit)
    return kept
