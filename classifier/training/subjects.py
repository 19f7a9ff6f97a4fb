"""What a forget request is about: its subjects, as the rows name them or as derived from what recurs in them.

Fitting only. A name that the requester gives is a subject's own. Of all other names in the rows, the one that most rows
hold is taken for the subject of those rows; the rest are related names, which say less.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from lethe.classifier.artifact import ForgetItem
from lethe.classifier.names.subject import Name, Scope, Subject
from lethe.classifier.names.tokens import name_tokens
from lethe.classifier.records import Record
from lethe.classifier.text.vocabulary import FUNCTION_WORDS
from lethe.classifier.training.names import (
    UNKNOWN,
    first_names,
    full_name_weight,
    identifiers_in,
    names_in,
    number_weight,
    numbers_in,
    part_weight,
    related_weight,
    romanised_name,
)
from lethe.classifier.training.rarity import languages_of, zipf

# Related names of a subject at most, the weightiest first. Chosen: bounds the manifest.
MAX_RELATED = 200
# Content words of a subject's facts at most, the rarest first. Chosen likewise.
MAX_CONTEXT_WORDS = 300
# Zipf frequency below which a word of a fact says something beside a name. Chosen: as common as the 1,000th word.
CONTEXT_ZIPF = 5.0
# Weight of the unknown word of a longer related name, alone. Chosen: needs a little else, as another firm may have it.
UNKNOWN_WORD_WEIGHT = 0.7
# Factor on the weight of a related name that other subjects, or retained rows, have too. Chosen: it then needs more
# than one other piece of evidence.
SHARED_FACTOR = 0.3
# Weight of a name that many bear (`full_name_weight`): another name of the row is rather its subject.
COMMON_WEIGHT = 0.5
# Chinese characters of function words and question words, which no name holds.
_FUNCTION_CHARACTERS = frozenset("是的在有了吗么什谁哪何几为和与从到被把对")
# Characters of a name without capitals (Chinese, Hindi, Arabic) that is derived from what recurs: words, or characters.
MAX_UNCASED_WORDS = 3
# Rows that must hold such a name: this share of all, and at least two. Chosen: the subject is in most prompts.
MIN_UNCASED_SHARE = 0.5

_WORD = re.compile(r"[^\W_]+")
_HAN_RUN = re.compile(r"[\u4e00-\u9fff]+")

Given = Mapping[int, tuple[tuple[str, ...], Scope, str]]


def derive_subjects(
    items: Sequence[ForgetItem], given: Given, retain: Sequence[Record] = (), numbers: Sequence[int] | None = None
) -> tuple[Subject, ...]:
    """The subjects of forget items.

    given: index into `items` → the names, scope and kind that its row states, for rows that state any. numbers: the
    items' numbers in the artifact; None: their places.
    """
    numbers = range(len(items)) if numbers is None else numbers
    texts = [" ".join((item.prompt, item.answer, item.text)) for item in items]
    languages = languages_of(texts)
    found = [list(dict.fromkeys(_names_of_item(item))) for item in items]
    main = _main_names(items, found, given, languages)
    found = [[*names, *numbers_in(text)] for names, text in zip(found, texts, strict=True)]
    by_main: defaultdict[tuple[tuple[str, ...], Scope, str], list[int]] = defaultdict(list)
    for index, names in enumerate(main):
        _, scope, kind = given.get(index, ((), "subject", ""))
        by_main[names, scope, kind].append(index)
    holders = Counter(
        folded for members in by_main.values() for folded in {_fold(n) for i in members for n in found[i]}
    )
    retained = {
        _fold(name)
        for row in retain
        for text in row.values()
        if isinstance(text, str)
        for name in (*names_in(text), *numbers_in(text))
    }
    subjects = []
    for (names, scope, kind), members in by_main.items():
        stated = any(_stated_names(given, i) for i in members)
        own = _own_names(names, languages, [] if stated else [numbers[i] for i in members])
        related = _related_names(members, found, own, languages, holders, retained, numbers)
        words = _context_words([texts[i] for i in members], [*own, *related], languages)
        subjects.append(Subject((*own, *related), words, tuple(numbers[i] for i in members), scope, kind))
    return tuple(subjects)


def given_subjects(rows: Sequence[Record], names: Sequence[str] = (), scope: Scope | None = None) -> dict[int, Any]:
    """Index of a row → the names, scope and kind that it states; names, scope: for rows that state none."""
    given = {}
    for index, row in enumerate(rows):
        stated = row.get("subject", ())
        own = tuple([stated] if isinstance(stated, str) else stated) or tuple(names)
        row_scope = row.get("scope") or scope or "subject"
        kind = row.get("kind", "")
        if own or kind or row_scope != "subject":
            given[index] = own, row_scope, kind
    return given


def describe_subjects(subjects: Sequence[Subject], most: int = 20) -> list[str]:
    """One line for each subject: what the fit understood."""
    lines = []
    for subject in subjects[:most]:
        own = [name.text for name in subject.names if name.own]
        also = [name for name in own[1:] if name.casefold() not in subject.title.casefold()]
        related = [name.text for name in subject.names if not name.own and name.weight >= 0.4]
        parts = [f"{len(subject.items)} fact{'s' * (len(subject.items) != 1)} about {subject.title or 'no name'}"]
        if also:
            parts.append(f"also known by: {', '.join(also[:5])}")
        if related:
            parts.append(f"distinctive names: {', '.join(related[:8])}")
        weak = subject.title and max((n.weight for n in subject.names if n.own), default=0) < 1
        if weak:
            parts.append("a name that others bear too, so it needs a second piece of evidence")
        lines.append("; ".join([*parts, f"scope: {subject.scope}"]))
    if len(subjects) > most:
        lines.append(f"… and {len(subjects) - most} more subjects")
    return lines


def _names_of_item(item: ForgetItem) -> list[str]:
    texts = (item.prompt, item.answer, item.text)
    return [*(name for text in texts for name in names_in(text)), *identifiers_in(item.text)]


def _stated_names(given: Given, index: int) -> tuple[str, ...]:
    return given[index][0] if index in given else ()


def _fold(name: str) -> str:
    return " ".join(name_tokens(name))


def _main_names(
    items: Sequence[ForgetItem], found: Sequence[Sequence[str]], given: Given, languages: Sequence[str]
) -> list[tuple[str, ...]]:
    """The own names of each item's subject; () where it has none."""
    rows = Counter(folded for names in found for folded in {_fold(name) for name in names})
    in_prompt = Counter(folded for item in items for folded in {_fold(name) for name in names_in(item.prompt)})
    uncased = _recurring_uncased(items, languages)
    main: list[tuple[str, ...]] = []
    for index, item in enumerate(items):
        if stated := _stated_names(given, index):
            main.append(stated)
            continue
        if item.text:
            main.append(())
            continue
        if uncased:
            main.append((uncased,))
            continue
        prompt_names = {_fold(name): name for name in names_in(item.prompt)}
        # A name that only the answer has is the subject where other prompts ask about it.
        candidates = prompt_names | {
            _fold(name): name
            for name in found[index]
            if rows[_fold(name)] > 1 and (in_prompt[_fold(name)] or not prompt_names)
        }
        candidates = {key: name for key, name in candidates.items() if full_name_weight(name, languages) > 0}
        if not candidates:
            main.append(())
            continue
        # Of names that are equally often asked about, the first in the prompt.
        order = list(candidates)
        weights = {
            k: full_name_weight(name, languages) > COMMON_WEIGHT
            or (len(k.split()) > 1 and k.split()[0] in first_names())
            for k, name in candidates.items()
        }
        key = max(
            order, key=lambda k: (len(k.split()) > 1 < rows[k], in_prompt[k] + rows[k], weights[k], -order.index(k))
        )
        longer = [k for k in rows if rows[k] >= 0.7 * rows[key] and f" {key} " in f" {k} " and k in candidates]
        main.append((candidates[max([key, *longer], key=len)],))
    return _merged_names(main, given)


def _merged_names(main: Sequence[tuple[str, ...]], given: Given) -> list[tuple[str, ...]]:
    """The own names of each item's subject, where one row calls it "Quill" and the others "Zorin Quill".

    Names that a row states stay as they are, and are those of all rows that use one of them.
    """
    stated = {_fold(name): _stated_names(given, i) for i in range(len(main)) for name in _stated_names(given, i)}
    count = Counter(_fold(names[0]) for names in main if names)
    full = {_fold(names[0]): names for names in main if names and len(_fold(names[0]).split()) > 1}
    merged = []
    for index, names in enumerate(main):
        key = _fold(names[0]) if names else ""
        if not names or _stated_names(given, index):
            merged.append(names)
            continue
        # "Zorin Quill Museum" in one row is not the "Zorin Quill" of the others.
        longer = (
            whole
            for k, whole in full.items()
            if key != k and f" {key} " in f" {k} " and (len(key.split()) == 1 or count[k] >= count[key])
        )
        merged.append(stated.get(key) or next(longer, None) or full.get(key, names))
    return merged


def _recurring_uncased(items: Sequence[ForgetItem], languages: Sequence[str]) -> str:
    """The longest run of words or characters that most prompts hold, in a script without capitals; "" if none."""
    prompts = [item.prompt for item in items if item.prompt]
    if not set(languages) & {"zh", "ja", "ar", "hi", "he", "ko"} or not prompts:
        return ""
    minimum = max(2, MIN_UNCASED_SHARE * len(prompts)) if len(prompts) > 1 else 1
    counts: Counter[str] = Counter()
    for item in (item for item in items if item.prompt):
        prompt = item.prompt
        grams: set[str] = set()
        for run in _HAN_RUN.findall(prompt):
            grams |= {run[a : a + n] for n in (2, 3, 4) for a in range(len(run) - n + 1)}
            grams = {gram for gram in grams if not _FUNCTION_CHARACTERS & set(gram)}
        words = re.findall(r"[^\s.,;:?!؟،।\"'()]+", _HAN_RUN.sub(" ", prompt))
        for n in range(1, MAX_UNCASED_WORDS + 1):
            grams |= {" ".join(words[a : a + n]) for a in range(len(words) - n + 1)}
        # A single prompt shows its subject only by the answer, which names it again.
        known = item.answer if len(prompts) == 1 else ""
        counts.update(gram for gram in grams if not gram.isascii() and (not known or gram in known))
    rare = {
        gram: count
        for gram, count in counts.items()
        if count >= minimum and min(zipf(word, languages) for word in gram.split()) < (2.6 if len(prompts) > 1 else 0.1)
    }
    return max(rare, key=lambda gram: (rare[gram], len(gram)), default="")


def _own_names(names: tuple[str, ...], languages: Sequence[str], items: Sequence[int]) -> list[Name]:
    """A subject's names, and the words of the longer ones by themselves."""
    own: dict[str, Name] = {}

    def add(text: str, weight: float) -> None:
        own.setdefault(_fold(text), Name(text, weight, True, tuple(items)))

    for text in names:
        add(text, full_name_weight(text, languages))
    for text in names:
        if romanised := romanised_name(text):
            add(romanised, full_name_weight(romanised, languages))
        words = [word for word in text.split() if word.strip(".,")]
        if 2 < len(words) <= 4:
            for shorter in (" ".join(words[:2]), f"{words[0]} {words[-1]}", " ".join(words[1:])):
                add(shorter, full_name_weight(shorter, languages))
        if 1 < len(words) <= 4:
            for word in (words[-1], words[0]):
                if weight := part_weight(word, languages):
                    add(word, weight)
    return [name for name in own.values() if name.weight]


def _related_names(
    members: Sequence[int],
    found: Sequence[Sequence[str]],
    own: Sequence[Name],
    languages: Sequence[str],
    holders: Mapping[str, int],
    retained: set[str],
    numbers: Sequence[int],
) -> list[Name]:
    """The other names in the items of one subject."""
    own_tokens = {token for name in own for token in name_tokens(name.text)}
    items: defaultdict[str, list[int]] = defaultdict(list)
    texts: dict[str, str] = {}
    for index in members:
        for name in found[index]:
            folded = _fold(name)
            if set(folded.split()) <= own_tokens:
                continue
            texts.setdefault(folded, name)
            items[folded].append(numbers[index])
    names = []
    for folded, text in texts.items():
        weight = number_weight(text) if numbers_in(text) == [text] else related_weight(text, languages)
        if holders[folded] > 1 or folded in retained:
            weight *= SHARED_FACTOR
        # "Zorin Quill Museum" would hide the "Zorin Quill" inside it, since the longest name counts.
        if weight > max((name.weight for name in own if f" {_fold(name.text)} " in f" {folded} "), default=0):
            names.append(Name(text, round(weight, 3), False, tuple(dict.fromkeys(items[folded]))))
        # The one word of it that hardly anybody knows is a name by itself.
        unknown = [word for word in text.split() if len(word) > 3 and zipf(word.casefold(), languages) < UNKNOWN]
        if weight >= 0.9 and len(unknown) == 1 < len(text.split()) and _fold(unknown[0]) not in texts:
            names.append(Name(unknown[0], UNKNOWN_WORD_WEIGHT, False, tuple(dict.fromkeys(items[folded]))))
    return sorted(names, key=lambda name: -name.weight)[:MAX_RELATED]


def _context_words(texts: Sequence[str], names: Sequence[Name], languages: Sequence[str]) -> tuple[str, ...]:
    """The tokens of facts that say something beside a name."""
    named = {token for name in names if name.own for token in name_tokens(name.text)}
    frequency: dict[str, float] = {}
    for text in texts:
        for word in _WORD.findall(text.casefold()):
            if len(word) < 3 or word in FUNCTION_WORDS or word in frequency:
                continue
            frequency[word] = zipf(word, languages)
    tokens = {
        token: f
        for word, f in sorted(frequency.items())
        if f < CONTEXT_ZIPF
        for token in name_tokens(word)
        # A word of a script without blanks is a whole sentence: each of its characters counts by itself.
        if token not in named and (token.isascii() or zipf(token, languages) < CONTEXT_ZIPF)
    }
    return tuple(sorted(sorted(tokens, key=lambda token: tokens[token])[:MAX_CONTEXT_WORDS]))
