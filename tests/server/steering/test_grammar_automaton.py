from __future__ import annotations

import pytest

from lethe.server.steering.grammar_automaton import grammar_automaton
from tests.server.steering.test_pattern_automaton import produces

EBNF = 'root ::= "The " name ("." | "!")?  # a comment\nname ::= [H-J] "siao" tail{1,3}\ntail ::= [0-9]*'
LARK = '%import common.WS\n?start: "The " name ["."] -> answer\n!name.2: /[H-J]/ "siao"i TAIL~1..3\nTAIL: /[0-9]*/'
RECURSIVE = 'root ::= expr\nexpr ::= term ("+" term)*\nterm ::= [0-9]+ | "(" expr ")"'


@pytest.mark.parametrize("grammar", [EBNF, LARK])
def test_both_forms_of_grammars_are_read(grammar: str) -> None:
    automaton = grammar_automaton(grammar)
    assert produces(automaton, "Hsiao") and produces(automaton, "The Jsiao")
    assert not produces(automaton, "Ksiao") and not produces(automaton, "A Hsiao")


def test_a_recursive_grammar_ends() -> None:
    automaton = grammar_automaton(RECURSIVE)
    assert produces(automaton, "12")


@pytest.mark.parametrize("grammar", ["", "root ::=", "root ::= (((", 'root ::= "\\', "x: y\ny: x", "::= ::=", ")" * 9])
def test_broken_grammars_raise_nothing(grammar: str) -> None:
    grammar_automaton(grammar)
