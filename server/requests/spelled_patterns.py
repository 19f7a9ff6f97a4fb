"""The text that a pattern or a grammar spells: its letters without the notation around them. Pure.

A question may be written as `[W]h(o|x) wrote`, which no reader of the pattern's characters finds.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser as sre_parser  # type: ignore[attr-defined]
from typing import Any, Final

from lethe.server.requests.output_constraints import OutputConstraint

# Characters of a pattern that is read, at most; a longer one is judged as it stands. Chosen: bounds the work.
MAX_PATTERN_CHARS: Final = 20_000
# Characters of a class from which on it spells a blank. Chosen: fewer stand for one letter and a decoy or two.
MIN_WIDE_CLASS: Final = 5
_GRAMMAR_STRING = re.compile(r"\"((?:[^\"\\]|\\.)*)\"|'((?:[^'\\]|\\.)*)'", re.DOTALL)


def spelled_texts(constraint: OutputConstraint) -> Iterator[str]:
    """Yield what a regular expression spells by the first and by the last of its choices, or a grammar's strings."""
    if len(constraint.text) > MAX_PATTERN_CHARS:
        return
    if constraint.kind == "grammar":
        yield "".join(a or b for a, b in _GRAMMAR_STRING.findall(constraint.text))
    elif constraint.kind == "regex":
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = sre_parser.parse(constraint.text)
            yield from dict.fromkeys(_spell(tree, choice) for choice in (0, -1))
        except (re.error, RecursionError, OverflowError, ValueError, TypeError):
            return


def _spell(tree: Any, choice: int) -> str:
    return "".join(_spell_node(kind, value, choice) for kind, value in tree)


def _spell_node(kind: Any, value: Any, choice: int) -> str:
    if kind is sre.LITERAL:
        return chr(value)
    if kind is sre.IN:
        return _spell_class(value, choice)
    if kind is sre.BRANCH:
        return _spell(value[1][choice], choice)
    if kind is sre.SUBPATTERN:
        return _spell(value[3], choice)
    if kind is sre.ATOMIC_GROUP:
        return _spell(value, choice)
    if kind in (sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT):
        return _spell(value[2], choice)
    return "" if kind is sre.AT else " "


def _spell_class(items: Any, choice: int) -> str:
    """One character of a narrow class; a blank for others."""
    characters: list[str] = []
    for kind, value in items:
        if kind is sre.LITERAL:
            characters.append(chr(value))
        elif kind is sre.RANGE and value[1] - value[0] < MIN_WIDE_CLASS:
            characters += map(chr, range(value[0], value[1] + 1))
        else:
            return " "
    return characters[choice] if 0 < len(characters) < MIN_WIDE_CLASS else " "
