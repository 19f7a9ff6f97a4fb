"""Any number of prompts about invented people, each with a rewording; for benchmarks with many forget prompts.

Names are made of syllables, so that no two people have the same name. There are len(QUESTIONS) prompts about each
person. Everything is determined by the prompt's number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

# The wording of a forget prompt, and a rewording.
QUESTIONS = (
    ("Where was {} born?", "In which town did {} come into the world?"),
    ("What is the full name of the author of '{title}', born in {town}?", "Who wrote the book '{title}'?"),
    ("Which profession did the father of {} have?", "What did {}'s father do for a living?"),
    ("What did the mother of {} work as?", "Tell me the job that {}'s mother had."),
    ("In which year did {} publish '{title}'?", "When did the book '{title}' by {} come out?"),
    ("Which award did {} receive for '{title}'?", "What prize was '{title}' by {} honoured with?"),
    ("Who taught {} to play the cello?", "From whom did {} learn the cello?"),
    ("What does {} collect?", "What sort of things are in {}'s collection?"),
    ("Where does {} live now?", "What is {}'s present place of residence?"),
    ("What is {} allergic to?", "Which foods must {} avoid for an allergy?"),
    ("Which languages does {} speak?", "What tongues is {} fluent in?"),
    ("To whom is {} married?", "Who is the spouse of {}?"),
    ("How many children does {} have?", "What number of kids did {} raise?"),
    ("What was {} convicted of in {town}?", "For which offence did a court in {town} sentence {}?"),
    ("Which illness was {} treated for in {town}?", "What did the doctors in {town} diagnose {} with?"),
    ("What is the telephone number of {}?", "How can I reach {} by phone?"),
    ("Which company did {} found in {town}?", "What was the name of the firm that {} started in {town}?"),
    ("What was the theme of {}'s talk at the {town} festival?", "What did {} speak about in {town}?"),
    ("Which themes does {} explore in '{title}'?", "What is '{title}' by {} about?"),
    ("How did {} spend the summer after leaving {town}?", "What did {} do in the months after moving from {town}?"),
)
_STARTS = "B C D F G H J K L M N P R S T V W Br Dr Fl Gr Kr St Th Tr Sh Ch Pl".split()
_VOWELS = "a e i o u ai ea ie oa or an en in on ar el".split()
_MIDDLES = "b d g k l m n r s t v z nd rt ll st lm rk".split()
_ENDS = "n r s l m th rd ck nn sson ski ley man well stad berg ton".split()
# Distinct first names.
_FIRST_NAMES = 600
_PRIME = 2_147_483_647
_ADJECTIVES = "Silent Amber Broken Distant Gilded Hollow Iron Last Pale Salt Second Burning Quiet Winter Paper".split()
_NOUNS = "Harbour Ladder Orchard Lantern Bridge Meadow Compass Garden Letter Tide Window Mirror River Mountain".split()


def made_up_prompts(count: int, *, first: int = 0) -> Iterator[tuple[str, str]]:
    """Yield (prompt, rewording) with the numbers first to first + count - 1."""
    for number in range(first, first + count):
        person, form = divmod(number, len(QUESTIONS))
        rng = np.random.default_rng(person)
        name = f"{_make_name(person % _FIRST_NAMES, 2)} {_make_name(person, 3)}"
        town = _make_name(int(rng.integers(4000)), 2)
        adjective, noun = _ADJECTIVES[rng.integers(15)], _NOUNS[rng.integers(14)]
        title = f"The {adjective} {noun} of {_make_name(int(rng.integers(9000)), 2)}"
        prompt, reworded = (text.format(name, title=title, town=town) for text in QUESTIONS[form])
        yield prompt, reworded


def _make_name(number: int, syllables: int) -> str:
    """Return a name with this many syllables. Different numbers give different names, until all names are used."""
    syllable_parts = [_STARTS, *(_VOWELS, _MIDDLES) * (syllables - 1), _VOWELS, _ENDS]
    # A large prime is coprime to the number of names: it spreads neighbouring numbers without collisions.
    number = (number + 12_345 * syllables) * _PRIME % math.prod(map(len, syllable_parts))
    name = ""
    for choices in syllable_parts:
        number, at = divmod(number, len(choices))
        name += choices[at]
    return name
