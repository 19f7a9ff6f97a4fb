"""The families of the attack suite: every way round the detector that is tried, by name.

A family turns a prompt into a request; the same family around a prompt that must pass measures its false
alarms. Knows no classifier and counts nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from lethe.evaluation.attacks.jailbreak_templates import Wrapper
from lethe.evaluation.attacks.perturbations import (
    DISGUISES,
    ENCODINGS,
    LETTERS,
    PLAIN_WORDS,
    SURROUNDINGS,
    UNICODE,
    Disguise,
)
from lethe.evaluation.attacks.requests import CARRIERS, Carrier, Filler, Request, chat, plain, said

LONG_TOKENS: Final = 8000
MIDDLING_TOKENS: Final = 400
# How many prompts of the sample a family takes: one in so many, since judging takes time in proportion to length.
SHORT, MIDDLING, LONG = 1, 5, 20

Attack = Callable[[str, int, Random], tuple[Request, str]]


@dataclass(frozen=True)
class Family:
    """`attack`(prompt, its number in the sample, rng) → the request, and which variant of the family it is."""

    name: str
    about: str
    one_in: int
    attack: Attack


def families(wrappers: Mapping[str, Sequence[Wrapper]], filler: Filler) -> list[Family]:
    """Every family, in the order of the report."""
    found = [_carried("plain", CARRIERS["plain"])]
    found += [_disguised(name, disguise) for name, disguise in DISGUISES.items()]
    found += [_carried(name, carrier) for name, carrier in CARRIERS.items() if name != "plain"]
    found += [_wrapped(f"wrappers:{group}", texts) for group, texts in wrappers.items()]
    before = [wrapper for texts in wrappers.values() for wrapper in texts if not wrapper.has_place]
    if before:
        found.append(_wrapped_by_turn("wrappers-as-earlier-turn", before))
    found += [
        _long("buried", "Inside a sentence of ordinary text", filler.inside_sentence(MIDDLING_TOKENS), MIDDLING),
        _long(
            "split-over-long-turns",
            "Its parts in user turns with ordinary text between",
            filler.over_many_turns(2 * MIDDLING_TOKENS),
            MIDDLING,
        ),
        _long("filler-start", "Before 8,000 tokens of ordinary text", filler.around(0.0, LONG_TOKENS), LONG),
        _long("filler-middle", "Amid 8,000 tokens of ordinary text", filler.around(0.5, LONG_TOKENS), LONG),
        _long("filler-end", "After 8,000 tokens of ordinary text", filler.around(1.0, LONG_TOKENS), LONG),
        _mixed("mix", wrappers),
    ]
    return found


def _disguised(name: str, disguise: Disguise) -> Family:
    about = (
        _first_line(disguise)
        if disguise.__doc__
        else f"{name.removesuffix('-in-sentence')} with the request to decode it".capitalize()
    )
    return Family(name, about, SHORT, lambda text, _, rng: (plain(disguise(text, rng), rng), ""))


def _carried(name: str, carrier: Carrier) -> Family:
    return Family(name, _first_line(carrier), SHORT, lambda text, _, rng: (carrier(text, rng), ""))


def _long(name: str, about: str, carrier: Carrier, one_in: int) -> Family:
    return Family(name, about, one_in, lambda text, _, rng: (carrier(text, rng), ""))


def _wrapped(name: str, wrappers: Sequence[Wrapper]) -> Family:
    def attack(text: str, number: int, rng: Random) -> tuple[Request, str]:
        wrapper = wrappers[number % len(wrappers)]
        return chat([said(wrapper.around(text))]), wrapper.name

    return Family(name, f"In {len(wrappers)} jailbreak wrappers in turn", MIDDLING, attack)


def _wrapped_by_turn(name: str, wrappers: Sequence[Wrapper]) -> Family:
    def attack(text: str, number: int, rng: Random) -> tuple[Request, str]:
        wrapper = wrappers[number % len(wrappers)]
        messages = [said(wrapper.template, rng.choice(("user", "system"))), said("I understand.", "assistant")]
        return chat([*messages, said(text)]), wrapper.name

    return Family(name, f"After {len(wrappers)} jailbreak wrappers as an earlier message", MIDDLING, attack)


def _mixed(name: str, wrappers: Mapping[str, Sequence[Wrapper]]) -> Family:
    """A disguise of the letters, and another disguise, a carrier or a wrapper around it."""
    inner = {**PLAIN_WORDS, **UNICODE, **LETTERS}
    around = {**ENCODINGS, **SURROUNDINGS}
    # A wrapped mix must stay short enough for the whole sample.
    short = [wrapper for texts in wrappers.values() for wrapper in texts if len(wrapper.template) < 800]
    splits = {key: carrier for key, carrier in CARRIERS.items() if key.startswith(("split-over", "in-"))}

    def attack(text: str, number: int, rng: Random) -> tuple[Request, str]:
        first = rng.choice(sorted(inner))
        disguised = inner[first](text, rng)
        kind = rng.choice(("around", "around", "carrier", "wrapper" if short else "carrier"))
        if kind == "around":
            second = rng.choice(sorted(around))
            return plain(around[second](disguised, rng), rng), f"{first} + {second}"
        if kind == "carrier":
            second = rng.choice(sorted(splits))
            return splits[second](disguised, rng), f"{first} + {second}"
        wrapper = rng.choice(short)
        return chat([said(wrapper.around(disguised))]), f"{first} + {wrapper.name}"

    return Family(name, "Two families, one inside the other, drawn at random", SHORT, attack)


def _first_line(function: Disguise | Carrier) -> str:
    return (function.__doc__ or "").splitlines()[0].rstrip(".")
