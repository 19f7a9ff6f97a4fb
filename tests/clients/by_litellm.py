"""LiteLLM's ordinary work, in a process of its own: it leaves threads and event loops behind.

Reads pieces of work as lines of JSON from standard input, and writes what came of it as JSON to standard output.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from typing import Any

# Nothing is to be fetched from elsewhere.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
import litellm
import openai

litellm.suppress_debug_info = True


def failed(call: Callable[[], Any]) -> dict[str, Any]:
    """What a call raises that has to."""
    try:
        call()
    except openai.APIError as error:  # what all of its errors are
        return {"kind": type(error).__name__, "status": getattr(error, "status_code", None), "message": str(error)}
    raise AssertionError("no error was raised")


def joined(chunks: Any) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


async def waiting(asked: dict[str, Any]) -> list[str]:
    whole = await litellm.acompletion(**asked)
    stream = await litellm.acompletion(**asked, stream=True)
    return [whole.choices[0].message.content, joined([chunk async for chunk in stream])]


def done(work: dict[str, Any], case: dict[str, Any]) -> dict[str, Any]:
    given = {"model": f"openai/{case['model']}", "api_base": f"{work['url']}/v1", "api_key": work["key"]}
    asked = {**given, "messages": case["messages"], "max_tokens": work["most"], "temperature": 0}
    formed = {**asked, "logit_bias": work["bias"]}
    called = litellm.completion(**formed, tools=[work["tool"]], tool_choice=work["forced"])
    pieces = list(litellm.completion(**formed, tools=[work["tool"]], tool_choice=work["forced"], stream=True))
    rebuilt = litellm.stream_chunk_builder(pieces, messages=case["messages"])
    form = {"type": "json_schema", "json_schema": work["form"]}
    response = litellm.responses(**given, input=case["question"], max_output_tokens=work["most"], temperature=0)
    return {
        "texts": [
            litellm.completion(**asked).choices[0].message.content,
            joined(litellm.completion(**asked, stream=True, stream_options={"include_usage": True})),
            *asyncio.run(waiting(asked)),
            response.output[0].content[0].text,
        ],
        "notes": [
            called.choices[0].message.tool_calls[0].function.arguments,
            rebuilt.choices[0].message.tool_calls[0].function.arguments,
            litellm.completion(**formed, response_format=form).choices[0].message.content,
        ],
    }  # fmt: skip


def wrong(work: dict[str, Any], case: dict[str, Any]) -> list[dict[str, Any]]:
    given = {"api_base": f"{work['url']}/v1", "api_key": work["key"], "messages": case["messages"]}
    model = f"openai/{case['model']}"
    return [
        failed(lambda: litellm.completion(**given, model=model, temperature=-1)),
        failed(lambda: litellm.completion(**given, model=model, temperature=-1, stream=True)),
        failed(lambda: litellm.completion(**given, model="openai/none")),
        failed(lambda: litellm.embedding(model=model, input=["a"], api_base=given["api_base"], api_key=work["key"])),
    ]


def refused(work: dict[str, Any], case: dict[str, Any]) -> list[dict[str, Any]]:
    asked = {"api_base": f"{work['url']}/v1", "model": f"openai/{case['model']}", "messages": case["messages"]}
    return [
        failed(lambda: litellm.completion(**asked, api_key=work["key"])),
        failed(lambda: litellm.completion(**asked, api_key=work["key"], stream=True)),
        failed(lambda: litellm.completion(**asked, api_key="lethe-nobodys")),
    ]


if __name__ == "__main__":
    makes = {"done": done, "wrong": wrong, "refused": refused}
    works = [json.loads(line) for line in sys.stdin]
    json.dump([[makes[work["do"]](work, case) for case in work["cases"]] for work in works], sys.stdout)
