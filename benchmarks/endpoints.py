"""Requests for each endpoint that the gateway guards: paths, and bodies with one user message."""

from __future__ import annotations

from typing import Any

PATHS = {
    "chat": "/v1/chat/completions",
    "batch": "/v1/chat/completions/batch",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
}


def token_limit_field(endpoint: str) -> str:
    """The name of the field that limits the tokens of an answer."""
    return "max_output_tokens" if endpoint == "responses" else "max_tokens"


def endpoint_body(
    endpoint: str, model: str, text: str, max_tokens: int, *, batch_size: int = 1, **fields: Any
) -> dict[str, Any]:
    """A request body whose prompt is `text`. batch_size: conversations of a `batch` request."""
    body: dict[str, Any] = {"model": model, **fields, token_limit_field(endpoint): max_tokens}
    messages = [{"role": "user", "content": text}]
    if endpoint == "completions":
        return {**body, "prompt": text}
    if endpoint == "responses":
        return {**body, "input": text}
    return {**body, "messages": [messages] * batch_size if endpoint == "batch" else messages}
