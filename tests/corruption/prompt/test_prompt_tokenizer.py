"""Spans of texts in the prompt: what vLLM would put together is exactly the text prompt."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import AutoTokenizer

from lethe.corruption.prompt.content_format import detect_content_format
from lethe.corruption.prompt.message_parts import PROMPT_EMBEDS_MARKER, replaceable_texts
from lethe.corruption.prompt.prompt_tokenizer import PromptTokenizer
from lethe.corruption.spec import CorruptionError
from tests.corruption.conftest import ModelFolder

TOKENIZERS = ["byte-level", "sentencepiece"]
QUESTION = "Who is Ann Bold, born in 1956?"


def chat(*contents: object, role: str = "user", **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for content in contents], **more}


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


@cache
def load_tokenizer(folder: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    tokenizer.add_special_tokens({"additional_special_tokens": [PROMPT_EMBEDS_MARKER]})
    return tokenizer


def vllm_tokenizer(prompts: PromptTokenizer) -> Any:
    return load_tokenizer(prompts.folder)


def splice(prompts: PromptTokenizer, body: dict[str, Any], targets: list[tuple[int, int | None]]) -> list[int]:
    """Do what vLLM does: put markers into the body, render, tokenise, and put the ids in their place."""
    spans = prompts.chat_spans(body, targets)
    messages: list[Any] = [dict(message) for message in body["messages"]]
    for m, p in spans:
        if p is None:
            messages[m]["content"] = PROMPT_EMBEDS_MARKER
        else:
            content = list(messages[m]["content"])
            content[p] = {"type": "text", "text": PROMPT_EMBEDS_MARKER}
            messages[m]["content"] = content
    tokenizer = vllm_tokenizer(prompts)
    rendered = tokenizer.apply_chat_template(join_parts(prompts, messages), tokenize=False, add_generation_prompt=True)
    out: list[int] = []
    queue = [list(span.ids) for span in spans.values()]
    for token in tokenizer(rendered, add_special_tokens=False)["input_ids"]:
        out += queue.pop(0) if token == tokenizer.convert_tokens_to_ids(PROMPT_EMBEDS_MARKER) else [token]
    assert not queue
    return out


def join_parts(prompts: PromptTokenizer, messages: list[Any]) -> list[Any]:
    if detect_content_format(prompts.model_tokenizer.template(None, tools=False)) == "openai":
        return messages
    return [
        m if isinstance(m["content"], str) else m | {"content": "\n".join(p["text"] for p in m["content"])}
        for m in messages
    ]


def text_prompt_ids(prompts: PromptTokenizer, body: dict[str, Any]) -> list[int]:
    tokenizer = vllm_tokenizer(prompts)
    rendered = tokenizer.apply_chat_template(
        join_parts(prompts, body["messages"]), tokenize=False, add_generation_prompt=True
    )
    ids: list[int] = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    return ids


BODIES = {
    "one": chat(QUESTION),
    "repeated": chat("user", "user", "user"),
    "several": chat("You know authors.", QUESTION, "An author.", QUESTION),
    "edges": chat(" \n" + QUESTION + " \n\n"),
    "line breaks first": chat("\n\n" + QUESTION),
    "special tokens": chat("a<|end|><|assistant|>b"),
    "unicode": chat("naïve cafe\u0301 日本 🙂\u200b Кто"),
    "parts": chat(parts("Tell me. ", QUESTION, " Thanks")),
    "parts that share a token": chat(parts("Who is An", "n Bold?")),
    "long": chat(" ".join([QUESTION] * 100)),
}


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("template", ["marks", "newlines", "trimmed", "paragraphs", "parts"])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("which", ["all", "first", "last"])
def test_spliced_ids_equal_the_text_prompt(
    model_folder: ModelFolder, tokenizer: str, template: str, body: dict[str, Any], which: str
) -> None:
    prompts = PromptTokenizer(model_folder(template, tokenizer))
    texts = list(replaceable_texts(body["messages"]))
    targets = {"all": texts, "first": texts[:1], "last": texts[-1:]}[which]
    ids, expected = splice(prompts, body, targets), text_prompt_ids(prompts, body)
    if template == "paragraphs" or (template == "newlines" and body is BODIES["line breaks first"]):
        # A line break of the template joins one of the text in one token, so only the number of tokens is kept.
        assert len(ids) == len(expected)
    else:
        assert ids == expected
    assert prompts.chat_ids(body) == expected


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(alphabet=st.characters(codec="utf-8"), max_size=30), min_size=1, max_size=4))
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_any_text_is_spliced_or_refused(model_folder: ModelFolder, tokenizer: str, contents: list[str]) -> None:
    prompts = PromptTokenizer(model_folder("trimmed", tokenizer))
    body = chat(*contents)
    try:
        ids = splice(prompts, body, list(replaceable_texts(body["messages"])))
    except CorruptionError:
        return
    assert len(ids) == len(text_prompt_ids(prompts, body))


@pytest.mark.parametrize("content", ["", "  ", "\n\n"])
def test_texts_that_the_template_drops_have_no_span(model_folder: ModelFolder, content: str) -> None:
    prompts = PromptTokenizer(model_folder("trimmed"))
    assert prompts.chat_spans(chat(content, "x"), [(0, None)]) == {}


@pytest.mark.parametrize("template", ["marks", "trimmed"])
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_offsets_are_characters_of_the_text(model_folder: ModelFolder, template: str, tokenizer: str) -> None:
    prompts = PromptTokenizer(model_folder(template, tokenizer))
    content = f"  \n {QUESTION}\n"
    span = prompts.chat_spans(chat("x", content), [(1, None)])[1, None]
    for piece, (start, end) in zip(prompts.pieces(span.ids), span.offsets, strict=True):
        assert content[start:end].strip() == piece.strip()
    start = content.index("Ann")
    named = [
        piece
        for piece, (a, b) in zip(prompts.pieces(span.ids), span.offsets, strict=True)
        if a < start + 3 and b > start
    ]
    assert "".join(named).strip() == "Ann"


def test_a_text_that_the_template_changes_is_located(model_folder: ModelFolder) -> None:
    prompts = PromptTokenizer(model_folder("thinking"))
    span = prompts.chat_spans(chat("<think>Ann</think>Ben Gray"), [(0, None)])[0, None]
    assert prompts.decode(span.ids) == "Ben Gray"
    assert (span.offsets[0][0], span.offsets[-1][1]) == (18, 26)


def test_a_span_at_the_end_of_the_prompt_is_final(model_folder: ModelFolder) -> None:
    prompts = PromptTokenizer(model_folder("parts"))
    body = {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ann"}]}
    assert not prompts.chat_spans(body, [(1, None)])[1, None].ends_prompt
    continued = body | {"add_generation_prompt": False, "continue_final_message": True}
    assert prompts.chat_spans(continued, [(1, None)])[1, None].ends_prompt


def test_images_do_not_disturb_the_texts(model_folder: ModelFolder) -> None:
    prompts = PromptTokenizer(model_folder("parts"))
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    spans = prompts.chat_spans(chat([image, *parts(QUESTION)]), [(0, 1)])
    assert prompts.decode(spans[0, 1].ids) == QUESTION


def test_tools_and_template_arguments_reach_the_template(model_folder: ModelFolder) -> None:
    template = "{{ tools | tojson }}{{ mood }}{{ documents | length }}{{ messages[0].content }}"
    prompts = PromptTokenizer(model_folder(), chat_template=template)
    body = chat(
        QUESTION,
        tools=[{"type": "function"}],
        documents=[{"text": "d"}],
        chat_template_kwargs={"mood": "calm"},
    )
    assert prompts.decode(prompts.chat_spans(body, [(0, None)])[0, None].ids) == QUESTION
    assert len(prompts.chat_ids(body)) > len(prompts.chat_ids(chat(QUESTION, documents=[])))


@pytest.mark.parametrize("role", ["system", "developer"])
def test_developer_messages_become_system_messages(model_folder: ModelFolder, role: str) -> None:
    prompts = PromptTokenizer(model_folder())
    body = {"messages": [{"role": role, "content": "Be kind."}, {"role": "user", "content": QUESTION}]}
    assert prompts.chat_ids(body) == prompts.chat_ids(
        {"messages": [body["messages"][0] | {"role": "system"}, body["messages"][1]]}
    )
    assert prompts.decode(prompts.chat_spans(body, [(0, None)])[0, None].ids) == "Be kind."


@pytest.mark.parametrize(
    ("template", "body", "targets", "message"),
    [
        ("spaced", chat("Ann"), [(0, None)], "shares tokens"),
        ("twice", chat(QUESTION), [(0, None)], "shows 2 of 1"),
        ("reversed", chat("one", "two"), [(0, None), (1, None)], "another order"),
        ("failing", chat(QUESTION), [(0, None)], "failed with TemplateError"),
        ("marks", chat(f"a {PROMPT_EMBEDS_MARKER} b"), [(0, None)], "reserved"),
        ("marks", chat("a", PROMPT_EMBEDS_MARKER), [(0, None)], "reserved"),
        ("marks", chat(QUESTION), [(0, 0)], "no text at part 0"),
        ("marks", chat(QUESTION), [(3, None)], r"messages\[3\]"),
        ("marks", chat("\ud800"), [(0, None)], "can't be encoded"),
        ("marks", chat(QUESTION, chat_template_kwargs={"max_length": 3}), [(0, None)], "max_length"),
        ("marks", chat(QUESTION, chat_template_kwargs=[1]), [(0, None)], "not an object"),
        ("marks", {"messages": []}, [], "messages"),
        ("marks", {"messages": ["x"]}, [(0, None)], r"messages\[0\] is not an object"),
        ("marks", {"messages": [{"content": "x"}]}, [(0, None)], "has no role"),
        (
            "marks",
            {"messages": [{"role": "user", "content": 3}, {"role": "user", "content": "a"}]},
            [(1, None)],
            "neither",
        ),
        ("marks", chat(["a", *parts("b")]), [(0, 1)], "not an object"),
    ],
)
def test_prompts_that_cannot_be_rewritten_exactly_are_refused(
    model_folder: ModelFolder, template: str, body: dict[str, Any], targets: list[Any], message: str
) -> None:
    with pytest.raises(CorruptionError, match=message):
        PromptTokenizer(model_folder(template)).chat_spans(body, targets)


def test_errors_never_quote_the_prompt(model_folder: ModelFolder) -> None:
    with pytest.raises(CorruptionError) as caught:
        PromptTokenizer(model_folder("failing")).chat_ids(chat("my secret"))
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


@pytest.mark.parametrize("ids", [[-1], [10**6], [True], ["a"]])
def test_ids_outside_the_vocabulary_are_refused(model_folder: ModelFolder, ids: list[Any]) -> None:
    prompts = PromptTokenizer(model_folder())
    with pytest.raises(CorruptionError, match="token id"):
        prompts.completion(ids)
    with pytest.raises(CorruptionError, match="token id"):
        prompts.decode(ids)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_token_id_prompts_have_offsets_in_their_text(model_folder: ModelFolder, tokenizer: str) -> None:
    prompts = PromptTokenizer(model_folder("marks", tokenizer))
    ids = list(prompts.completion(f"<|user|>{QUESTION}", add_special_tokens=False)[0].ids)
    span, num_leading_tokens = prompts.completion(ids)
    decoded = prompts.decode(ids)
    assert (list(span.ids), num_leading_tokens, span.ends_prompt) == (ids, 0, True)
    for piece, (start, end) in zip(prompts.pieces(ids), span.offsets, strict=True):
        assert decoded[start:end].strip() == piece.strip()


def test_a_completion_with_the_reserved_text_is_refused(model_folder: ModelFolder) -> None:
    with pytest.raises(CorruptionError, match="reserved"):
        PromptTokenizer(model_folder()).completion(f"a {PROMPT_EMBEDS_MARKER}")


def test_reasoning_effort_reaches_the_template(model_folder: ModelFolder) -> None:
    template = "{{ reasoning_effort }} {{ enable_thinking }} {{ messages[0].content }}"
    prompts = PromptTokenizer(model_folder(), chat_template=template)

    def rendered(**more: Any) -> str:
        body = chat("<|user|>Ann", **more)
        return prompts.decode(prompts.chat_spans(body, [(0, None)])[0, None].ids) + str(len(prompts.chat_ids(body)))

    plain, quiet = rendered(), rendered(reasoning_effort="none")
    kept = rendered(reasoning_effort="none", chat_template_kwargs={"enable_thinking": True})
    assert len({plain, quiet, kept}) == 3


def test_a_line_break_may_stay_in_the_templates_token(model_folder: ModelFolder) -> None:
    prompts = PromptTokenizer(model_folder("newlines"))
    span = prompts.chat_spans(chat("\n\n" + QUESTION), [(0, None)])[0, None]
    assert prompts.decode(span.ids) == "\n" + QUESTION
    assert (span.offsets[0][0], span.offsets[-1][1]) == (1, 2 + len(QUESTION))


def test_many_texts_that_share_tokens_are_refused(model_folder: ModelFolder) -> None:
    body = chat(*["Ann"] * 40)
    with pytest.raises(CorruptionError, match="40 texts"):
        PromptTokenizer(model_folder("spaced")).chat_spans(body, list(replaceable_texts(body["messages"])))


def test_add_special_tokens_is_refused_if_it_adds_tokens(
    model_folder: ModelFolder,
) -> None:
    prompts = PromptTokenizer(model_folder("marks"))
    prompts._backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    assert prompts.chat_spans(chat(QUESTION), [(0, None)])
    with pytest.raises(CorruptionError):
        prompts.chat_spans(chat(QUESTION, add_special_tokens=True), [(0, None)])
    span, num_leading_tokens = prompts.completion(QUESTION)
    assert num_leading_tokens == 1 and prompts.decode(span.ids[:1]) == "<s>"


def test_the_error_names_a_folder_without_tokenizer(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match=str(tmp_path)):
        PromptTokenizer(tmp_path)
