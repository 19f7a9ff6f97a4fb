"""Chat templates, compared with `transformers`."""

from __future__ import annotations

from typing import Any

import jinja2
import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from lethe.corruption.prompt.chat_template import render

MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": " Who is <Ann> & \u201cBen\u201d? "},
    {"role": "assistant", "content": "Ann is  "},
]
PARTS = [
    {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "image"}, {"type": "text", "text": "two "}]}
]
SHOW = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
TEMPLATES = [
    SHOW,
    "  {% for m in messages %}\n    {% if loop.first %}{% continue %}{% endif %}\n  {{ m | tojson }}\n{% endfor %}\n",
    "{% for m in messages %}{% if m.role == 'user' %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "{% for m in messages %}{% generation %}{{ m.content | trim }}{% endgeneration %}{% endfor %}",
    "{{ bos_token }}{{ tools | tojson(indent=2) }}{{ documents }}{{ nothing }}{{ add_generation_prompt }}{{ mood }}",
    "{%- set ns = namespace(n=0) -%}{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ ns.n }}{% endfor %}",
    "{{ {'b': '<ä>', 'a': [1, none]} | tojson(sort_keys=true, ensure_ascii=true, separators=(',', ':')) }}",
    "{{ strftime_now('%Y') | length }}",
]


def reference(template: str, messages: list[dict[str, Any]], **given: Any) -> str:
    rendered: list[str] = render_jinja_template([messages], chat_template=template, **given)[0]
    return rendered[0]


@pytest.mark.parametrize("template", TEMPLATES)
def test_renderings_equal_those_of_transformers(template: str) -> None:
    given = {
        "tools": [{"type": "function", "function": {"name": "f", "description": "a < b"}}],
        "documents": [{"title": "t", "text": "x"}],
        "add_generation_prompt": True,
        "bos_token": "<s>",
        "mood": "calm",
    }
    assert render(template, MESSAGES, **given) == reference(template, MESSAGES, **given)


@pytest.mark.parametrize("messages", [MESSAGES, PARTS])
@pytest.mark.parametrize(
    "template",
    [
        SHOW + "<|end|>",
        "{% for m in messages %}{{ m.content | trim }}<|end|>{% endfor %}",
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
        "{{ p.text }}|{% endfor %}{% endif %}<|end|>{% endfor %}",
    ],
)
def test_a_continued_message_ends_where_transformers_ends_it(template: str, messages: list[dict[str, Any]]) -> None:
    before = str(messages)
    try:
        expected = reference(template, messages, continue_final_message=True)
    except AttributeError:
        pytest.skip("this template takes no parts")
    assert render(template, messages, continue_final_message=True) == expected
    assert str(messages) == before


@pytest.mark.parametrize(
    ("template", "given"),
    [
        (SHOW, {"tools": ["f"]}),
        (SHOW, {"documents": ["d"]}),
        (SHOW, {"continue_final_message": True, "add_generation_prompt": True}),
        (SHOW, {"continue_final_message": "reasoning"}),
        ("no content", {"continue_final_message": True}),
        ("{{ raise_exception('no') }}", {}),
        ("{{ messages.append(1) }}", {}),
        ("{{ ''.__class__.__mro__ }}", {}),
        ("{% for %}", {}),
        (SHOW, {"messages": []}),
    ],
)
def test_arguments_that_transformers_refuses_are_refused(template: str, given: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError, jinja2.TemplateError)):
        render(template, MESSAGES, **given)


def test_templates_read_no_files_and_keep_no_state() -> None:
    with pytest.raises((TypeError, jinja2.TemplateError)):
        render("{% include '/etc/hostname' %}", MESSAGES)
    assert render("{% set x = 1 %}{{ x }}", MESSAGES) == "1" and render("{{ x }}", MESSAGES) == ""
