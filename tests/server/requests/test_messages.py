"""Parts that are not text: client-made embeddings and unknown kinds are refused in every place of a conversation."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lethe.server.errors import BadRequest
from lethe.server.requests import fields as fields_table
from lethe.server.requests.extract import extract_texts
from lethe.server.requests.fields import Endpoint

EMBEDS = st.sampled_from([*sorted(fields_table.REFUSED_PARTS), "latent_embeds", "token_embeds"])
PART = st.one_of(
    EMBEDS.map(lambda kind: {"type": kind, "data": "AAAA"}),
    EMBEDS.map(lambda kind: {kind: "AAAA"}),
    EMBEDS.map(lambda kind: {"type": "text", "text": "a", kind: None}),
)
# Fields of a message, known and unknown; `content` only where its value is a list.
KEYS = st.sampled_from(
    sorted(fields_table.MESSAGE_KEYS | {"content", "reasoning_details", "thinking", "thinking_blocks", "x"})
)


def nested(part: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """The part inside lists and objects."""
    return st.recursive(
        part.map(lambda value: [value]),
        lambda inner: st.one_of(
            inner.map(lambda value: [{"type": "text", "text": "a"}, value]),
            inner.map(lambda value: [{"type": "tool_result", "content": value}]),
            inner.map(lambda value: {"details": value}),
        ),
        max_leaves=3,
    )


def body(endpoint: Endpoint, key: str, value: Any) -> dict[str, Any]:
    """A request of `endpoint` whose second message has `value` in its field `key`."""
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", key: value}]
    match endpoint:
        case "responses":
            return {"input": messages}
        case "batch":
            return {"messages": [messages]}
        case _:
            return {"messages": messages}


ENDPOINTS: tuple[Endpoint, ...] = ("chat", "batch", "responses", "messages", "count_tokens")


@given(st.sampled_from(ENDPOINTS), KEYS, nested(PART))
def test_embeddings_are_refused_in_every_field_of_a_message(endpoint: Endpoint, key: str, value: Any) -> None:
    with pytest.raises(BadRequest) as caught:
        extract_texts(endpoint, body(endpoint, key, value))
    assert caught.value.code == "refused_field"


@given(
    st.sampled_from(ENDPOINTS),
    st.sampled_from(["content", "reasoning", "reasoning_content", "refusal"]),
    st.sampled_from(["hidden_states", "latents", "Text", "tensor", "embedding", "document_v2"]),
)
def test_unknown_kinds_are_refused_where_parts_may_be(endpoint: Endpoint, key: str, kind: str) -> None:
    with pytest.raises(BadRequest) as caught:
        extract_texts(endpoint, body(endpoint, key, [{"type": "text", "text": "a"}, {"type": kind, "data": "AAAA"}]))
    assert caught.value.code == "refused_field" and kind not in caught.value.message


@pytest.mark.parametrize("field", ["system", "instructions", "input"])
def test_unknown_kinds_are_refused_outside_of_messages(field: str) -> None:
    endpoint: Endpoint = "messages" if field == "system" else "responses"
    with pytest.raises(BadRequest) as caught:
        extract_texts(endpoint, {field: [{"type": "hidden_states", "data": "AAAA"}]})
    assert caught.value.code == "refused_field"


@pytest.mark.parametrize("field", ["documents", "chat_template_kwargs", "previous_input_messages", "unknown"])
def test_embeddings_are_refused_in_other_fields_of_the_body(field: str) -> None:
    value = {"parts": [{"type": "prompt_embeds", "data": "AAAA"}]}
    endpoint: Endpoint = "responses" if field == "previous_input_messages" else "chat"
    with pytest.raises(BadRequest) as caught:
        extract_texts(endpoint, {field: value})
    assert caught.value.code == "refused_field"


def test_a_tools_own_values_may_have_any_form() -> None:
    values = {"type": "prompt_embeds", "image_embeds": "how to use them"}
    call = {"type": "tool_use", "id": "1", "name": "write", "input": values}
    found = extract_texts("messages", {"messages": [{"role": "assistant", "content": [call]}]})
    assert "how to use them" in found[0].text


def test_what_clients_send_back_of_an_answer_is_accepted() -> None:
    annotations = [{"type": "url_citation", "url_citation": {"url": "https://example.org"}}]
    message = {
        "role": "assistant", "content": None, "refusal": None, "annotations": annotations, "audio": None,
        "function_call": None, "reasoning_details": [{"type": "reasoning.text", "text": "because"}],
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    }  # fmt: skip
    assert "because" in "\n".join(text.text for text in extract_texts("chat", {"messages": [message]}))


def literal_types(schema: dict[str, Any]) -> set[str]:
    """The values of `type` that a class of a JSON schema names."""
    kind = schema.get("properties", {}).get("type", {})
    return {*kind.get("enum", ()), *([kind["const"]] if "const" in kind else [])}


def test_every_item_and_part_of_vllms_classes_is_known() -> None:
    pytest.importorskip("vllm", reason="compares with vLLM's own classes")
    from tests.server import vllm_fields

    classes = vllm_fields.request_classes()
    defs = classes["responses"][0].model_json_schema()["$defs"]
    known = {
        *fields_table.ITEMS, *fields_table.OTHER_ITEMS, *fields_table.ITEM_PARTS, *fields_table.OTHER_PARTS,
        *fields_table.FILE_PARTS,
    }  # fmt: skip
    endings = ("_call", "_call_output", "message", "reasoning", "_text", "_item", "mcp_list_tools", "compaction")
    named = set().union(*map(literal_types, defs.values()))
    assert {kind for kind in named if kind.endswith(endings)} - known <= {"custom_tool_call_item"}
    blocks = literal_types(classes["messages"][0].model_json_schema()["$defs"]["AnthropicContentBlock"])
    assert blocks <= fields_table.BLOCKS.union(fields_table.TEXT_PARTS)
