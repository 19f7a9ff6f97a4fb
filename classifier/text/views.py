"""The readings of a text that are judged. Knows no window, encoder or score.

Always two: `raw`, the text as it came, and `normalised`, where characters that only look different are made the
same and those that nobody sees are gone. Each further one is made only where a text calls for it, by a list of
edits (`lookalikes`, `joining`, `encodings`, `ciphers`), and from the one before it, so that what was encoded
twice, or encoded and then spaced out, is read too. Its name says which edits made it: "base64", "url+leet".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lethe.classifier.text import ciphers, confusables, language_model, spelling, word_segmentation
from lethe.classifier.text.confusables import Edit, normalise
from lethe.classifier.text.encodings import ENCODINGS, hexadecimal, morse, numbers

# How often all readings are tried on what came out of them: encodings inside encodings.
ROUNDS = 4
# All further readings of a text together have at most this many times its characters, and a few.
MOST_CHARACTERS = 8
FEW_CHARACTERS = 4096

# Ordinary words and numbers, with the marks that ordinary sentences have: no signs inside words, no long runs. But for
# guesses few readings can find anything in such a text; `_is_plain` asks those.
# Each word is read in one way and kept (atomic groups, possessive repeats): what could be read in two ways would be
# tried in all combinations where a text is not plain in the end.
_PLAIN = re.compile(
    r"(?>(?!\S{24})[\"'(]{0,2}+(?>[$]?[0-9]{1,4}(?:[.,][0-9]{1,3})?+%?+(?:-[A-Za-z][a-z]{1,20}+){0,2}+"
    r"|(?>[A-Z][a-z]{1,20}+|[a-z]{2,20}+|[A-Z]{2,5}+|[A-Za-z])(?:-[A-Za-z][a-z]{1,20}+){0,2}+|[-*])"
    r"(?:'(?:s|t|d|m|ll|re|ve))?+[)\"']{0,2}+[.,;:?!]{0,3}+[)\"']?+(?:[ \n]{1,3}+|\Z))++"
)
_PLAIN_WORD = re.compile(r"[a-z]+|[0-9]{4,}")
_NUMBER = re.compile(r"[0-9]+")
_SINGLE = re.compile(r"\b[A-Za-z0-9]\b")
FEW = 2

Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]
Reading = Callable[..., list[Edit]]

# What loses nothing is read on from, round after round.
READINGS: dict[str, Reading] = {
    "hidden": confusables.hidden,
    **ENCODINGS,
    "skeleton": confusables.skeleton,
    "unmarked": word_segmentation.unmarked,
    "spaced": word_segmentation.spaced,
    "bridged": word_segmentation.bridged,
    "mirrored": ciphers.mirrored,
    "reversed": ciphers.reversed_,
    "shifted": ciphers.shifted,
}
# These are told which words to look for.
NAMES_KNOWN = frozenset({"spaced", "mirrored", "reversed", "shifted", "leet", "segmented", "repaired"})
# And these, which words are others' names.
OTHERS_KNOWN = frozenset({"spaced", "repaired"})
# Another reading of the same characters, so nothing follows from it.
ASIDE = frozenset({"mirrored"})


@dataclass(frozen=True)
class View:
    """One reading: `text`, and for each of its characters the raw ones that it stands for, starts..ends.

    changed: which characters the view before it didn't have so; a window without any was judged there.
    """

    name: str
    text: str
    starts: Integers
    ends: Integers
    changed: Flags

    @property
    def whole(self) -> bool:
        """Whether it is judged from beginning to end."""
        return bool(self.changed.all())

    def raw_span(self, start: int, end: int) -> tuple[int, int]:
        """The raw characters that the view's characters start..end stand for; of what was decoded, all."""
        if start >= end:
            return (int(self.starts[start]),) * 2 if start < len(self.text) else (0, 0)
        return int(self.starts[start]), int(self.ends[end - 1])

    def edited(self, name: str, edits: Sequence[Edit]) -> View:
        """This view with some edits made; `edits` in order, disjoint, inside the text."""
        before = np.array([0, *(end for _, end, _ in edits)])
        at = np.array([*(start for start, _, _ in edits), len(self.text)])
        sizes = np.array([*(len(plain) for _, _, plain in edits), 0])
        # Kept and new characters take turns; new ones all stand where the edit was.
        lengths = np.stack([at - before, sizes], axis=1).ravel()
        last = np.array([*(end - 1 for _, end, _ in edits), 0])
        first = np.minimum(at, max(len(self.text) - 1, 0))
        new = np.repeat(np.tile([False, True], len(at)), lengths)
        inside = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        start = np.repeat(np.stack([before, first], axis=1).ravel(), lengths) + np.where(new, 0, inside)
        end = np.where(new, np.repeat(np.stack([before, np.maximum(last, first)], axis=1).ravel(), lengths), start)
        pieces = [piece for a, (b, _, plain) in zip(before, edits, strict=False) for piece in (self.text[a:b], plain)]
        text = "".join([*pieces, self.text[before[-1] :]])
        # Where something is gone, its neighbours are what changed.
        gone = np.cumsum(lengths)[::2][:-1][sizes[:-1] == 0]
        changed = new.copy()
        if len(changed):
            changed[np.minimum(gone, len(changed) - 1)] = True
            changed[np.maximum(gone - 1, 0)] = True
        base = "" if self.name == "raw" else self.name
        named = "+".join(dict.fromkeys([*filter(None, base.split("+")), name]))
        return View(named, text, self.starts[start], self.ends[end], changed)


def views(
    text: str, vocabulary: frozenset[str] = frozenset(), familiar: Callable[[str], bool] = lambda word: False
) -> list[View]:
    """The distinct readings of a text, the raw one first; one that equals an earlier one is left out.

    vocabulary: words to look for where letters are taken apart, exchanged or mistyped, in small letters;
    familiar: see `mistyped.repaired`. The views' characters together are bounded by the text's, whatever it holds.
    """
    places = np.arange(len(text), dtype=np.int64)
    raw = View("raw", text, places, places + 1, np.ones(len(text), dtype=bool))
    found = [raw]
    normal, offsets = normalise(text)
    if normal != text:
        ends = np.maximum(offsets[1:], offsets[:-1])
        found.append(View("normalised", normal, offsets[:-1], ends, np.ones(len(normal), dtype=bool)))
    left = MOST_CHARACTERS * len(text) + FEW_CHARACTERS
    known = {view.text for view in found}

    def read(view: View, name: str, reading: Reading) -> View | None:
        nonlocal left
        known_names = {"vocabulary": vocabulary} if name in NAMES_KNOWN else {}
        others_known = {"familiar": familiar} if name in OTHERS_KNOWN else {}
        edits = reading(view.text, **known_names, **others_known)
        if not edits:
            return None
        made = view.edited(name, edits)
        if made.text in known or len(made.text) > left:
            return None
        left -= len(made.text)
        known.add(made.text)
        found.append(made)
        return made

    last = raw
    plain = _is_plain(text, vocabulary, familiar)
    for _ in range(0 if plain else ROUNDS):
        begun = last
        for name, reading in READINGS.items():
            made = read(last, name, reading)
            if made and name not in ASIDE:
                last = made
        if last is begun:
            break
    # Guesses, which could spoil what an encoding needs: at the end, each on what the one before it gave.
    last = (None if plain else read(last, "leet", confusables.leet)) or last
    last = read(last, "segmented", word_segmentation.segmented) or last
    read(last, "repaired", spelling.repaired)
    return found


def _is_plain(text: str, vocabulary: frozenset[str], familiar: Callable[[str], bool]) -> bool:
    """Whether a text is written so plainly that nothing but a guess can come of it, told at a glance."""
    if not text.isascii() or not _PLAIN.fullmatch(text):
        return False
    if len(_NUMBER.findall(text)) > FEW and (numbers(text) or hexadecimal(text)):
        return False
    if len(_SINGLE.findall(text)) > FEW and word_segmentation.spaced(text, vocabulary, familiar):
        return False
    if "-" in text and (word_segmentation.bridged(text) or morse(text)):
        return False
    return language_model.words().issuperset(_PLAIN_WORD.findall(text.lower())) or not ciphers.deciphered(
        text, vocabulary
    )
