"""Multiple-choice prompts: find the options in a prompt, and the option that an answer chooses. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lethe.evaluation.unlearning.metrics import split_words

_OPTION = re.compile(r"^\s*\(?([A-J])[).:]\s+(\S.*?)\s*$", re.MULTILINE)
_LETTER = re.compile(
    r"(?:^|\b(?:answer|option|choice)(?: is)?:?\s*)\W{0,3}([A-J])(?=\s*(?:$|[^\w\s'’]))", re.IGNORECASE
)


@dataclass(frozen=True)
class MultipleChoice:
    """The options of a prompt by letter, and the letter of the correct one."""

    options: dict[str, str]
    correct: str


def find_choices(prompt: str, reference: str) -> MultipleChoice | None:
    """Return the prompt's options, if it lists A, B, … and the reference names or repeats one of them; else None."""
    options: dict[str, str] = {}
    for letter, text in _OPTION.findall(prompt):
        if letter == chr(ord("A") + len(options)):
            options[letter] = text
    if len(options) < 2:
        return None
    correct = chosen_letter(reference, options)
    return MultipleChoice(options, correct) if correct else None


def chosen_letter(answer: str, options: dict[str, str]) -> str | None:
    """Return the letter that an answer gives, by letter or by an option's text; None for no or several options."""
    if (match := _LETTER.search(answer.strip())) and match[1].upper() in options:
        return match[1].upper()
    text = " ".join(split_words(answer))
    letters = [letter for letter, option in options.items() if (o := " ".join(split_words(option))) and o in text]
    return letters[0] if len(letters) == 1 else None
