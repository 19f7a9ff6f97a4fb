"""Every field of vLLM's request classes, nested ones included, each in a body that a client could send.

Read from the classes' JSON schemas. `python -m tests.server.vllm_fields` writes what becomes of each field into
`vllm_fields.json`, for a new vLLM: read the difference before committing it.
"""

from __future__ import annotations

import json
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lethe.server.errors import BadRequest
from lethe.server.requests.extract import extract_texts
from lethe.server.requests.fields import TABLES, Endpoint

RECORDED = Path(__file__).with_suffix(".json")
MARKER = "zanzibar"
Schema = dict[str, Any]
Build = Callable[[Any], Any]


def request_classes() -> dict[Endpoint, list[Any]]:
    """vLLM's request classes by endpoint; several where it hands what one doesn't know on to the next."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from vllm.entrypoints.anthropic.protocol import AnthropicCountTokensRequest, AnthropicMessagesRequest
        from vllm.entrypoints.openai.chat_completion.protocol import BatchChatCompletionRequest, ChatCompletionRequest
        from vllm.entrypoints.openai.completion.protocol import CompletionRequest
        from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
    return {
        "chat": [ChatCompletionRequest],
        "batch": [BatchChatCompletionRequest, ChatCompletionRequest],
        "completions": [CompletionRequest],
        "responses": [ResponsesRequest],
        "messages": [AnthropicMessagesRequest],
        "count_tokens": [AnthropicCountTokensRequest],
    }


@dataclass(frozen=True)
class Field:
    """A field: its name (`top-level field/class.member`), a body with a text in it (None: it can hold none)."""

    name: str
    body: Callable[[str], dict[str, Any]] | None


BASES: dict[Endpoint, dict[str, Any]] = {
    "chat": {"messages": [{"role": "user", "content": "x"}]},
    "batch": {"messages": [[{"role": "user", "content": "x"}]]},
    "completions": {"prompt": "x"},
    "responses": {"input": "x"},
    "messages": {"messages": [], "model": "x", "max_tokens": 1},
    "count_tokens": {"messages": [], "model": "x"},
}


def fields(endpoint: Endpoint) -> Iterator[Field]:
    """Every field of an endpoint's request classes, those of the classes inside once for each field at the top."""
    taken: set[str] = set()
    for made in request_classes()[endpoint]:
        schema = made.model_json_schema()
        for top, node in schema["properties"].items():
            if top not in taken:
                yield from _fields(top, node, schema.get("$defs", {}), BASES[endpoint])
        taken |= schema["properties"].keys()


def _fields(top: str, node: Schema, definitions: Schema, base: dict[str, Any]) -> Iterator[Field]:
    holds = list(_texts(node, definitions))
    yield Field(top, _after(_member(base, top), holds[0]) if holds else None)
    seen: set[str] = set()
    todo: deque[tuple[Schema, Build]] = deque([(node, _member(base, top))])
    while todo:
        here, build = todo.popleft()
        for kind, inner, wrap in _inside(here, definitions):
            path = _after(build, wrap)
            if kind is None:
                todo.append((inner, path))
            elif kind not in seen:
                seen.add(kind)
                # A class that is several: one for each type that it may be.
                types = inner.get("properties", {}).get("type", {}).get("enum", [None])
                for one in types:
                    least = _least(inner, definitions) | ({} if one is None else {"type": one})
                    # Pydantic puts the module before names that are there twice, not always in the same cases.
                    short = kind.rsplit("__", 1)[-1]
                    name = f"{top}/{short}" if one is None else f"{top}/{short}({one})"
                    for member, member_node in inner.get("properties", {}).items():
                        placed = _after(path, _member(least, member))
                        holds = list(_texts(member_node, definitions))
                        yield Field(f"{name}.{member}", _after(placed, holds[0]) if holds else None)
                        todo.append((member_node, placed))


def _itself(value: Any) -> Any:
    return value


def _listed(value: Any) -> Any:
    return [value]


def _after(outer: Build, inner: Build) -> Build:
    return lambda value: outer(inner(value))


def _member(rest: dict[str, Any], name: str) -> Build:
    return lambda value: {**rest, name: value}


def _as_key(value: Any) -> Build:
    return lambda text: {text: value}


def _alternatives(node: Schema) -> list[Schema]:
    return [one for key in ("anyOf", "oneOf", "allOf") for one in node.get(key, ())] or [node]


def _inside(node: Schema, definitions: Schema) -> Iterator[tuple[str | None, Schema, Build]]:
    """What a node may hold: a class by name, or another node; each with what wraps it."""
    for one in _alternatives(node):
        if "$ref" in one:
            name = one["$ref"].rsplit("/", 1)[1]
            yield name, definitions[name], _itself
        elif one is not node:
            yield None, one, _itself
        elif one.get("type") == "array" and isinstance(one.get("items"), dict):
            yield None, one["items"], _listed
        elif isinstance(one.get("additionalProperties"), dict):
            yield None, one["additionalProperties"], _member({}, "key")


def _texts(node: Schema, definitions: Schema) -> Iterator[Build]:
    """The ways in which a node itself holds free text; classes inside have members of their own."""
    for one in _alternatives(node):
        if one is not node:
            yield from _texts(one, definitions)
        elif "$ref" in one:
            inner = definitions[one["$ref"].rsplit("/", 1)[1]]
            if not inner.get("properties") and "enum" not in inner:
                yield from _texts(inner, definitions)
        elif "const" in one or "enum" in one:
            continue
        elif one.get("type") == "string" or not one.keys() - {"title", "default", "description", "deprecated"}:
            yield _itself
        elif one.get("type") == "array":
            items = one.get("items")
            leaves = _texts(items, definitions) if isinstance(items, dict) else iter([_itself])
            yield from (_after(_listed, leaf) for leaf in leaves)
        elif one.get("type") == "object" and not one.get("properties"):
            values = one.get("additionalProperties", True)
            if values is True:
                yield _member({}, "key")
            elif isinstance(values, dict):
                yield from (_after(_member({}, "key"), leaf) for leaf in _texts(values, definitions))
                yield _as_key(_value(values, definitions))


def _least(node: Schema, definitions: Schema) -> dict[str, Any]:
    """The least object of a class: its required members, and what says which class it is."""
    made = {}
    for name, member in node.get("properties", {}).items():
        if name in node.get("required", ()) or "const" in member:
            made[name] = _value(member, definitions)
    return made


def _value(node: Schema, definitions: Schema) -> Any:
    one = _alternatives(node)[0]
    if "$ref" in one:
        inner = definitions[one["$ref"].rsplit("/", 1)[1]]
        return inner["enum"][0] if "enum" in inner else _least(inner, definitions)
    if one is not node:
        return _value(one, definitions)
    if "const" in one:
        return one["const"]
    if "enum" in one:
        return one["enum"][0]
    match one.get("type"):
        case "array":
            return [_value(one["items"], definitions)] * one.get("minItems", 0) if "items" in one else []
        case "object":
            return _least(one, definitions)
        case "integer" | "number":
            return max(1, one.get("minimum", 1))
        case "boolean":
            return False
        case "null":
            return None
    return "x"


def group(endpoint: Endpoint, field: Field) -> str:
    """What the gateway does with a text in this field: judged, refused, harmless; or that there can be none."""
    if field.body is None:
        return "no text"
    try:
        texts = extract_texts(endpoint, field.body(MARKER), decode=lambda ids: "")
    except BadRequest:
        return "refused"
    return "judged" if any(MARKER in text.text for text in texts) else "harmless"


def groups(endpoint: Endpoint, every: Iterable[Field]) -> dict[str, str]:
    """Field → group. Classes of one name are one: what becomes of any of them is named."""
    made: dict[str, set[str]] = {}
    for field in every:
        made.setdefault(field.name, set()).add(group(endpoint, field))
    return {name: ", ".join(sorted(made[name])) for name in sorted(made)}


if __name__ == "__main__":
    assert set(request_classes()) == set(TABLES)
    found = {endpoint: groups(endpoint, fields(endpoint)) for endpoint in request_classes()}
    RECORDED.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
