from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lethe.server.requests.extract import extract_texts
from lethe.server.requests.output_constraints import OutputConstraint
from lethe.server.requests.spelled_patterns import spelled_texts

QUESTION = "Who wrote about Vardholm"


def disguised(text: str, forms: list[int]) -> str:
    """A pattern that matches the text, each character in one of several notations."""
    notations = (re.escape, "[{}]".format, "({})".format, "({}|zz)".format, "(?:{}){{1}}".format, "[{}{}]".format)
    return "".join(
        notations[form](c, c) if form == 5 else notations[form](c) if c.isalpha() else re.escape(c)
        for c, form in zip(text, forms, strict=True)
    )


@given(st.lists(st.integers(0, 5), min_size=len(QUESTION), max_size=len(QUESTION)))
def test_notation_hides_no_question(forms: list[int]) -> None:
    pattern = disguised(QUESTION, forms)
    assert re.fullmatch(pattern, QUESTION)
    body = {"messages": [], "structured_outputs": {"regex": f"{pattern}.*"}}
    assert any(QUESTION in text.text for text in extract_texts("chat", body))


@pytest.mark.parametrize(("kind", "pattern", "texts"), [
    ("regex", "(a|b)c[de]", ["acd", "bce"]), ("regex", "a[a-z]+b.c", ["a b c"]), ("regex", "(unclosed", []),
    ("grammar", 'root ::= "Who " x\nx ::= "wro" \'te\'', ["Who wrote"]), ("text", "abc", []),
    ("regex", "x" * 30_000, []),
])  # fmt: skip
def test_patterns_and_grammars_are_spelled(kind: str, pattern: str, texts: list[str]) -> None:
    assert list(spelled_texts(OutputConstraint("f", kind, pattern))) == texts  # type: ignore[arg-type]
