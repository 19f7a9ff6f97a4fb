"""A grammar as an automaton (`pattern_automaton.py`): EBNF as xgrammar reads it, and Lark's form.

Rules are written out in each other to a fixed depth; what is deeper matches anything. So is what can't be parsed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from lethe.classifier.work_limit import check_work
from lethe.server.steering.pattern_automaton import MAX_COPIES, MAX_RULE_DEPTH, Automaton, Fragment, add_regex, repeated

_TOKEN = re.compile(
    r"(?P<comment>#[^\n]*|//[^\n]*|%[^\n]*)"
    r"|(?P<define>[?!]?[A-Za-z_][\w\-]*(?:\.-?[0-9]+)?\s*(?:::=|:(?!:)))"
    r"|(?P<string>\"(?:[^\"\\]|\\.)*\"i?|'(?:[^'\\]|\\.)*'i?)"
    r"|(?P<regex>/(?:[^/\\\n]|\\.)+/[imslux]*)"
    r"|(?P<class>\[(?:[^\]\\]|\\.)*\])"
    r"|(?P<count>\{\s*[0-9]+\s*(?:,\s*[0-9]*\s*)?\}|~\s*[0-9]+(?:\s*\.\.\s*[0-9]+)?)"
    r"|(?P<alias>->\s*\w+)"
    r"|(?P<name>[A-Za-z_][\w\-]*)"
    r"|(?P<sign>[()|*+?\[\]])",
    re.DOTALL,
)
_NUMBER = re.compile(r"[0-9]+")
# Nested groups of a rule. Chosen: bounds the recursion; deeper ones match anything.
MAX_GROUP_DEPTH: Final = 40

Tokens = list[tuple[str, str]]


def grammar_automaton(grammar: str) -> Automaton:
    """The automaton of a grammar: of every rule that no other rule uses, and of the rule `root` or `start`."""
    return _Grammar(grammar).automaton


class _Grammar:
    def __init__(self, grammar: str) -> None:
        self.automaton = Automaton()
        self._is_lark = "::=" not in grammar
        self._rules = self._read_rules(grammar)
        used = {text for tokens in self._rules.values() for kind, text in tokens if kind == "name"}
        roots = [name for name in self._rules if name in ("root", "start") or name not in used]
        for name in roots or list(self._rules):
            self.automaton.whole.append(self._rule(name, 0))

    def _read_rules(self, grammar: str) -> dict[str, Tokens]:
        """Name of each rule → its tokens."""
        rules: dict[str, Tokens] = {}
        tokens: Tokens = []
        for match in _TOKEN.finditer(grammar):
            kind, text = str(match.lastgroup), match[0]
            if kind == "define":
                name = re.split(r"[\s:.]", text.lstrip("?!"), maxsplit=1)[0]
                tokens = rules.setdefault(name, [])
                if tokens:
                    tokens.append(("sign", "|"))
            elif kind == "class" and self._is_lark:
                # Lark's brackets hold something optional.
                inner = self._read_rules(f"x: {text[1:-1]}").get("x", [])
                tokens += [("sign", "("), *inner, ("sign", ")"), ("sign", "?")]
            elif kind not in ("comment", "alias"):
                tokens.append((kind, text))
        return rules

    def _rule(self, name: str, depth: int) -> Fragment:
        check_work()
        if depth > MAX_RULE_DEPTH or name not in self._rules:
            return self.automaton.anything()
        return _Reader(self._rules[name], self.automaton, lambda used: self._rule(used, depth + 1)).alternatives(0)


class _Reader:
    """Reads the tokens of one rule. rule: adds the rule of a name to the automaton."""

    def __init__(self, tokens: Tokens, automaton: Automaton, rule: Callable[[str], Fragment]) -> None:
        self._tokens = tokens
        self._automaton = automaton
        self._rule = rule
        self._at = 0

    def alternatives(self, depth: int) -> Fragment:
        """Read sequences that `|` separates, up to a closing parenthesis or the end."""
        parts, sequence = list[Fragment](), list[Fragment]()
        while self._at < len(self._tokens) and self._tokens[self._at] != ("sign", ")"):
            if self._tokens[self._at] == ("sign", "|"):
                self._at += 1
                parts.append(self._automaton.sequence(sequence))
                sequence = []
                continue
            start = self._at
            part = self._item(depth)
            low, high = self._count()
            if (low, high) != (1, 1):
                part = self._repeat(part, start, low, high, depth)
            sequence.append(part)
        parts.append(self._automaton.sequence(sequence))
        return parts[0] if len(parts) == 1 else self._automaton.either(parts)

    def _repeat(self, part: Fragment, start: int, low: int, high: int | None, depth: int) -> Fragment:
        """The item that begins at token `start`, several times; `part` is its first copy."""
        end, first = self._at, [part]

        def again() -> Fragment:
            if first:
                return first.pop()
            self._at = start
            copy = self._item(depth)
            self._at = end
            return copy

        return repeated(self._automaton, low, high, again)

    def _item(self, depth: int) -> Fragment:
        kind, text = self._tokens[self._at]
        self._at += 1
        if kind == "string":
            return self._automaton.text(_unescape(text.rstrip("i")[1:-1]))
        if kind == "regex":
            return add_regex(self._automaton, text[1 : text.rindex("/")])
        if kind == "class":
            return add_regex(self._automaton, text)
        if kind == "name":
            return self._rule(text)
        if (kind, text) == ("sign", "(") and depth < MAX_GROUP_DEPTH:
            inner = self.alternatives(depth + 1)
            self._at += 1
            return inner
        return self._automaton.anything()

    def _count(self) -> tuple[int, int | None]:
        """How often the item before may occur, from the quantifier that follows."""
        if self._at >= len(self._tokens):
            return 1, 1
        kind, text = self._tokens[self._at]
        counts: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        if kind == "sign" and text in counts:
            self._at += 1
            return counts[text]
        if kind != "count":
            return 1, 1
        self._at += 1
        numbers = [min(int(number[:4]), 4 * MAX_COPIES) for number in _NUMBER.findall(text)]
        if len(numbers) == 2:
            return numbers[0], numbers[1]
        return numbers[0], None if "," in text else numbers[0]


def _unescape(text: str) -> str:
    """A string of a grammar, with its escapes read."""
    try:
        return text.encode("latin-1", "backslashreplace").decode("unicode_escape")
    except UnicodeDecodeError:
        return text
