from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lethe.server.requests.output_constraints import OutputConstraint, output_constraints, preferred_tokens


def found(body: dict[str, Any]) -> set[tuple[str, str, str]]:
    return {(one.field, one.kind, one.text) for one in output_constraints(body)}


def test_patterns_grammars_and_fixed_texts_are_found_at_any_depth() -> None:
    schema = {"anyOf": [{"pattern": "a+"}, {"properties": {"n": {"enum": ["x", "y", 1]}}}, {"const": "z"}]}
    tool = {"type": "custom", "format": {"type": "grammar", "syntax": "lark", "definition": "start: A"}}
    assert found({"structured_outputs": {"json": json.dumps(schema)}, "tools": [tool]}) == {
        ("structured_outputs", "regex", "a+"), ("structured_outputs", "text", "n\nx\ny\nz"),
        ("tools", "grammar", "start: A"),
    }  # fmt: skip


@pytest.mark.parametrize(("field", "value", "tokens"), [
    ("logit_bias", {"5": 1, "6": "2.5", "7": -100, "8": 0, "x": 3, "9": None, "10": True}, (5, 6, 10)),
    ("allowed_token_ids", [1, "2", 3.0, None, "x", 1e300], (1, 2, 3)), ("logit_bias", [1], ()), ("logit_bias", "5", ()),
])  # fmt: skip
def test_preferred_tokens_are_read_as_vllm_converts_them(field: str, value: Any, tokens: tuple[int, ...]) -> None:
    assert preferred_tokens(field, value) == tokens


def test_a_request_without_constraints_has_none() -> None:
    body = {
        "messages": [{"content": {"pattern": "a"}}],
        "structured_outputs": None,
        "tools": [],
        "logit_bias": {"5": -1},
    }
    assert list(output_constraints(body)) == []


@given(st.recursive(st.none() | st.text() | st.integers(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_constraints_of_any_form_raise_nothing(value: Any) -> None:
    for field in ("structured_outputs", "logit_bias", "allowed_token_ids", "tools", "response_format"):
        assert all(isinstance(one, OutputConstraint) for one in output_constraints({field: value}))
