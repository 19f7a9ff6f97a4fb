"""Texts of request bodies, compared with vLLM's own message parser: no text stays unjudged."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lethe.corruption.decoding.spec import XARGS_KEY
from lethe.corruption.prompt.message_parts import PROMPT_EMBEDS_MARKER
from lethe.server.errors import BadRequest
from lethe.server.requests import fields as fields_table
from lethe.server.requests.extract import MAX_TEXTS, extract_texts
from lethe.server.requests.fields import TABLES, Endpoint
from lethe.server.requests.request_body import parse
from lethe.server.requests.request_text import all_strings
from tests.server.requests.test_joined_texts import joined_strings


def texts(body: dict[str, Any], endpoint: Endpoint = "chat") -> list[str]:
    return [text.text for text in extract_texts(endpoint, body, decode=lambda ids: f"<{ids}>")]


def user(content: Any, **keys: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": content, **keys}]}


def refused(body: dict[str, Any], endpoint: Endpoint = "chat") -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        extract_texts(endpoint, body)
    return caught.value


@pytest.fixture(scope="session")
def vllm() -> SimpleNamespace:
    """vLLM's request classes, and its parser of messages as a text model with embeddings runs it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("vllm", reason="compares with vLLM's own classes")
        from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
        from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.entrypoints.openai.completion.protocol import CompletionRequest
        from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
        from vllm.entrypoints.openai.responses.utils import construct_input_messages, construct_tool_dicts
        from vllm.renderers import chat_utils

    config = SimpleNamespace(enable_prompt_embeds=True, multimodal_config=None, is_multimodal_model=False)

    def conversation(body: dict[str, Any], content_format: str) -> list[dict[str, Any]]:
        request = ChatCompletionRequest.model_validate(json.loads(json.dumps(body)))
        return list(chat_utils.parse_chat_messages(request.messages, config, content_format)[0])

    def anthropic(body: dict[str, Any], merge: bool) -> list[Any]:
        """What vLLM makes of Anthropic's messages: messages and tools of a chat."""
        request = AnthropicMessagesRequest.model_validate(json.loads(json.dumps(body)))
        made = AnthropicServingMessages.to_chat_completion_request(request, merge_inline_system=merge)
        shown = list(chat_utils.parse_chat_messages(made.messages, config, "string")[0])
        return [*shown, *(tool.model_dump() for tool in made.tools or ())]

    def responses(body: dict[str, Any]) -> list[Any]:
        """What vLLM makes of a response's input: messages and tools of a chat."""
        request = ResponsesRequest.model_validate(json.loads(json.dumps(body)))
        messages = construct_input_messages(request_instructions=request.instructions, request_input=request.input)
        shown = list(chat_utils.parse_chat_messages(messages, config, "string")[0])
        return [*shown, *(construct_tool_dicts(request.tools, request.tool_choice) or ())]

    classes = {"chat": ChatCompletionRequest, "completions": CompletionRequest}
    return SimpleNamespace(
        classes=classes, conversation=conversation, anthropic=anthropic, responses=responses, chat_utils=chat_utils
    )


# What messages hold


def test_every_part_type_of_vllm_is_handled(vllm: SimpleNamespace) -> None:
    known = set(fields_table.TEXT_PARTS) | fields_table.OTHER_PARTS | fields_table.REFUSED_PARTS
    assert set(vllm.chat_utils.MM_PARSER_MAP) == known
    assert set(vllm.chat_utils.TEXT_PART_TYPES) == set(fields_table.TEXT_PARTS)
    assert PROMPT_EMBEDS_MARKER == vllm.chat_utils.PROMPT_EMBEDS_PLACEHOLDER_TOKEN


def test_every_key_of_a_message_is_known(vllm: SimpleNamespace) -> None:
    kept = set(vllm.chat_utils.ConversationMessage.__annotations__) - {"role", "content"}
    assert kept <= fields_table.MESSAGE_KEYS


# Text in every place

FUNCTION = {"name": "M1", "description": "M2", "parameters": {"type": "M3", "M4": {"enum": ["M5", ["M6"]]}}}
RICH_CHAT: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "M10"},
        {"role": "developer", "content": "M11", "tools": [{"type": "function", "function": {"name": "M12"}}]},
        {"role": "user", "name": "M13", "content": [
            "M14", {"type": "text", "text": "M15", "extra": {"M16": ["M17"]}},
            {"type": "input_text", "text": "M18"},
            {"type": "output_text", "text": "M19"}, {"type": "refusal", "refusal": "M20"},
            {"type": "thinking", "thinking": "M21", "closed": True},
            {"type": "tool_reference", "name": "M22"},
            {"type": "image_url", "image_url": {"url": "https://example.org/M23"}}, {"image_url": "file:///M24"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "M25": "M26"}},
            {"type": "text", "text": ["M27"]}, {"text": "M28"}, {"type": "file", "M30": "M31"}, ["M32"],
            {"type": "audio_url", "audio_url": {"url": "data:text/plain,M33"}},
            {"type": "text", "uuid": "M34"},
            {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav", "M35": "M36"}},
        ]},
        {"role": "assistant", "content": None, "reasoning": "M40", "reasoning_content": "M41", "task": "M42",
         "refusal": "M43", "audio": {"id": "M44"}, "function_call": {"name": "M45", "arguments": "M46"},
         "tool_calls": [
             {"id": "M47", "type": "function", "function": {"name": "M48", "arguments": '{"M49": "M50"}'}}
         ]},
        {"role": "tool", "tool_call_id": "M51", "content": "M52"},
        {"role": "M53", "content": {"M54": {"deep": [[[["M55"]]]]}}},
        {"role": ["M56"], "content": 5, "M57": "M58"},
        "M59", ["M60"], {"author": {"name": "M61"}, "content": [{"text": "M62"}]},
    ],
    "tools": [{"type": "function", "function": FUNCTION}],
    "tool_choice": {"type": "function", "function": {"name": "M70"}},
    "documents": [{"title": "M71", "text": "M72", "M73": "M74"}],
    "chat_template_kwargs": {"M75": "M76", "tools": ["M77"]},
    "response_format": {"type": "json_schema", "json_schema": {"name": "M78", "schema": {"const": "M79"}}},
    "structured_outputs": {"choice": ["M80", "M81"], "regex": "M82"},
    "media_io_kwargs": {"video": {"M83": "M84"}},
    "mm_processor_kwargs": {"M85": "M86"},
    "vllm_xargs": {"M87": "M88", "M89": ["M90", 1]},
    "reasoning_effort": "M91",
    "truncation_side": "M92",
    "mm_payload": "M93",
    "Messages": [{"role": "user", "content": "M94"}],
    "prompt": "M95",
    "suffix": "M96",
    "M97": {"M98": [{"M99": "M100"}]},
    "temperature": "M101",
    "allowed_token_ids": [1, "M102"],
    "stop": ["M103", "M104"],
    "bad_words": ["M105"],
}  # fmt: skip
RICH_COMPLETIONS: dict[str, Any] = {
    "prompt": ["M1", "M2"],
    "suffix": "M3",
    "response_format": {"type": "json_object", "M4": "M5"},
    "structured_outputs": {"grammar": "M6"},
    "vllm_xargs": {"M7": "M8"},
    "messages": [{"role": "user", "content": "M9"}],
    "echo": "M10",
    "M11": "M12",
    "documents": ["M13"],
    "truncation_side": "M14",
    "mm_payload": ["M15"],
    "stop": "M16",
    "bad_words": ["M17"],
}


def markers(value: Any) -> Iterator[str]:
    return (s for s in all_strings(value) for s in s.replace('"', " ").split() if s[0] == "M" and s[1:].isdigit())


@pytest.mark.parametrize(("endpoint", "rich"), [("chat", RICH_CHAT), ("completions", RICH_COMPLETIONS)])
def test_text_in_every_place_is_extracted(endpoint: Endpoint, rich: dict[str, Any], vllm: SimpleNamespace) -> None:
    table = TABLES[endpoint]
    assert vllm.classes[endpoint].model_fields.keys() - table.numeric - table.harmless.keys() <= {
        *rich, *table.refused
    }  # fmt: skip
    words = {word for text in texts(rich, endpoint) for word in text.replace('"', " ").replace("/", " ").split()}
    words |= {word.rsplit(",", 1)[-1] for word in words}
    placed = set(markers(rich)) | {"M23", "M24", "M33"} if endpoint == "chat" else set(markers(rich))
    assert placed - words == set()


@given(st.recursive(st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=10), st.text())
def test_all_strings_of_unknown_fields_are_judged(value: Any, key: str) -> None:
    table = TABLES["chat"]
    known = {*table.walked, *table.shown, *table.judged, *table.words, *table.numeric, *table.harmless, *table.refused}
    if key in known or "<" in json.dumps([key, value]):
        return
    found = "\n".join(texts({key: value}, "chat"))
    assert key in found and all(string in found for string in all_strings(value))


def test_base64_media_is_not_text() -> None:
    data = "data:image/png;base64,AAAA"
    parts = [
        {"type": "image_url", "image_url": {"url": data, "detail": "low"}},
        {"type": "input_image", "image_url": data},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "video_url", "video_url": {"url": data.replace("image/png", "video/mp4")}},
    ]  # fmt: skip
    assert texts(user([*parts, {"type": "text", "text": "hi"}])) == ["hi"]


MEDIA_TYPES = [
    "image/png",
    "IMAGE/JPEG",
    "application/octet-stream",
    "image/svg+xml",
    "application/pdf",
    "audio/wav",
    "",
]


@pytest.mark.parametrize("kind", MEDIA_TYPES)
def test_base64_of_any_media_type_is_not_text_beside_any_member(kind: str) -> None:
    data, long = f"data:{kind};base64,", "QUJD" * 2_500_000
    urls: list[Any] = [{"url": data + long, "detail": "auto", "format": "M1"}, {"url": data + long, "M2": {"M3": 1}}]
    parts = [
        *({"type": "image_url", "image_url": url, "uuid": "M4", "M5": None} for url in urls),
        {"type": "input_image", "image_url": data.upper() + long, "detail": "M6"},
        {"type": "input_audio", "input_audio": {"data": long, "format": "wav", "M7": "M8"}},
        {"type": "video_url", "video_url": {"url": f"data:{kind};name=a;base64,{long}"}},
    ]  # fmt: skip
    found = texts(user([*parts, {"type": "text", "text": "hi"}]))
    assert all(f"M{number}" in "\n".join(found) for number in range(1, 9)) and sum(map(len, found)) < 1000
    source = {"type": "base64", "media_type": kind or "image/png", "data": long, "M9": "M10"}
    body = {"messages": [{"role": "user", "content": [{"type": "image", "source": source}]}]}
    found = [text.text for text in extract_texts("messages", body)]
    assert "M10" in "\n".join(found) and sum(map(len, found)) < 1000


def test_text_in_the_place_of_media_is_judged() -> None:
    for part in (
        {"type": "image_url", "image_url": {"url": "https://example.org/M1"}},
        {"type": "image_url", "image_url": "data:text/plain,M1"},
        {"type": "text", "text": "data:image/png;base64,M1"},
    ):
        assert "M1" in "\n".join(texts(user([part])))
    for source in (
        {"type": "text", "media_type": "text/plain", "data": "M1"},
        {"type": "base64", "media_type": "who is M1?", "data": "AAAA"},
        {"type": "url", "url": "https://example.org/M1"},
    ):
        body = user([{"type": "image", "source": source}])
        assert "M1" in "\n".join(text.text for text in extract_texts("messages", body))


def test_the_round_trips_of_a_long_agent_session_pass() -> None:
    chat, items, blocks = [], [], []
    for number in range(2100):
        name = f"call_{number:024d}"
        call = {"id": name, "type": "function", "function": {"name": "read", "arguments": '{"path": "a"}'}}
        chat += [{"role": "assistant", "content": "ok", "tool_calls": [call]},
                 {"role": "tool", "tool_call_id": name, "content": "done"}]  # fmt: skip
        items += [{"type": "function_call", "id": name, "call_id": name, "name": "read", "arguments": '{"path": "a"}'},
                  {"type": "function_call_output", "call_id": name, "output": "done"}]  # fmt: skip
        result = {"type": "tool_result", "tool_use_id": name, "content": "done"}
        blocks += [{"role": "assistant", "content": [{"type": "tool_use", "id": name, "name": "read", "input": {}}]},
                   {"role": "user", "content": [result]}]  # fmt: skip
    sessions: list[tuple[Any, Any]] = [
        ("chat", {"messages": chat}), ("responses", {"input": items}), ("messages", {"messages": blocks})
    ]  # fmt: skip
    for endpoint, body in sessions:
        assert len(extract_texts(endpoint, body)) >= 3 * 2100


def test_only_text_parts_are_targets() -> None:
    body = user([{"type": "text", "text": "a"}, {"type": "tool_reference", "name": "b"}, "c"], name="d")
    assert [(t.text, t.part_location) for t in extract_texts("chat", body)] == [
        ("a", (0, 0)), ("name\nb", None), ("c", (0, 2)), ("d", None),
    ]  # fmt: skip


def test_places_never_contain_keys_of_the_client() -> None:
    """Places go into the audit, where no prompt may stand."""
    body = {
        "Who wrote it": "x",
        "messages": [{"role": "user", "content": "y", "Who is it": "z", "name": "n"}],
    }
    assert {text.place for text in extract_texts("chat", body)} == {
        "(unknown field 0)", "messages[0].content", "messages[0].(unknown key 2)", "messages[0].name",
    }  # fmt: skip


# What vLLM makes of it

WORDS = st.sampled_from(
    ["alpha", "beta\ngamma", "", " delta ", '{"k": "\\u0065psilon"}', '{"k": ["\\u006eu", {"x": 1}]}']
)
ODD = st.one_of(WORDS, st.none(), st.just(5), st.lists(WORDS, max_size=2), st.dictionaries(WORDS, WORDS, max_size=2))
PARTS = st.one_of(
    WORDS,
    st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from([*fields_table.TEXT_PARTS, "tool_reference", "Text", "nope"]) | ODD,
            "text": ODD, "refusal": ODD, "thinking": ODD, "name": ODD, "closed": st.booleans(), "uuid": ODD,
            "more": ODD,
        },
    ),
    st.builds(lambda kind, text: {"type": kind, fields_table.TEXT_PARTS[kind]: text},
              st.sampled_from(list(fields_table.TEXT_PARTS)), WORDS),
    ODD,
)  # fmt: skip
CALLS = st.fixed_dictionaries(
    {
        "id": WORDS,
        "type": st.just("function"),
        "function": st.fixed_dictionaries({"name": WORDS, "arguments": WORDS}),
    }
)
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from([*fields_table.ROLES, "poet"])},
    optional={
        "content": WORDS | st.lists(PARTS, max_size=3) | ODD, "name": ODD, "tool_call_id": ODD,
        "reasoning": ODD,
        "reasoning_content": ODD, "task": ODD, "refusal": ODD, "other": ODD,
        "tool_calls": st.lists(CALLS, max_size=2) | ODD,
        "tools": st.lists(st.builds(lambda call: {"type": "function", "function": call}, CALLS), max_size=1),
        "function_call": st.fixed_dictionaries({"name": WORDS, "arguments": WORDS}),
    },
)  # fmt: skip


def shown(conversation: list[dict[str, Any]]) -> Iterator[str]:
    """Each line of each string that a chat template gets."""
    for message in conversation:
        for key, value in message.items():
            if key != "role" or value not in fields_table.ROLES:
                yield from (line for string in all_strings(value) for line in string.split("\n"))


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(MESSAGES, min_size=1, max_size=2), st.sampled_from(["string", "openai"]))
def test_everything_a_chat_template_gets_is_judged(
    vllm: SimpleNamespace, messages: list[dict[str, Any]], content_format: str
) -> None:
    body = {"model": "m", "messages": messages}
    try:
        conversation = vllm.conversation(body, content_format)
    except Exception:
        return  # vLLM answers 400, so nothing reaches the model
    found = "\n".join(texts(body))
    ours = {"type", "text", "name", "tool_reference", "function", "arguments", "id", "{}"}
    assert [line for line in shown(conversation) if line not in ours and line not in found] == []


def test_vllm_parses_the_compared_messages(vllm: SimpleNamespace) -> None:
    """Else the comparison above would hold for want of anything to compare."""
    arguments = '{"q": "\\u0057ho"}'
    call = {"id": "i", "type": "function", "function": {"name": "f", "arguments": arguments}}
    body = {"messages": [{"role": "assistant", "content": ["a", {"type": "thinking", "thinking": "b"}],
                          "tool_calls": [call]}]}  # fmt: skip
    assert {"a", "b", "Who", "f"} <= set(shown(vllm.conversation(body, "openai")))


SAID = st.sampled_from(["alpha", "beta gamma", " delta ", "Zan", "zibar", "x-anthropic-billing-header epsilon"])
RESULT = SAID | st.lists(
    st.fixed_dictionaries({"type": st.just("text"), "text": SAID})
    | st.fixed_dictionaries({"type": st.just("tool_reference"), "tool_name": SAID})
    | st.fixed_dictionaries({"type": st.just("image"), "source": st.fixed_dictionaries({"url": SAID})}),
    max_size=3,
)
TOOL = st.fixed_dictionaries(
    {"name": SAID, "input_schema": st.fixed_dictionaries({"properties": st.dictionaries(SAID, SAID, max_size=1)})},
    optional={"description": SAID},
)
BLOCKS = st.one_of(
    st.fixed_dictionaries({"type": st.just("text"), "text": SAID}, optional={"cache_control": st.just({})}),
    st.fixed_dictionaries({"type": st.just("thinking"), "thinking": SAID, "signature": SAID}),
    st.fixed_dictionaries({"type": st.just("redacted_thinking"), "data": SAID}),
    st.fixed_dictionaries({"type": st.just("tool_use"), "id": SAID, "name": SAID,
                           "input": st.dictionaries(SAID, SAID | st.lists(SAID), max_size=2)}),
    st.fixed_dictionaries({"type": st.just("tool_result"), "tool_use_id": SAID, "content": RESULT}),
)  # fmt: skip
CHANGES = st.fixed_dictionaries({
    "type": st.just("tool_addition"),
    "tool": st.fixed_dictionaries({"type": st.just("tool_definition"), "definition": TOOL}),
})  # fmt: skip
ANTHROPIC = st.fixed_dictionaries(
    {"model": st.just("m"), "max_tokens": st.just(9), "messages": st.lists(st.one_of(
        st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]),
                               "content": SAID | st.lists(BLOCKS, max_size=4)}),
        st.fixed_dictionaries({"role": st.just("system"), "content": SAID | st.lists(BLOCKS | CHANGES, max_size=3)}),
    ), min_size=1, max_size=4)},
    optional={"system": SAID | st.lists(BLOCKS, max_size=3), "tools": st.lists(TOOL, max_size=2)},
)  # fmt: skip


def all_read(endpoint: Endpoint, body: dict[str, Any]) -> str:
    """Everything that is judged of a request, the joined texts included."""
    found = extract_texts(endpoint, body)
    return "\n".join([*(text.text for text in found), *joined_strings(found)])


CLIENTS = re.compile("alpha|beta|gamma|delta|epsilon|Zan|zibar|Who")


def unread(shown: list[Any], read: str) -> list[str]:
    """The client's words that a template gets and the judge does not."""
    # vLLM puts a namespace before a name with underscores.
    words = {word for string in all_strings(shown) for word in re.findall(r"[^\W_]+", string) if CLIENTS.search(word)}
    return sorted(word for word in words if word not in read)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(ANTHROPIC, st.booleans())
def test_everything_vllm_makes_of_anthropic_messages_is_judged(
    vllm: SimpleNamespace, body: dict[str, Any], merge: bool
) -> None:
    read = all_read("messages", body)
    try:
        shown = vllm.anthropic(body, merge)
    except Exception:
        return  # vLLM answers 400, so nothing reaches the model
    assert unread(shown, read) == []


def item(kind: str, **members: Any) -> Any:
    return st.fixed_dictionaries({"type": st.just(kind), **members})


INPUT_PARTS = item("input_text", text=SAID) | item("output_text", text=SAID) | item("refusal", refusal=SAID)
ITEMS = st.one_of(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "developer"]),
         "content": SAID | st.lists(INPUT_PARTS, max_size=3)},
        optional={"type": st.just("message"), "status": st.sampled_from(["completed", "incomplete"])},
    ),
    item("function_call", call_id=SAID, name=SAID, namespace=SAID | st.none(),
         arguments=st.sampled_from(["alpha", '{"q": "\\u0057ho"}', '{"beta": ["gamma"]}'])),
    item("custom_tool_call", call_id=SAID, name=SAID, input=SAID),
    item("function_call_output", call_id=SAID, output=SAID | st.lists(item("input_text", text=SAID), max_size=2)),
    item("custom_tool_call_output", call_id=SAID, output=SAID),
    item("reasoning", summary=st.lists(item("summary_text", text=SAID), max_size=1),
         content=st.lists(item("reasoning_text", text=SAID), max_size=1)),
)  # fmt: skip
RESPONSES = st.fixed_dictionaries(
    {"model": st.just("m"), "input": SAID | st.lists(ITEMS, max_size=4)},
    optional={"instructions": SAID, "tools": st.lists(
        item("function", name=SAID, description=SAID, strict=st.just(None),
             parameters=st.fixed_dictionaries({"properties": st.dictionaries(SAID, SAID, max_size=1)}))
        | item("custom", name=SAID, description=SAID), max_size=2)},
)  # fmt: skip


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(RESPONSES)
def test_everything_vllm_makes_of_a_response_input_is_judged(vllm: SimpleNamespace, body: dict[str, Any]) -> None:
    read = all_read("responses", body)
    try:
        shown = vllm.responses(body)
    except Exception:
        return
    assert unread(shown, read) == []


def test_vllm_accepts_the_compared_bodies(vllm: SimpleNamespace) -> None:
    """Else the comparisons above would hold for want of anything to compare."""
    said = [{"type": "tool_use", "id": "a", "name": "b", "input": {"c": "d"}}, {"type": "thinking", "thinking": "e"}]
    result = {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "f"}]}
    system = [{"type": "text", "text": "Zan"}, {"type": "text", "text": "zibar"}]
    body = {"model": "m", "max_tokens": 9, "system": system,
            "messages": [{"role": "assistant", "content": said}, {"role": "user", "content": [result]}],
            "tools": [{"name": "h", "input_schema": {}}]}  # fmt: skip
    words = {word for string in all_strings(vllm.anthropic(body, False)) for word in re.findall(r"\w+", string)}
    assert {"a", "b", "c", "d", "e", "f", "h", "Zanzibar"} <= words
    items = [{"type": "function_call", "call_id": "a", "name": "b", "arguments": '{"c": "d"}'},
             {"type": "function_call_output", "call_id": "a", "output": "e"},
             {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "f"}]},
             {"role": "user", "content": [{"type": "input_text", "text": "g"}]}]  # fmt: skip
    words = {word for string in all_strings(vllm.responses({"model": "m", "input": items})) for word in string.split()}
    assert {"a", "b", "c", "d", "e", "f", "g"} <= words


def test_response_texts_are_in_template_order() -> None:
    body = {"input": [{"role": "user", "content": "zibar?"}], "instructions": "Tell of Zan"}
    assert "Zanzibar" in "\n".join(joined_strings(extract_texts("responses", body)))


def test_tool_results_have_the_role_tool() -> None:
    blocks = [{"type": "tool_result", "tool_use_id": "t", "content": "a"}, {"type": "text", "text": "b"}]
    found = extract_texts("messages", user(blocks))
    assert [(text.text, text.role) for text in found if text.part_location] == [("a", "tool"), ("b", "user")]
    items = [{"type": "function_call_output", "call_id": "t", "output": "a"}, {"role": "user", "content": "b"}]
    assert [(text.text, text.role) for text in extract_texts("responses", {"input": items}) if text.part_location] == [
        ("a", "tool"), ("b", "user"),
    ]  # fmt: skip


def test_escapes_in_tool_call_arguments_hide_nothing() -> None:
    """vLLM parses the arguments, and the template shows them without the escapes."""
    arguments = '{"q": "\\u0057ho wrote \\u0069t?", "\\u0078": ["\\ud83d\\ude00", "\\ud800"]}'
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    found = "\n".join(texts(user(None, tool_calls=[call])))
    assert "Who wrote it?" in found and "\nx\n" in found and "\U0001f600" in found
    found.encode("utf-8")


@pytest.mark.parametrize(
    "arguments", ['{"a": "\\', '{"a": \\u}', "{" * 5000 + "\\", '{"a":' * 5000 + '"\\n"', '["\\u0057"]']
)
def test_arguments_that_are_not_a_json_object_are_judged_as_text(arguments: str) -> None:
    call = {"type": "function", "function": {"arguments": arguments}}
    assert arguments in texts(user(None, tool_calls=[call]))[0]


@pytest.mark.parametrize("prompt", [
    "a", "", ["a", "b"], ["1", "2"], [1, 2], [[1], [2, 3]], [[]], [], ["a", [1]], [1.0, 2.0], ["1", 2],
    [True, 1],
    [[1.0]], [["1"]], [None], {"a": 1}, 5, True, [[1], None], [[[1]]],
], ids=repr)  # fmt: skip
def test_prompts_are_read_like_vllm_or_refused(prompt: Any, vllm: SimpleNamespace) -> None:
    try:
        found = texts({"prompt": prompt}, "completions")
    except BadRequest:
        return
    try:
        read = vllm.classes["completions"].model_validate({"prompt": prompt}).prompt
    except Exception:
        return
    items = read if isinstance(read, list) and not all(isinstance(item, int) for item in read) else [read]
    assert found == [item if isinstance(item, str) else f"<{item}>" for item in items if item != []] or read in (
        [],
        [[]],
    )


def test_other_numbers_as_token_ids_are_refused() -> None:
    for prompt in ([1.0, 2.0], ["1", 2], [True, 1], [[1.0]], [["1"]], [[True]], 5, {"a": 1}, [None]):
        assert refused({"prompt": prompt}, "completions").param == "prompt"


# Refused


@pytest.mark.parametrize(("name", "key"), [
    ("vllm_xargs", XARGS_KEY), ("vllm_xargs", "kv_transfer_params"), ("vllm_xargs", "ec_transfer_params"),
    ("chat_template_kwargs", "chat_template"),
])  # fmt: skip
def test_refused_keys_are_refused_and_others_accepted(name: str, key: str) -> None:
    assert refused({name: {"a": 1, key: None}}).code == "refused_field"
    assert texts({name: {"a": "b"}}) == ["a\nb"]


@pytest.mark.parametrize("value", ["x", [XARGS_KEY], 5, True])
def test_an_object_field_of_another_type_is_refused(value: Any) -> None:
    for name in fields_table.REFUSED_INSIDE:
        assert refused({name: value}).param == name


@pytest.mark.parametrize("kind", sorted(fields_table.REFUSED_PARTS))
def test_client_made_embeddings_are_refused(kind: str) -> None:
    for part in ({"type": kind, "data": "AAAA"}, {kind: "AAAA"}, {"type": "text", "text": "a", kind: None}):
        error = refused(user(["a", part]))
        assert error.param == "messages[0].content[1]" and kind in error.message


RESERVED = PROMPT_EMBEDS_MARKER


@pytest.mark.parametrize("body", [
    user(f"a {RESERVED} b"), user([{"type": "text", "text": RESERVED}]), user("a", name=RESERVED),
    {"tools": [{"function": {"description": RESERVED}}]}, {"documents": [{"text": RESERVED}]},
    user(["a", "<prompt_", "embeds>"]), user(["<prompt_ ", "\n", " embeds>"]),
    user(None, tool_calls=[{"function": {"arguments": '{"a": "\\u003cprompt_embeds>"}'}}]),
], ids=range(8))  # fmt: skip
def test_vllms_placeholder_is_refused_everywhere(body: dict[str, Any]) -> None:
    assert refused(body).code == "reserved_text"


def test_token_ids_need_a_tokenizer() -> None:
    assert "LETHE_MODEL_DIR" in refused({"prompt": [1, 2]}, "completions").message


def test_an_unknown_token_id_is_refused() -> None:
    def fails(error: Exception) -> Callable[[list[int]], str]:
        def decode(ids: list[int]) -> str:
            raise error

        return decode

    for error in (ValueError("range"), OverflowError("u32")):
        with pytest.raises(BadRequest, match="token id"):
            extract_texts("completions", {"prompt": [1]}, decode=fails(error))


def test_a_null_prompt_has_no_text() -> None:
    assert texts({"prompt": None}, "completions") == []


def test_the_number_of_texts_is_bounded() -> None:
    most = MAX_TEXTS
    assert len(texts({"prompt": ["a"] * most}, "completions")) == most
    assert refused({"prompt": ["a"] * (most + 1)}, "completions").code == "too_many_texts"
    assert refused(user(["a"] * (most + 1))).code == "too_many_texts"


def test_the_deepest_allowed_nesting_is_read() -> None:
    body = parse(b'{"x": ' + b'[{"k": ' * 120 + b'"deep"' + b"}]" * 120 + b"}")
    assert texts(body)[0].endswith("deep")


# The conversation as one text


def test_an_unknown_message_form_is_judged() -> None:
    assert texts({"messages": {"role": "user", "content": "x"}}) == ["role\nuser\ncontent\nx"]
    assert texts({"messages": "x"}) == ["x"]


def test_extraction_changes_nothing_in_the_body() -> None:
    before = json.dumps(RICH_CHAT)
    extract_texts("chat", RICH_CHAT)
    assert json.dumps(RICH_CHAT) == before
