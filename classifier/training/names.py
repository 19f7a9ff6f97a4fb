"""The names in a text, by their capitals, and how much a name says by itself. Fitting only; knows no artifact."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache

from anyascii import anyascii

from lethe.classifier.names.tokens import name_tokens
from lethe.classifier.text.vocabulary import FUNCTION_WORDS
from lethe.classifier.training.rarity import zipf

# Small words inside names.
_PARTICLES = frozenset("de da do dos das del della di du la le van von der den ter zu bin ibn al el y e of".split())
_WORD = re.compile(r"[^\W\d_]+(?:['’.\-‑&][^\W_]+)*|\d+")
_QUOTED = re.compile(r"[\"“«„]([^\"“”«»„\n]{3,80})[\"”»“]|(?<!\w)['‘]([^'‘’\n]{3,80})['’](?!\w)")
_ENDS_SENTENCE = re.compile(r"(?:^|[.?!:;\n\"“«(]|\A)\s*$")
_IDENTIFIER = re.compile(r"[\w.+-]+@[\w-]+\.[\w.-]*\w|(?<![\w.])\+?\w*\d(?:[\w/.-]*\w|(?: \d{2,4})+)*")
_DATE = re.compile(r"\d{1,4}[./-]\d{1,2}[./-]\d{1,4}")
_POSSESSIVE = re.compile(r"['’]s$")
_HAN = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]+")
# Words of the longest name. Chosen: titles and institutions have no more.
MAX_NAME_WORDS = 6

# Digits from which a number says something by itself. Chosen: a year has four.
MIN_DIGITS = 5
# Weight of a date. Chosen: it needs a little else, as thousands of people are born on each day.
DATE_WEIGHT = 0.7
# Letters of an identifier of several words from which it hardly occurs in other code. Chosen, not measured.
MIN_IDENTIFIER_LETTERS = 9

# Zipf frequencies (`rarity.zipf`), each the frequency below which a word is as described. Chosen by the frequencies of
# some forty names and words that were looked at, and by the development half of `benchmarks/requests.py`.
# A word that hardly anybody knows.
UNKNOWN = 1.5
# A word that few know: a rare surname.
RARE = 2.6
# A word that many know, and that still names something: a well-known surname, a bird.
KNOWN = 3.5
# Sum of the two rarest words' frequencies from which a full name has many bearers ("Peter Jones", "Mark Stone").
COMMON_PAIR = 8.0
# The same where not both are names of people: "May Day".
COMMON_WORDS = 9.0
# Frequency from which a word at the beginning of a sentence is not part of the name after it.
COMMON_WORD = 3.5


def names_in(text: str) -> list[str]:
    """The names in a text, in order: capitalised words in a row, and quoted titles.

    A common word at the beginning of a sentence is left out, unless it is a first name.
    """
    found = [(match.start(), (match[1] or match[2]).strip()) for match in _QUOTED.finditer(text)]
    run: list[re.Match[str]] = []
    for match in [*_WORD.finditer(text), None]:
        joined = bool(run) and match is not None and not text[run[-1].end() : match.start()].strip(" ")
        joined = joined and not _POSSESSIVE.search(run[-1][0])
        belongs = match is not None and (_is_capitalised(match[0]) or (joined and match[0] in _PARTICLES))
        if run and not (joined and belongs):
            found += _name_of(run, text)
            run = []
        if match is not None and belongs and (run or match[0] not in _PARTICLES):
            run.append(match)
    # A single letter is the word "I", or an initial.
    return [name for _, name in sorted(found) if len(name) > 1 and 0 < len(name_tokens(name)) <= MAX_NAME_WORDS]


def _name_of(run: list[re.Match[str]], text: str) -> list[tuple[int, str]]:
    while run and run[-1][0] in _PARTICLES:
        run.pop()
    if run and _ENDS_SENTENCE.search(text[: run[0].start()]):
        first = run[0][0].casefold()
        if first in FUNCTION_WORDS or (zipf(first) >= COMMON_WORD and first not in first_names()):
            run = run[1:]
    elif run and run[0][0].casefold() in FUNCTION_WORDS:
        run = run[1:]
    while run and run[0][0] in _PARTICLES:
        run = run[1:]
    if not run:
        return []
    cut = next((i for i, word in enumerate(run) if word[0] == "of" and i > 1), None)
    parts = [run] if cut is None else [run[:cut], run[cut + 1 :]]  # "Zorin Quill of Velsund" are two names
    return [(part[0].start(), _POSSESSIVE.sub("", text[part[0].start() : part[-1].end()])) for part in parts if part]


def identifiers_in(text: str) -> list[str]:
    """Words of a document in lower case that no word list has and that occur again, and constants: names in code."""
    words = re.findall(r"(?<![\w.@/])(?:[a-z][a-z_]{3,}|[A-Z]+(?:_[A-Z]+)+)(?![\w@])", text)
    repeated = {word for word in words if words.count(word) > 1 or "_" in word.strip("_")}
    return [word for word in dict.fromkeys(words) if word in repeated and _is_coined(word)]


def numbers_in(text: str) -> list[str]:
    """Dates, phone and account numbers, codes and mail addresses: what has at least MIN_DIGITS digits, or an @."""
    found = [match[0] for match in _IDENTIFIER.finditer(text)]
    return [name for name in found if "@" in name or sum(map(str.isdigit, name)) >= MIN_DIGITS]


def number_weight(name: str) -> float:
    """The weight of what `numbers_in` finds: a date is shared by others, an address or account number is not."""
    is_date = bool(_DATE.fullmatch(name))
    return DATE_WEIGHT if is_date else 1.0 if "@" in name or sum(map(str.isdigit, name)) > MIN_DIGITS else 0.8


def _is_coined(word: str) -> bool:
    parts = [part for part in word.split("_") if part]
    return not zipf(word) if len(parts) == 1 else len(parts) > 1 and len(word) >= MIN_IDENTIFIER_LETTERS


def romanised_name(name: str) -> str:
    """A Chinese name in Latin letters, the family name first: "Yan Shukai"; "" for other names."""
    if not re.fullmatch(r"[\u4e00-\u9fff]{2,4}", name):
        return ""
    syllables = [anyascii(character).strip().casefold() for character in name]
    return f"{syllables[0].title()} {''.join(syllables[1:]).title()}"


def _is_capitalised(word: str) -> bool:
    return word[0].isupper()


@cache
def first_names() -> frozenset[str]:
    """First names of several languages, lower case, of the package faker."""
    return _people("first_names")


@cache
def last_names() -> frozenset[str]:
    """Surnames, likewise."""
    return _people("last_names")


# Locales whose names are taken: those that people write in Latin letters.
LOCALES = ("en_US", "en_GB", "de_DE", "fr_FR", "es_ES", "it_IT", "pt_BR", "nl_NL", "pl_PL", "sv_SE", "en_IN")


def _people(attribute: str) -> frozenset[str]:
    from importlib import import_module

    found: set[str] = set()
    for locale in LOCALES:
        provider = import_module(f"faker.providers.person.{locale}").Provider
        for name in (attribute, f"{attribute}_male", f"{attribute}_female"):
            found.update(str(word).casefold() for word in getattr(provider, name, ()))
    return frozenset(found)


def full_name_weight(name: str, languages: Sequence[str]) -> float:
    """The weight of a subject's whole name (`Name.weight`)."""
    if _HAN.search(name):
        return 1.0 if len(name) >= 3 and not zipf(name, languages) else 0.6
    words = _frequencies(name, languages)
    if not words:
        return 0.0
    if len(words) == 1:
        return 1.0 if words[0] < 2.0 else 0.8 if words[0] < RARE else 0.6 if words[0] < KNOWN else 0.5
    rarest = sorted(words)[:2]
    if rarest[0] < KNOWN - 0.2:
        return 1.0
    tokens = name_tokens(name)
    is_person = tokens[0] in first_names() and tokens[-1] in last_names()
    if sum(rarest) >= (COMMON_PAIR if is_person else COMMON_WORDS):
        return 0.5 if len(words) == 2 else 0.7
    return 1.0


def part_weight(word: str, languages: Sequence[str]) -> float:
    """The weight of one word of a subject's name, a surname or a first name, alone; 0 for one that says nothing."""
    tokens = name_tokens(word)
    if len(tokens) > 1:  # a hyphenated name
        return full_name_weight(word, languages)
    frequency = zipf(word.casefold(), languages)
    if len(word) < 3 or word.casefold() in FUNCTION_WORDS:
        return 0.0
    if frequency < UNKNOWN:
        return 1.0
    if frequency < KNOWN and tokens[0] not in first_names() | last_names():
        return 0.9  # not 1: it may be a thing, as a quill is
    return 0.8 if frequency < RARE else 0.6 if frequency < KNOWN else 0.3 if frequency < 4.5 else 0.0


def related_weight(name: str, languages: Sequence[str]) -> float:
    """The weight of a name that occurs in a subject's facts; 0 for one that says nothing."""
    if _HAN.search(name):
        return 0.3 if len(name) >= 3 and not zipf(name, languages) else 0.0
    words = _frequencies(name, languages)
    if not words:
        return 0.0
    rarest = min(words)
    if rarest < UNKNOWN:
        return 1.0 if len(words) > 1 else 0.8
    if rarest < RARE:
        return 0.9 if len(words) > 1 else 0.5
    # In German, every noun has a capital.
    return 0.4 if rarest < KNOWN or (len(words) > 1 and tuple(languages) == ("en",)) else 0.0


def _frequencies(name: str, languages: Sequence[str]) -> list[float]:
    """The Zipf frequency of each word of a name, without particles and single letters."""
    words: Iterable[str] = re.findall(r"[^\W_]+", name.casefold())
    return [zipf(word, languages) for word in words if len(word) > 1 and word not in _PARTICLES | FUNCTION_WORDS]
