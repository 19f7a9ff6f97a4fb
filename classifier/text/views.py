"""The views of a text that are judged: the text as it came, normalised, and decoded. Knows no window, encoder or score.

`raw`, the text as it came, is always there; `normalised`, in NFKC and lower case without invisible characters, only
where it differs. Each further view exists only where a decoder finds something to change: the first decoder reads
`raw`, each other one the last result, so text that was encoded twice, or encoded and then spaced out, is decoded too.
A view's name lists the decoders: "base64", "url+leet".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lethe.classifier.text import ciphers, confusables, encodings, language_model, spelling, word_segmentation
from lethe.classifier.text.confusables import TextEdit, normalise_text
from lethe.classifier.text.disguises import (
    filler_words,
    masked_words,
    pig_latin,
    printable_encodings,
    records,
    spelled_letters,
    word_shapes,
)
from lethe.classifier.text.leetspeak import decode_leet
from lethe.classifier.work_limit import check_work

# Rounds in which all decoders are tried on the result of the last one. Chosen: text encoded more than four times over
# is no use to a language model either.
MAX_ROUNDS = 4
# All views but the first two may have, together, this many times the text's characters. Chosen: bounds the work.
MAX_GROWTH = 8
# And this many characters more. Chosen: lets short texts, whose views are cheap, be decoded fully.
EXTRA_CHARACTERS = 4096
# Numbers, or single characters, up to which a text can't hold a list of character codes, or letters taken apart.
# Chosen: both have at least four.
MAX_STRAY_PIECES = 2

# Ordinary words and numbers with the punctuation of ordinary sentences: no signs inside words, no long runs. In such a
# text only the few decoders that `_is_plain` asks could change anything.
# Each word can be read in one way only (atomic groups, possessive repeats): otherwise a text that turns out not to
# match would be tried in exponentially many ways.
_PLAIN = re.compile(
    r"(?>(?!\S{24})[\"'(]{0,2}+(?>[$]?[0-9]{1,4}(?:[.,][0-9]{1,3})?+%?+(?:-[A-Za-z][a-z]{1,20}+){0,2}+"
    r"|(?>[A-Z][a-z]{1,20}+|[a-z]{2,20}+|[A-Z]{2,5}+|[A-Za-z])(?:-[A-Za-z][a-z]{1,20}+){0,2}+|[-*])"
    r"(?:'(?:s|t|d|m|ll|re|ve))?+[)\"']{0,2}+[.,;:?!]{0,3}+[)\"']?+(?:[ \n]{1,3}+|\Z))++"
)
_WORD_OR_LONG_NUMBER = re.compile(r"[a-z]+|[0-9]{4,}")
_NUMBER = re.compile(r"[0-9]+")
_SINGLE_CHARACTER = re.compile(r"\b[A-Za-z0-9]\b")

Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]
Decoder = Callable[..., list[TextEdit]]

# View name → decoder, in order. The result of each is the input of the next, round after round.
DECODERS: dict[str, Decoder] = {
    "hidden": confusables.decode_hidden,
    "parted": word_segmentation.part_at_chat_markup,
    "no-markup": word_segmentation.remove_chat_markup,
    "base58": printable_encodings.decode_base58,
    "base85": printable_encodings.decode_base85,
    "rot47": printable_encodings.decode_rot47,
    **encodings.ENCODING_DECODERS,
    "braille": spelled_letters.decode_braille,
    "skeleton": confusables.replace_confusables,
    "unmasked": masked_words.fill_masks,
    "records": records.read_records,
    "unmarked": word_segmentation.remove_inline_marks,
    "spaced": word_segmentation.join_spaced_letters,
    "bridged": word_segmentation.join_punctuated_words,
    "mirrored": ciphers.decode_reversed_words,
    "reversed": ciphers.decode_reversed,
    "shifted": ciphers.decode_shifted,
}
# Decoders that guess, and could spoil what another one needs: tried once, last, each on the result of the one before.
GUESSING_DECODERS: dict[str, Decoder] = {
    "spelling-alphabet": spelled_letters.decode_spelling_alphabet,
    "pig-latin": pig_latin.decode_pig_latin,
    "leet": decode_leet,
    "restored": word_shapes.restore_words,
    "segmented": word_segmentation.split_joined_text,
    "unfilled": filler_words.remove_fillers,
    "repaired": spelling.correct_spelling,
}
# Views whose decoder takes the words to look for.
TAKES_VOCABULARY = frozenset(
    "rot47 unmasked spaced mirrored reversed shifted spelling-alphabet pig-latin leet restored segmented unfilled"
    " repaired".split()
)
# Views whose decoder takes a test for words that are right as they stand.
TAKES_KNOWN_WORDS = frozenset({"spaced", "restored", "repaired"})
# Views whose decoder takes the pairs of names to look for.
TAKES_NAME_PAIRS = frozenset({"unmasked"})
# Views on which the next decoder does not build: after "mirrored", "reversed" must read the same characters, and after
# "parted", "no-markup" must.
SIDE_VIEWS = frozenset({"mirrored", "parted"})


@dataclass(frozen=True)
class View:
    """One view of a text: `text`, and for each of its characters the raw characters starts to ends that it stands for.

    changed: (len(text),) which characters differ from the view before; a window without any was judged there.
    """

    name: str
    text: str
    starts: Integers
    ends: Integers
    changed: Flags

    @property
    def is_new_throughout(self) -> bool:
        """Whether every character differs, so that the view is judged from beginning to end."""
        return bool(self.changed.all())

    def raw_span(self, start: int, end: int) -> tuple[int, int]:
        """Return the raw characters that the view's characters start to end stand for; all of a decoded run."""
        if start >= end:
            return (int(self.starts[start]),) * 2 if start < len(self.text) else (0, 0)
        return int(self.starts[start]), int(self.ends[end - 1])

    def apply_edits(self, name: str, edits: Sequence[TextEdit]) -> View:
        """Return the view after some edits. `edits`: in order, without overlap, inside the text."""
        before = np.array([0, *(end for _, end, _ in edits)])
        at = np.array([*(start for start, _, _ in edits), len(self.text)])
        sizes = np.array([*(len(plain) for _, _, plain in edits), 0])
        # Unchanged and new characters alternate; all new ones point at the whole span that they replace.
        lengths = np.stack([at - before, sizes], axis=1).ravel()
        last = np.array([*(end - 1 for _, end, _ in edits), 0])
        first = np.minimum(at, max(len(self.text) - 1, 0))
        new = np.repeat(np.tile([False, True], len(at)), lengths)
        inside = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        start = np.repeat(np.stack([before, first], axis=1).ravel(), lengths) + np.where(new, 0, inside)
        end = np.where(new, np.repeat(np.stack([before, np.maximum(last, first)], axis=1).ravel(), lengths), start)
        pieces = [piece for a, (b, _, plain) in zip(before, edits, strict=False) for piece in (self.text[a:b], plain)]
        text = "".join([*pieces, self.text[before[-1] :]])
        # Where characters were removed, or blanks took their place, the characters on either side count as changed.
        is_removed = [not plain.strip() for _, _, plain in edits]
        removed = np.cumsum(lengths)[::2][:-1][is_removed]
        changed = new.copy()
        if len(removed) and len(changed):
            written = np.flatnonzero([not character.isspace() for character in text] if text else [])
            written = written if len(written) else np.arange(len(text))
            after = np.searchsorted(written, removed)
            changed[written[np.minimum(after, len(written) - 1)]] = True
            changed[written[np.maximum(after - 1, 0)]] = True
        earlier = [] if self.name == "raw" else self.name.split("+")
        return View("+".join(dict.fromkeys([*earlier, name])), text, self.starts[start], self.ends[end], changed)


def text_views(
    text: str,
    vocabulary: frozenset[str] = frozenset(),
    is_known_word: Callable[[str], bool] = lambda word: False,
    name_pairs: masked_words.Pairs = frozenset(),
) -> list[View]:
    """Return the distinct views of a text, the raw one first.

    vocabulary: words, lower case, to look for where letters are taken apart, exchanged or misspelt. is_known_word: see
    `classifier/text/spelling.py`. name_pairs: see `classifier/text/disguises/masked_words.py`. The views'
    characters together are bounded by MAX_GROWTH and EXTRA_CHARACTERS.
    """
    positions = np.arange(len(text), dtype=np.int64)
    raw = View("raw", text, positions, positions + 1, np.ones(len(text), dtype=bool))
    views = [raw]
    normal, offsets = normalise_text(text)
    if normal != text:
        ends = np.maximum(offsets[1:], offsets[:-1])
        views.append(View("normalised", normal, offsets[:-1], ends, np.ones(len(normal), dtype=bool)))
    characters_left = MAX_GROWTH * len(text) + EXTRA_CHARACTERS
    distinct_texts = {view.text for view in views}

    def add_view(view: View, name: str, decoder: Decoder) -> View | None:
        nonlocal characters_left
        takes_vocabulary = {"vocabulary": vocabulary} if name in TAKES_VOCABULARY else {}
        takes_known_words = {"is_known_word": is_known_word} if name in TAKES_KNOWN_WORDS else {}
        takes_name_pairs = {"pairs": name_pairs} if name in TAKES_NAME_PAIRS else {}
        check_work()
        edits = decoder(view.text, **takes_vocabulary, **takes_known_words, **takes_name_pairs)
        if not edits:
            return None
        edited = view.apply_edits(name, edits)
        if edited.text in distinct_texts or len(edited.text) > characters_left:
            return None
        characters_left -= len(edited.text)
        distinct_texts.add(edited.text)
        views.append(edited)
        return edited

    last = raw
    is_plain = _is_plain(text, vocabulary, is_known_word)
    for _ in range(0 if is_plain else MAX_ROUNDS):
        first_of_round = last
        for name, decoder in DECODERS.items():
            view = add_view(last, name, decoder)
            if view and name not in SIDE_VIEWS:
                last = view
        if last is first_of_round:
            break
    for name, decoder in GUESSING_DECODERS.items():
        if not (is_plain and name == "leet"):
            last = add_view(last, name, decoder) or last
    return views


def _is_plain(text: str, vocabulary: frozenset[str], is_known_word: Callable[[str], bool]) -> bool:
    """Whether no decoder but a guessing one can change a text: a fast test that spares most texts all of them."""
    if not text.isascii() or not _PLAIN.fullmatch(text):
        return False
    if len(_NUMBER.findall(text)) > MAX_STRAY_PIECES and (encodings.decode_numbers(text) or encodings.decode_hex(text)):
        return False
    if len(_SINGLE_CHARACTER.findall(text)) > MAX_STRAY_PIECES and word_segmentation.join_spaced_letters(
        text, vocabulary, is_known_word
    ):
        return False
    if "-" in text and (word_segmentation.join_punctuated_words(text) or encodings.decode_morse(text)):
        return False
    if records.read_records(text):
        return False
    words = _WORD_OR_LONG_NUMBER.findall(text.lower())
    return language_model.common_words().issuperset(words) or not ciphers.find_ciphered_runs(text, vocabulary)
