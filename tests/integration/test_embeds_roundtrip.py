"""Clean embeddings answer as the text does, on the real vLLM: same tokens, same prompt_tokens."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from lethe.corruption.embeddings.corruptor import Corruptor
from lethe.corruption.prompt.message_parts import replaceable_texts
from lethe.corruption.spec import CorruptSpec

QUESTION = "Who is Jaime Vasquez, born on 25/02/1958 in Santiago?"
TOOLS = [{"type": "function", "function": {"name": "look", "description": "d", "parameters": {"type": "object"}}}]
CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"a": "x"}'}}
CORRUPTIONS = [
    CorruptSpec(tokens="content"),
    CorruptSpec(tokens="content", strength=0.7),
    CorruptSpec(function="noise", tokens="content", sigma=1e6, dims=1),
    CorruptSpec(function="zero", tokens="content"),
]


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def parts(*found: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in found]


CHATS: dict[str, dict[str, Any]] = {
    "a string": {"messages": [user(QUESTION)]},
    "one part": {"messages": [user(parts(QUESTION))]},
    "several parts": {"messages": [user(parts("Tell me. ", QUESTION, " Thanks"))]},
    "parts that share a token": {"messages": [user(parts("Tell me, who is Jai", "me Vasquez"))]},
    "several messages": {
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            user(QUESTION),
            {"role": "assistant", "content": "He is an author."},
            user(QUESTION),
        ]
    },
    "a developer": {"messages": [{"role": "developer", "content": "Be brief."}, user(QUESTION)]},
    "tools": {"messages": [user(QUESTION)], "tools": TOOLS, "tool_choice": "none"},
    "a tool's result": {
        "messages": [
            user(QUESTION),
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "call_1", "content": parts("It is", QUESTION)},
        ],
        "tools": TOOLS,
        "tool_choice": "none",
    },
    "empty contents": {"messages": [{"role": "system", "content": ""}, user("   "), user(QUESTION)]},
    "special tokens in text": {"messages": [user("a<|end|><|assistant|>b " + QUESTION)]},
    "other scripts": {"messages": [user("Ünï ﬁ e\u0301 日本 🙂 \u200b \xadx")]},
    "white space at the edges": {"messages": [user(f"\n  {QUESTION} \n\n")]},
    "two thousand tokens": {"messages": [user(" ".join([QUESTION] * 110))]},
    "a continued answer": {
        "messages": [user(QUESTION), {"role": "assistant", "content": "Jaime"}],
        "add_generation_prompt": False,
        "continue_final_message": True,
    },
    "a repeated content": {"messages": [user("user"), {"role": "assistant", "content": "user"}, user("user")]},
    "a truncated prompt": {"messages": [user(QUESTION)], "truncate_prompt_tokens": 12},
}


@pytest.fixture(scope="module")
def corruptor(demo_model: Path) -> Corruptor:
    return Corruptor(demo_model, b"a secret of the tests")


async def answer(url: str, path: str, body: dict[str, Any]) -> tuple[int, str]:
    """(prompt tokens, text) of a greedy answer."""
    asked = {"model": "demo", "temperature": 0, "max_tokens": 16} | body
    # A file, because aiohttp warns of large bodies that are bytes.
    sent = io.BytesIO(json.dumps(asked).encode())
    headers = {"content-type": "application/json"}
    async with (
        aiohttp.ClientSession(url, headers=headers) as session,
        session.post(f"/v1/{path}", data=sent) as response,
    ):
        found = await response.json()
        assert response.status == 200, found
    choice = found["choices"][0]
    return found["usage"]["prompt_tokens"], choice["text"] if "text" in choice else choice["message"]["content"]


@pytest.mark.vllm
@pytest.mark.parametrize("body", CHATS.values(), ids=CHATS)
async def test_clean_chat_embeddings_answer_as_the_text(
    vllm_url: str, corruptor: Corruptor, body: dict[str, Any]
) -> None:
    expected = await answer(vllm_url, "chat/completions", body)
    assert (
        await answer(
            vllm_url,
            "chat/completions",
            corruptor.chat(body, dict.fromkeys(replaceable_texts(body["messages"]), ()), None, ""),
        )
        == expected
    )
    last = list(replaceable_texts(body["messages"]))[-1]
    only_last = corruptor.chat(body, {last: ()}, None, "p")
    assert await answer(vllm_url, "chat/completions", only_last) == expected


@pytest.mark.vllm
@pytest.mark.parametrize("spec", CORRUPTIONS, ids=lambda spec: f"{spec.function}-{spec.strength}")
async def test_corrupted_chats_keep_prompt_tokens_and_answer_something_else(
    vllm_url: str, corruptor: Corruptor, spec: CorruptSpec
) -> None:
    body = CHATS["several messages"]
    tokens, text = await answer(vllm_url, "chat/completions", body)
    corrupted = corruptor.chat(body, {(3, None): ()}, spec, "p")
    found = await answer(vllm_url, "chat/completions", corrupted)
    assert found[0] == tokens and found[1] != text
    assert await answer(vllm_url, "chat/completions", corrupted) == found


@pytest.mark.vllm
@pytest.mark.parametrize("prompt", [QUESTION, "a", [1, 4, 300, 20, 5]], ids=["text", "a letter", "token ids"])
async def test_clean_completion_embeddings_answer_as_the_prompt(
    vllm_url: str, corruptor: Corruptor, prompt: Any
) -> None:
    expected = await answer(vllm_url, "completions", {"prompt": prompt})
    embedded = {"prompt_embeds": corruptor.completion(prompt, (), None, "")}
    assert await answer(vllm_url, "completions", embedded) == expected
