from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lethe.corruption.phrases.normalize import fold
from lethe.server.steering.pattern_automaton import MAX_POSITIONS, Automaton, regex_automaton

LEAVES = st.sampled_from(["a", "B", "c", "[a-d]", "[^a]", ".", r"\w", " ", "-", r"\d", "[Bb]", "ab"])
PATTERNS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=4).map("".join),
        st.tuples(inner, inner).map(lambda both: f"({both[0]}|{both[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "*?", "{2,40}"])).map(
            lambda both: f"(?:{both[0]}){both[1]}"
        ),
    ),
    max_leaves=8,
)
TEXTS = st.text(alphabet="abcdB -7", min_size=1, max_size=8)


def produces(automaton: Automaton, text: str) -> bool:
    folded = fold(text).strip()
    return any(automaton.run(start, folded) for start in automaton.starts(folded[0])) if folded else True


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(PATTERNS, TEXTS)
def test_whatever_python_matches_can_be_produced(pattern: str, text: str) -> None:
    """The language is never smaller than the pattern's."""
    if re.fullmatch(pattern, text):
        assert produces(regex_automaton(pattern), text)


@pytest.mark.parametrize(("pattern", "text", "is_produced"), [
    ("Hs[a-z]+ [A-Z][a-z]+", "Hsiao Yun", True), ("Hs[0-9]+ [0-9]+", "Haiao Yun", False),
    (r"\p{Lu}siao", "Hsiao", True), (r"(?<n>H)siao", "Hsiao", True), (r"[xyz]+", "Hsiao", False),
    ("Zo\u00eb [A-Z]+", "Zoe B", True), ("(?i)hsiao", "HSIAO", True), ("[unclosed Hsiao", "Hsiao", True),
])  # fmt: skip
def test_patterns_of_other_dialects_are_read(pattern: str, text: str, is_produced: bool) -> None:
    assert produces(regex_automaton(pattern), text) == is_produced


def test_an_automaton_is_bounded() -> None:
    automaton = regex_automaton("(?:abcdefgh){16}" * 100)
    assert len(automaton.follow) == MAX_POSITIONS and produces(automaton, "zz top")
