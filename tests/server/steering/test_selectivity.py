from __future__ import annotations

from lethe.server.steering.pattern_automaton import regex_automaton
from lethe.server.steering.secret_names import SecretNames
from lethe.server.steering.selectivity import preferred_names, selective_names, spelled_titles

WORDS = [
    a + b for a in ("bal", "cor", "den", "fil", "gar", "hol", "kem", "lom") for b in ("an", "este", "ik", "o", "un")
]
NAMES = SecretNames({"vardholm teldric": (1,), "the velsund letters": (2,), "teldric": (1,)},
                    frozenset({"the velsund letters"}), WORDS)  # fmt: skip


def selective(pattern: str) -> list[str]:
    return list(selective_names(regex_automaton(pattern), NAMES))


def test_a_pattern_that_any_text_satisfies_is_not_selective() -> None:
    for pattern in (".*", r"\w+ \w+", "[A-Z][a-z]+ [A-Z][a-z]+", "The [A-Z][a-z]+ [A-Z][a-z]+", "[a-z ]{5,}", "[0-9]+"):
        assert selective(pattern) == []


def test_a_generic_part_beside_it_does_not_hide_a_name() -> None:
    for pattern in ("Va[a-z]+ T[a-z]+", "[A-Z][a-z]+ [A-Z][a-z]+ and Va[a-z]+ [A-Z][a-z]+", "([a-z]+|Va[a-z]+ T.*)"):
        assert "vardholm teldric" in selective(pattern)


def test_titles_count_where_they_are_spelled_out() -> None:
    assert list(spelled_titles(NAMES, "one\nThe Velsund Letters.")) == ["the velsund letters"]
    assert list(spelled_titles(NAMES, "The Velsund Letter\nVardholm Teldric")) == []


def test_tokens_in_any_order_spell_a_name() -> None:
    assert set(preferred_names(NAMES, [" Tel", "dric", "holm", " Vard"])) == {"vardholm teldric", "teldric"}
    assert list(preferred_names(NAMES, list("abcdefghijklmnopqrstuvwxyz"))) == []
    assert list(preferred_names(NAMES, ["yes", " no", "", " "])) == []
