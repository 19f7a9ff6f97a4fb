"""Whether a template takes a content as a string or as parts."""

from __future__ import annotations

import pytest

from lethe.corruption.prompt.content_format import detect_content_format
from tests.corruption.conftest import TEMPLATES


@pytest.mark.parametrize("name", ["marks", "newlines", "trimmed", "spaced", "thinking"])
def test_string_templates_are_detected(name: str) -> None:
    assert detect_content_format(TEMPLATES[name]) == "string"


@pytest.mark.parametrize(
    "template",
    [
        TEMPLATES["parts"],
        "{% for m in messages %}{% for p in m['content'] %}{{ p }}{% endfor %}{% endfor %}",
        "{% for m in messages %}{% set c = m.content %}{% set d = c %}"
        "{% for p in d | list %}{{ p }}{% endfor %}{% endfor %}",
        "{% macro show(c) %}{% for p in c %}{{ p }}{% endfor %}{% endmacro %}"
        "{% for m in messages %}{{ show(m.content) }}{% endfor %}",
        "{% for m in messages %}{% generation %}"
        "{% for p in m.content[1:] %}{{ p }}{% endfor %}{% endgeneration %}{% endfor %}",
    ],
)
def test_part_templates_are_detected(template: str) -> None:
    assert detect_content_format(template) == "openai"
