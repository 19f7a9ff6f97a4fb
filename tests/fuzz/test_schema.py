"""Requests made from the gateway's own OpenAPI documents, against both ports: what they promise is what is answered."""

from __future__ import annotations

from typing import Any

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import Case, GenerationMode, Response
from schemathesis.checks import CHECKS, load_all_checks

from lethe.server.http import openapi
from lethe.server.requests.routes import ROUTES
from lethe.server.settings import Settings
from tests.fuzz.conftest import FACTOR, Served

load_all_checks()
PROMISES = CHECKS.get_by_names([
    "status_code_conformance", "content_type_conformance", "response_headers_conformance", "allow_header_conformance",
    "response_schema_conformance", "negative_data_rejection", "unsupported_method",
])  # fmt: skip
# Of what the document allows, refused for what no schema can say.
BEYOND_SCHEMA = {"invalid_json", "reserved_text", "too_deep", "duplicate_key", "refused_field", "unsupported"}
# An answer of these: not ready.
MAY_BE_UNREADY = {"/ready", "/admin/forget"}
public = schemathesis.openapi.from_dict(openapi.openapi_document(ROUTES, Settings()))
if FACTOR == 1:
    # Each of these is read as another one is.
    public = public.exclude(path=["/v1/chat/completions/batch", "/v1/messages/count_tokens", "/score", "/v1/rerank",
                                  "/v2/rerank", "/pooling", "/tokenize", "/v1/score", "/rerank"])  # fmt: skip
some = settings(max_examples=8 * FACTOR, deadline=None, suppress_health_check=list(HealthCheck))


def promised(case: Case, url: str, **given: Any) -> Response:
    response = case.call(base_url=url, **given)
    case.validate_response(response, checks=PROMISES)
    return response


@public.parametrize()
@some
def test_the_public_port_keeps_its_promises(case: Case, served: Served) -> None:
    response = promised(case, served.gate.url)
    served.sent()
    if case.meta.generation.mode == GenerationMode.POSITIVE and response.status_code == 400:
        assert response.json()["error"].get("code", "refused_field") in BEYOND_SCHEMA, response.text
