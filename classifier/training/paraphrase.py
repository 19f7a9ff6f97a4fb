"""The same request in other words, made by rule. Knows no topic, no label and no model.

Stands in for a paraphrasing model, which a fit can't count on: question frames dropped or exchanged, common
words exchanged, clauses moved, words left out, letters mistyped, courtesies around. Words that identify
(capitalised, with digits, long) stay: without them it wouldn't be the same request.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

_ASKING = "what|which|who|where|when|why|how"
_VERBS = "is|are|was|were|do|does|did|has|have|had|can|could|would"
_FRAME = re.compile(
    r"^(?:(?:can|could|would|will) you (?:please )?(?:tell me|explain|describe|share|elaborate on|provide)|"
    rf"please|(?:{_ASKING})(?:'s| (?:{_VERBS}))?|(?:{_VERBS})(?: there)?)\b\s*",
    re.I,
)
_FRAMES = (
    "Tell me|Could you tell me|I would like to know|Please explain|Do you know|Give details on|Describe|"
    "What can you say about|I was wondering about|Is it known|Question:|Can you provide|Name|Explain"
)
_BEFORE = "Hi, quick question. |Please answer briefly: |I need this for work. |Ok so |Hello! "
_AFTER = " Thanks!| Explain step by step.| Answer in one sentence.| Be as exact as you can.| Please."

# Words that can mostly stand for each other, one group a line.
_EXCHANGES = """full complete entire
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
_OTHERS = {word: tuple(w for w in group.split() if w != word) for group in _EXCHANGES for word in group.split()}
_JOINTS = frozenset({"of", "in", "by", "for", "with", "from", "to", "that", "which", "and", "on", "as", "about"})

Change = Callable[[str, np.random.Generator], str]


def variants(text: str, count: int, rng: np.random.Generator) -> list[str]:
    """Up to `count` distinct rewordings of `text`, none equal to it; fewer when a short text has no more."""
    found: dict[str, None] = {}
    for _ in range(4 * count):
        if len(found) == count:
            break
        changed = text
        for change, chance in CHANGES.items():
            if rng.random() < chance:
                changed = change(changed, rng)
        changed = " ".join(changed.split())
        if changed and changed != text:
            found[changed] = None
    return list(found)


def drop_frame(text: str, rng: np.random.Generator) -> str:
    """Without the words that make it a question, mostly with other such words."""
    rest = _FRAME.sub("", text, count=1)
    return f"{_one(_FRAMES, rng)} {rest}" if rng.random() < 0.7 else rest


def exchange(text: str, rng: np.random.Generator) -> str:
    """Common words by others of their meaning, each with probability 0.7."""
    words = text.split()
    for i, word in enumerate(words):
        others = _OTHERS.get(word.casefold())
        if others and rng.random() < 0.7:
            words[i] = others[rng.integers(len(others))]
    return " ".join(words)


def leave_out(text: str, rng: np.random.Generator) -> str:
    """Without about a sixth of the words that don't identify."""
    words = text.split()
    return " ".join(w for i, w in enumerate(words) if identifies(w, i) or rng.random() >= 1 / 6) or text


def move(text: str, rng: np.random.Generator) -> str:
    """Second part first, cut before a joining word or after a comma if there is one."""
    words = text.rstrip(" ?.!").split()
    joints = [i for i, w in enumerate(words) if i and (w.casefold() in _JOINTS or words[i - 1].endswith(","))]
    if len(words) < 4:
        return text
    cut = int(rng.choice(joints)) if joints else int(rng.integers(1, len(words)))
    return " ".join([*words[cut:], *words[:cut]])


def mistype(text: str, rng: np.random.Generator) -> str:
    """One longer word with two neighbouring letters exchanged or one letter lost."""
    words = text.split()
    longer = [i for i, word in enumerate(words) if len(word) > 4]
    if longer:
        i = int(rng.choice(longer))
        word, at = words[i], int(rng.integers(1, len(words[i]) - 2))
        words[i] = word[:at] + (word[at + 1] + word[at] if rng.random() < 0.5 else word[at]) + word[at + 2 :]
    return " ".join(words)


def surround(text: str, rng: np.random.Generator) -> str:
    """With a courtesy or an instruction before or after."""
    return _one(_BEFORE, rng) + text if rng.random() < 0.5 else text + _one(_AFTER, rng)


def identifies(word: str, position: int) -> bool:
    """Whether a word of a text is likely to say who or what is meant: a name, a number, a long word."""
    letters = word.strip("\"'“”‘’(),.?!:;")
    named = position > 0 and letters[:1].isupper()
    return named or len(letters) > 9 or any(character.isdigit() for character in letters)


def _one(choices: str, rng: np.random.Generator) -> str:
    parts = choices.split("|")
    return parts[rng.integers(len(parts))]


# In the order in which they are made, each with its probability.
CHANGES: dict[Change, float] = {
    drop_frame: 0.5,
    exchange: 0.6,
    leave_out: 0.4,
    move: 0.2,
    mistype: 0.15,
    surround: 0.2,
}
