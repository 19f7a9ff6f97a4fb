"""Every field with odd values: a flagged and an unflagged request get the same status, in the same words.

The upstream has the verdicts of vLLM's own request classes, and can't do with embeddings what vLLM can't.
"""

from __future__ import annotations

import copy
import json
import random
from typing import Any, get_args

import aiohttp
import pytest
from aiohttp import web

from lethe.server.guard import targets
from lethe.server.requests.field_types import as_boolean
from lethe.server.requests.fields import RELAYED, TABLES, Endpoint
from lethe.server.requests.routes import ROUTES
from lethe.server.upstream.capabilities import Capabilities
from lethe.server.upstream.pool import ReplicaPool
from tests.server.fakes import KEYWORD, FakeUpstream, gateway, make_guard, policy, upstream
from tests.server.guard.test_guard import Recorder, artifact

pytest.importorskip("vllm", reason="asks vLLM's own classes")
from tests.server import vllm_fields
from tests.server.requests.test_validation import ODD, refuses

GUARDED: tuple[Endpoint, ...] = tuple(e for e in get_args(Endpoint) if e not in RELAYED)
PATHS = {endpoint: path for path, _, endpoint in ROUTES}
SPELLINGS: list[Any] = ["true", "false", "off", "0", 0, 1, 0.0, "1"]
MEMBERS: list[tuple[str, Any]] = [
    *(("chat_template_kwargs", {name: value}) for name in ("tokenize", "return_dict", "padding", "truncation", "x")
      for value in (True, False, "max_length", 5)),
    *(("structured_outputs", {"choice": value}) for value in ([], None, "x", [1], [""], ["yes", "no"])),
    ("logprob_token_ids", [10**9]), ("logprob_token_ids", [1]), ("logit_bias", {"999999999": 1}),
    ("stream_options", {"include_usage": "false"}),
]  # fmt: skip
# Odd values of each field that are tried in one run; a seed of its own for each endpoint and action.
SAMPLE = 3


def cases(endpoint: Endpoint, seed: str) -> list[dict[str, Any]]:
    names = {name for made in vllm_fields.request_classes()[endpoint] for name in made.model_fields}
    # The texts themselves are the subject of other tests.
    names -= {*TABLES[endpoint].refused, *TABLES[endpoint].walked, "model"}
    rng = random.Random(f"{endpoint} {seed}")
    bodies = [{name: odd} for name in sorted(names) for odd in rng.sample(ODD, SAMPLE)]
    bodies += [{name: odd} for name in sorted(names & TABLES[endpoint].numeric) for odd in rng.sample(SPELLINGS, 3)]
    return bodies + [{name: value} for name, value in MEMBERS if name in names]


def with_text(endpoint: Endpoint, text: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    key, value = {
        "completions": ("prompt", text), "responses": ("input", text), "batch": ("messages", [messages])
    }.get(endpoint, ("messages", messages))  # fmt: skip
    return {**copy.deepcopy(vllm_fields.BASES[endpoint]), key: value}


def as_vllm(endpoint: Endpoint) -> Any:
    async def handler(fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
        if request.method == "GET":
            return web.json_response({"data": [{"id": "m"}]})
        raw = await request.read()
        body = json.loads(raw)
        rewritten = body.pop("corrupted", None) or "embeds of" in raw.decode()
        if "prompt_embeds" in body:
            body["prompt"] = "embeds"
            body.pop("prompt_embeds")
        if rewritten and as_boolean(body.get("use_beam_search")):
            return web.json_response({"error": {"message": "Embedding prompt not supported"}}, status=501)
        if refuses(endpoint, body):
            return web.json_response({"error": {"message": "refused"}}, status=400)
        kwargs = body.get("chat_template_kwargs") or {}
        unknown_id = any(int(token) > 10**6 for token in body.get("logprob_token_ids") or ())
        choices = (body.get("structured_outputs") or {}).get("choice", ["x"]) or [None]
        if unknown_id or "tokenize" in kwargs or not all(choice and isinstance(choice, str) for choice in choices):
            return web.json_response({"error": {"message": "refused later"}}, status=400)
        if "return_dict" in kwargs:
            return web.json_response({"error": {"message": "broken"}}, status=500)
        return web.json_response({"choices": []})

    return handler


@pytest.mark.parametrize("action", ["corrupt", "penalize", "both"])
@pytest.mark.parametrize("endpoint", GUARDED)
async def test_every_odd_field_gets_the_same_status_flagged_or_not(
    endpoint: Endpoint, action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ReplicaPool, "capabilities", lambda self: Capabilities.of_any_model(parity=True))
    monkeypatch.setattr(targets, "evidence_spans", lambda artifact, text: ())
    guard = make_guard(
        policy(action=action, corrupt={"tokens": "content"}), artifacts={"a": artifact()}, corruptor=Recorder()
    )
    different = []
    async with upstream(as_vllm(endpoint)) as fake, gateway(fake.url, guard) as gate, aiohttp.ClientSession() as http:
        for more in cases(endpoint, action):
            answers = []
            for text in ("hello", KEYWORD):
                body = {**with_text(endpoint, text), **more}
                async with http.post(gate.url + PATHS[endpoint], json=body, headers={"x-request-id": "one"}) as got:
                    answers.append((got.status, await got.text()))
            if answers[0] != answers[1]:
                different.append((more, *answers))
    assert different == []
