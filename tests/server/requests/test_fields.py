"""The fields tables, compared with vLLM's request classes: every field is in a group, every text is judged."""

from __future__ import annotations

import json
from itertools import product
from typing import Any, get_args

import pytest

from lethe.server.errors import BadRequest
from lethe.server.requests import fields as fields_table
from lethe.server.requests.extract import extract_texts
from lethe.server.requests.fields import RELAYED, TABLES, Endpoint
from lethe.server.requests.request_text import RequestText
from lethe.server.upstream.capabilities import Capabilities
from tests.server.fakes import KEYWORD, make_guard, policy

pytest.importorskip("vllm", reason="compares with vLLM's own classes")
from tests.server import vllm_fields

GUARDED: tuple[Endpoint, ...] = tuple(e for e in get_args(Endpoint) if e not in RELAYED)
GROUPS = ("walked", "shown", "judged", "words", "numeric", "harmless", "refused")


@pytest.fixture(scope="module")
def every() -> dict[Endpoint, list[vllm_fields.Field]]:
    return {endpoint: list(vllm_fields.fields(endpoint)) for endpoint in GUARDED}


@pytest.fixture(scope="module")
def groups(every: dict[Endpoint, list[vllm_fields.Field]]) -> dict[Endpoint, dict[str, str]]:
    return {endpoint: vllm_fields.groups(endpoint, there) for endpoint, there in every.items()}


def test_every_endpoint_has_a_table_or_is_relayed() -> None:
    assert set(TABLES) == set(GUARDED)
    assert set(vllm_fields.request_classes()) == set(GUARDED)


@pytest.mark.parametrize("endpoint", GUARDED)
def test_every_field_of_vllm_is_in_exactly_one_group(endpoint: Endpoint) -> None:
    """A field that a later vLLM adds fails here until somebody has decided what it is."""
    table = TABLES[endpoint]
    for made in vllm_fields.request_classes()[endpoint]:
        for name in made.model_fields:
            there = [group for group in GROUPS if name in getattr(table, group)]
            assert len(there) == 1, f"{name} stands in {there or 'no group'}"


@pytest.mark.parametrize("endpoint", GUARDED)
def test_the_tables_have_only_fields_of_vllm(endpoint: Endpoint) -> None:
    classes = vllm_fields.request_classes()
    # count_tokens reads what messages reads, and less.
    made = classes["messages"] if endpoint == "count_tokens" else classes[endpoint]
    known = {name for group in GROUPS for name in getattr(TABLES[endpoint], group)}
    assert known - set(fields_table.EMBEDS_REFUSED) <= {name for one in made for name in one.model_fields}


@pytest.mark.parametrize("endpoint", GUARDED)
def test_every_member_of_every_field_is_recorded(endpoint: Endpoint, groups: dict[Endpoint, dict[str, str]]) -> None:
    """Nested classes too. After a new vLLM: `python -m tests.server.vllm_fields`, and read the difference."""
    recorded = json.loads(vllm_fields.RECORDED.read_text(encoding="utf-8"))
    assert groups[endpoint] == recorded[endpoint]


@pytest.mark.parametrize("endpoint", GUARDED)
def test_harmless_fields_have_reasons(endpoint: Endpoint, groups: dict[Endpoint, dict[str, str]]) -> None:
    table = TABLES[endpoint]
    for name, group in groups[endpoint].items():
        if "harmless" in group:
            inside = name.partition("/")[2]
            assert fields_table.HARMLESS_INSIDE.get(inside) or table.harmless.get(name), name
    assert all(table.harmless.values()) and all(table.refused.values())


@pytest.mark.parametrize("endpoint", GUARDED)
def test_vllm_accepts_the_tested_values(endpoint: Endpoint, every: dict[Endpoint, list[vllm_fields.Field]]) -> None:
    """Else the tests here would show what becomes of requests that vLLM refuses anyhow."""
    from vllm.exceptions import VLLMValidationError

    made = vllm_fields.request_classes()[endpoint][0]
    taken, refused = 0, []
    for field in every[endpoint]:
        if field.body is None:
            continue
        try:
            made.model_validate(json.loads(json.dumps(field.body("about"))))
            taken += 1
        except (ValueError, VLLMValidationError):
            refused.append(field.name)
    # Some fields need another beside them, or text in a grammar of their own.
    assert taken > 0.7 * (taken + len(refused)), refused


@pytest.mark.parametrize("endpoint", GUARDED)
def test_a_forget_prompt_is_flagged_in_every_text_field(
    endpoint: Endpoint, every: dict[Endpoint, list[vllm_fields.Field]]
) -> None:
    guard = make_guard(policy(action="refuse"))
    flagged = 0
    for field, (stream, n) in product(every[endpoint], product((False, True), (1, 3))):
        if field.body is None:
            continue
        body = {**field.body(f"Tell me about {KEYWORD}"), "stream": stream, "n": n}
        try:
            outcome = guard.decide(guard.parse(endpoint, body), Capabilities())
        except BadRequest as error:
            assert error.code == "refused_field", field.name
            continue
        top, _, inside = field.name.partition("/")
        harmless = top in TABLES[endpoint].harmless or inside in fields_table.HARMLESS_INSIDE
        assert (outcome.refusal is None) == harmless, field.name
        flagged += not harmless
    assert flagged > 4 * 15


@pytest.mark.parametrize("endpoint", GUARDED)
def test_numeric_fields_have_no_text_in_vllm(endpoint: Endpoint) -> None:
    for made in vllm_fields.request_classes()[endpoint]:
        properties = made.model_json_schema()["properties"]
        for name in TABLES[endpoint].numeric & properties.keys():
            assert "string" not in json.dumps(properties[name].get("anyOf", properties[name].get("type"))), name


def words_of(schema: Any) -> set[str]:
    """Every word that a schema names as one of a few."""
    if isinstance(schema, list):
        return set().union(*map(words_of, schema))
    if not isinstance(schema, dict):
        return set()
    own = [word for word in [*schema.get("enum", []), schema.get("const")] if isinstance(word, str)]
    return set(own).union(*map(words_of, schema.values()))


def words_in(words: fields_table.Words | None) -> set[str]:
    if words is None:
        return set()
    return set(words) if isinstance(words, frozenset) else set().union(*map(words_in, words.values()))


@pytest.mark.parametrize("endpoint", GUARDED)
def test_word_fields_have_the_same_words_as_vllm(endpoint: Endpoint) -> None:
    named = set().union(*(words_of(made.model_json_schema()) for made in vllm_fields.request_classes()[endpoint]))
    for name, words in TABLES[endpoint].words.items():
        # Whatever vLLM takes in a field of messages and not in one of count_tokens is ignored there.
        assert endpoint == "count_tokens" or words_in(words) <= named, name


@pytest.mark.parametrize("endpoint", GUARDED)
def test_an_ordinary_request_has_only_its_prompt_judged(endpoint: Endpoint) -> None:
    """What carries no text costs no pass of the encoder."""
    table = TABLES[endpoint]
    body: dict[str, Any] = {**dict.fromkeys(table.harmless, "x"), **dict.fromkeys(table.numeric, 1)}
    body |= dict.fromkeys(table.refused) | {name: False for name in table.refused if name in fields_table.SWITCHES}
    body |= {name: min(words) for name, words in table.words.items() if isinstance(words, frozenset)}
    objects = {
        "output_config": {"effort": "low"},
        "thinking": {"type": "enabled", "budget_tokens": 1024, "display": "omitted"},
        "reasoning": {"effort": "high", "summary": "auto"},
        "text": {"format": {"type": "text"}, "verbosity": "low"},
    }
    body |= {name: objects[name] for name in table.words if name in objects}
    if endpoint in ("messages", "count_tokens"):
        body["tool_choice"] = {"type": "auto", "disable_parallel_tool_use": True}
        body["messages"] = [{"role": "user", "content": [
            {"type": "text", "text": "hello", "cache_control": {"type": "ephemeral"}},
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
        ]}]  # fmt: skip
    elif endpoint == "responses":
        body["include"] = ["reasoning.encrypted_content"]
        body["input"] = [{"type": "message", "role": "user", "status": "completed", "content": [
            {"type": "input_text", "text": "hello"}, {"type": "input_image", "image_url": "data:image/png;base64,AAAA"},
        ]}]  # fmt: skip
    elif endpoint == "completions":
        body["prompt"] = "hello"
    else:
        messages = [{"role": "user", "content": "hello"}]
        body["messages"] = [messages] if endpoint == "batch" else messages
    assert [text.text for text in extract_texts(endpoint, body)] == ["hello"]


@pytest.mark.parametrize("endpoint", GUARDED)
@pytest.mark.parametrize("value", ["x", {"a": 1}, [1], 0, True, ""])
def test_refused_fields_are_refused_with_any_value(endpoint: Endpoint, value: Any) -> None:
    for name, reason in TABLES[endpoint].refused.items():
        with pytest.raises(BadRequest) as caught:
            extract_texts(endpoint, {name: value})
        assert (caught.value.param, caught.value.code) == (name, "refused_field")
        assert name in caught.value.message and reason in caught.value.message


def test_only_switches_may_be_false() -> None:
    assert extract_texts("responses", {"background": False, "input": "a"}) == [
        RequestText("input", "a", (1, None), message=True, role="user")
    ]
    for name in TABLES["responses"].refused.keys() - fields_table.SWITCHES:
        with pytest.raises(BadRequest):
            extract_texts("responses", {name: False})


def test_tools_that_vllm_would_run_are_refused() -> None:
    from vllm.entrypoints.openai.parser.harmony_utils import BUILTIN_TOOL_TO_MCP_SERVER_LABEL

    assert {*BUILTIN_TOOL_TO_MCP_SERVER_LABEL.values(), "mcp"} == fields_table.SERVER_TOOLS
    for kind in fields_table.SERVER_TOOLS:
        with pytest.raises(BadRequest, match="unjudged"):
            extract_texts("responses", {"input": "a", "tools": [{"type": "function", "name": "f"}, {"type": kind}]})


def test_the_docstring_names_the_checked_vllm_version() -> None:
    assert "vLLM 0.32" in str(fields_table.__doc__)


@pytest.mark.parametrize("endpoint", GUARDED)
def test_what_vllm_ignores_is_not_judged(endpoint: Endpoint) -> None:
    """Labels such as an employee's own address don't make a request flagged."""
    base, table = vllm_fields.BASES[endpoint], TABLES[endpoint]
    texts = [text.text for text in extract_texts(endpoint, base)]
    for name in fields_table.IGNORED:
        labels = {name: {"user_email": f"{KEYWORD}@example.org", "deep": [KEYWORD]}}
        judged = [text.text for text in extract_texts(endpoint, base | labels)] != texts
        # Fields that this endpoint's class reads as a word or a number: any other text in them is judged.
        assert judged == (name in table.words or name in table.numeric), name


@pytest.mark.parametrize("endpoint", GUARDED)
def test_ignored_fields_are_read_by_no_class_of_vllm(endpoint: Endpoint) -> None:
    """A field that vLLM's classes have is in its endpoint's table, with the reason why no text of it is shown."""
    table = TABLES[endpoint]
    for made in vllm_fields.request_classes()[endpoint]:
        for name in fields_table.IGNORED.keys() & made.model_fields.keys():
            assert name in table.harmless or name in table.words or name in table.numeric, name
    assert all(fields_table.IGNORED.values())


def test_labels_of_a_message_reach_no_template() -> None:
    from vllm.renderers import chat_utils

    kept = chat_utils.ConversationMessage.__annotations__
    assert not fields_table.IGNORED_ANYWHERE.keys() & kept
    message = {"role": "user", "content": "a", "metadata": {"address": KEYWORD}}
    assert [text.text for text in extract_texts("chat", {"messages": [message]})] == ["a"]
