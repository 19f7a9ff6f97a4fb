"""The OpenAPI document agrees with the tables it is generated from; tests/fuzz sends requests generated from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lethe.server.http import openapi
from lethe.server.requests.fields import REFUSED_PARTS, TABLES
from lethe.server.requests.routes import ROUTES
from lethe.server.settings import Settings

OPEN = openapi.openapi_document(ROUTES, Settings())
SCHEMAS = OPEN["components"]["schemas"]


def test_the_document_lists_exactly_the_routes() -> None:
    listed = {(path, method) for path, operations in OPEN["paths"].items() for method in operations}
    own = {("/health", "get"), ("/ready", "get")}
    assert listed == {(path, method.lower()) for path, method, _ in ROUTES} | own


@pytest.mark.parametrize("endpoint", TABLES)
def test_the_document_describes_every_field(endpoint: Any) -> None:
    table, fields = TABLES[endpoint], SCHEMAS[endpoint]["properties"]
    known = table.shown.union(table.judged, table.words, table.numeric, table.harmless, table.refused, table.walked)
    assert set(fields) == known
    for name in table.refused:
        assert fields[name]["description"].startswith("Refused: ")
    for name, reason in table.harmless.items():
        assert reason in fields[name]["description"]


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        inner = [references(item) for item in value.values()]
        return set().union({value["$ref"]} if "$ref" in value else set(), *inner)
    return set().union(*map(references, value)) if isinstance(value, list) else set()


def test_every_reference_has_a_target() -> None:
    targets = {f"#/components/schemas/{name}" for name in SCHEMAS}
    assert references(OPEN) == targets


def test_refused_part_types_are_listed() -> None:
    assert set(SCHEMAS["Part"]["anyOf"][0]["propertyNames"]["not"]["enum"]) == REFUSED_PARTS


def test_keys_and_token_ids_depend_on_the_settings() -> None:
    more = openapi.openapi_document(ROUTES, Settings(keys=Path("keys.json"), model_dir=Path("model")))
    chat, open_chat = (document["paths"]["/v1/chat/completions"]["post"]["responses"] for document in (more, OPEN))
    assert set(chat) - set(open_chat) == {"401", "404", "429"}
    assert more["security"] and not OPEN["security"]
    prompts = [document["components"]["schemas"]["completions"]["properties"]["prompt"] for document in (more, OPEN)]
    assert [{"type": "array", "items": {"type": "integer", "minimum": 0}} in one["anyOf"] for one in prompts] == [
        True, False,
    ]  # fmt: skip


def test_errors_have_the_form_of_the_routes_dialect() -> None:
    for path, operations in OPEN["paths"].items():
        for operation in operations.values():
            failed = operation["responses"].get("400", {"content": {}})["content"]
            name = "AnthropicError" if path.startswith("/v1/messages") else "Error"
            assert references(failed) <= {f"#/components/schemas/{name}"}
