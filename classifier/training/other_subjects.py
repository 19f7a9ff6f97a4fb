"""The same question about somebody else: forget prompts with their names and numbers exchanged, all other words kept.

Without them the form of a question would be evidence: "what is the phone number of …" about anybody would be flagged.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

import numpy as np

from lethe.classifier.training.names import first_names, last_names, names_in

_NUMBER = re.compile(r"\d+")
_HAN = re.compile(r"[\u4e00-\u9fff]")
# Words that most invented names of things end in, so that not all strangers are people.
_THINGS = ("Group", "House", "Society", "Institute", "Project", "Works", "Hall", "Street")
# How often a name of several words is exchanged for that of a thing. Chosen: most questions are about people.
THING_SHARE = 0.2


def about_somebody_else(text: str, own_names: Sequence[str], rng: np.random.Generator) -> str:
    """The text with other names and numbers; the same text where it has neither."""
    names = {*own_names, *names_in(text)} - {""}
    for name in sorted(names, key=len, reverse=True):
        pattern = re.escape(name) if _HAN.search(name) else rf"(?<!\w){re.escape(name)}(?!\w)"
        if re.search(pattern, text, re.IGNORECASE):
            other = _other_name(name, rng)
            text = re.sub(pattern, lambda _, other=other: other, text, flags=re.IGNORECASE)  # type: ignore[misc]
    return _NUMBER.sub(lambda match: "".join(str(rng.integers(0, 10)) for _ in match[0]), text)


def _other_name(name: str, rng: np.random.Generator) -> str:
    if _HAN.search(name):
        last, first = _chinese_names()
        return _one_of(last, rng) + _one_of(first, rng)
    first, last = (sorted_names(kind) for kind in ("first", "last"))
    if len(name.split()) == 1:
        return _one_of(last if rng.random() < 0.5 else first, rng)
    if rng.random() < THING_SHARE:
        return f"{_one_of(last, rng)} {_one_of(_THINGS, rng)}"
    return f"{_one_of(first, rng)} {_one_of(last, rng)}"


@cache
def sorted_names(kind: str) -> tuple[str, ...]:
    """First names or surnames ("first", "last") in a fixed order, capitalised."""
    return tuple(sorted(word.title() for word in (first_names() if kind == "first" else last_names())))


@cache
def _chinese_names() -> tuple[tuple[str, ...], tuple[str, ...]]:
    from faker.providers.person.zh_CN import Provider

    return tuple(Provider.last_names), tuple(Provider.first_names)


def _one_of(words: Sequence[str], rng: np.random.Generator) -> str:
    return words[int(rng.integers(len(words)))]
