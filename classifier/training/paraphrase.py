"""Rule-made rewordings of a request. Knows no topic, no label and no model.

They stand in for a paraphrasing model, which a fit can't rely on being installed: question frames are dropped or
replaced, common words replaced by synonyms, clauses moved, words dropped, letters mistyped, courtesies added. Words
that identify the subject (capitalised, with digits, long) stay: without them it would be another request.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

_QUESTION_WORDS = "what|which|who|where|when|why|how"
_AUXILIARIES = "is|are|was|were|do|does|did|has|have|had|can|could|would"
_FRAME = re.compile(
    r"^(?:(?:can|could|would|will) you (?:please )?(?:tell me|explain|describe|share|elaborate on|provide)|"
    rf"please|(?:{_QUESTION_WORDS})(?:'s| (?:{_AUXILIARIES}))?|(?:{_AUXILIARIES})(?: there)?)\b\s*",
    re.I,
)
_FRAMES = (
    "Tell me|Could you tell me|I would like to know|Please explain|Do you know|Give details on|Describe|"
    "What can you say about|I was wondering about|Is it known|Question:|Can you provide|Name|Explain"
)
_BEFORE = "Hi, quick question. |Please answer briefly: |I need this for work. |Ok so |Hello! "
_AFTER = " Thanks!| Explain step by step.| Answer in one sentence.| Be as exact as you can.| Please."

# Synonyms in most sentences, one group a line.
_SYNONYM_GROUPS = """full complete entire
some several various
main primary principal chief
typically usually often generally
describe explain outline
known recognised famous
influence affect shape impact
influenced affected shaped impacted
unique distinct special particular
role part function
work output writing
works pieces creations
made created produced
began started commenced
begin start commence
won received earned
notable important significant noteworthy
theme topic subject
themes topics subjects
any some
besides excluding
contribute add help
contributed added helped
approach method way
career profession
job profession occupation
example instance case
used employed applied
use employ apply
large big great
best ideal optimal
following next
result outcome consequence
cause reason
increase rise growth
decrease fall drop
mentioned named cited
which what
that which
kind type sort
found discovered identified
give provide offer
gave provided offered
show display present
shows displays presents
also additionally
called named
whole entire
almost nearly
likely probable
area field region
person individual
people individuals persons
place location
written authored penned
specific certain particular
mainly mostly primarily""".splitlines()
_SYNONYMS = {word: tuple(w for w in group.split() if w != word) for group in _SYNONYM_GROUPS for word in group.split()}
_CLAUSE_STARTS = frozenset({"of", "in", "by", "for", "with", "from", "to", "that", "which", "and", "on", "as", "about"})

# The probabilities here and in CHANGES are choices: a rewording should differ from its prompt in two or three ways and
# stay readable. This one: that a dropped question frame is replaced by another.
NEW_FRAME_PROBABILITY = 0.7
# That a word with synonyms is replaced by one.
SYNONYM_PROBABILITY = 0.7
# That a word which doesn't identify the subject is dropped.
DROP_PROBABILITY = 1 / 6
# Attempts at a distinct rewording, as a multiple of those wanted.
ATTEMPTS = 4
# Words with more letters than this are mostly content words, and identify the subject.
LONG_WORD = 9

Change = Callable[[str, np.random.Generator], str]


def reword(text: str, count: int, rng: np.random.Generator) -> list[str]:
    """Up to `count` distinct rewordings of `text`, none equal to it; fewer when a short text has no more."""
    rewordings: dict[str, None] = {}
    for _ in range(ATTEMPTS * count):
        if len(rewordings) == count:
            break
        changed = text
        for change, probability in CHANGES.items():
            if rng.random() < probability:
                changed = change(changed, rng)
        changed = " ".join(changed.split())
        if changed and changed != text:
            rewordings[changed] = None
    return list(rewordings)


def replace_frame(text: str, rng: np.random.Generator) -> str:
    """Drop the words that make the text a question ("What is", "Tell me"), mostly for other such words."""
    rest = _FRAME.sub("", text, count=1)
    return f"{_choose(_FRAMES, rng)} {rest}" if rng.random() < NEW_FRAME_PROBABILITY else rest


def replace_synonyms(text: str, rng: np.random.Generator) -> str:
    """Replace common words by synonyms, each with SYNONYM_PROBABILITY."""
    words = text.split()
    for i, word in enumerate(words):
        others = _SYNONYMS.get(word.casefold())
        if others and rng.random() < SYNONYM_PROBABILITY:
            words[i] = others[rng.integers(len(others))]
    return " ".join(words)


def drop_words(text: str, rng: np.random.Generator) -> str:
    """Drop words that don't identify the subject, each with DROP_PROBABILITY."""
    words = text.split()
    return " ".join(w for i, w in enumerate(words) if identifies(w, i) or rng.random() >= DROP_PROBABILITY) or text


def move_clause(text: str, rng: np.random.Generator) -> str:
    """Put the second part first: split before a preposition or conjunction, or after a comma, if there is one."""
    words = text.rstrip(" ?.!").split()
    starts = [i for i, w in enumerate(words) if i and (w.casefold() in _CLAUSE_STARTS or words[i - 1].endswith(","))]
    if len(words) < 4:
        return text
    cut = int(rng.choice(starts)) if starts else int(rng.integers(1, len(words)))
    return " ".join([*words[cut:], *words[:cut]])


def mistype(text: str, rng: np.random.Generator) -> str:
    """Swap two neighbouring letters of one longer word, or drop a letter."""
    words = text.split()
    longer = [i for i, word in enumerate(words) if len(word) > 4]
    if longer:
        i = int(rng.choice(longer))
        word, at = words[i], int(rng.integers(1, len(words[i]) - 2))
        words[i] = word[:at] + (word[at + 1] + word[at] if rng.random() < 0.5 else word[at]) + word[at + 2 :]
    return " ".join(words)


def add_courtesy(text: str, rng: np.random.Generator) -> str:
    """Add a courtesy or an instruction before or after the text."""
    return _choose(_BEFORE, rng) + text if rng.random() < 0.5 else text + _choose(_AFTER, rng)


def identifies(word: str, position: int) -> bool:
    """Whether a word is likely to say who or what is meant: a name, a number, a long word."""
    letters = word.strip("\"'“”‘’(),.?!:;")
    is_name = position > 0 and letters[:1].isupper()
    return is_name or len(letters) > LONG_WORD or any(character.isdigit() for character in letters)


def _choose(choices: str, rng: np.random.Generator) -> str:
    options = choices.split("|")
    return options[rng.integers(len(options))]


# The changes in the order in which they are applied, each with its probability: see NEW_FRAME_PROBABILITY.
CHANGES: dict[Change, float] = {
    replace_frame: 0.5,
    replace_synonyms: 0.6,
    drop_words: 0.4,
    move_clause: 0.2,
    mistype: 0.15,
    add_courtesy: 0.2,
}
