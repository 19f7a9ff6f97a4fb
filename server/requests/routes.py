"""The routes that the gateway serves, and the request format of each."""

from __future__ import annotations

from typing import Final

from lethe.server.requests.fields import Endpoint

# Path, method, endpoint (None: `/v1/models`, which has no body). A route of vLLM that is not listed is answered 404.
# That includes vLLM's stored responses (GET and cancel by id): they were generated under earlier policies. (The
# gateway's own `/health` and `/ready` are in `server/http/application.py`.)
ROUTES: Final[tuple[tuple[str, str, Endpoint | None], ...]] = (
    ("/v1/chat/completions", "POST", "chat"),
    ("/v1/chat/completions/batch", "POST", "batch"),
    ("/v1/completions", "POST", "completions"),
    ("/v1/responses", "POST", "responses"),
    ("/v1/messages", "POST", "messages"),
    ("/v1/messages/count_tokens", "POST", "count_tokens"),
    ("/v1/models", "GET", None),
    ("/v1/embeddings", "POST", "embeddings"),
    ("/v1/score", "POST", "score"),
    ("/score", "POST", "score"),
    ("/v1/rerank", "POST", "rerank"),
    ("/v2/rerank", "POST", "rerank"),
    ("/rerank", "POST", "rerank"),
    ("/pooling", "POST", "pooling"),
    ("/tokenize", "POST", "tokenize"),
    ("/detokenize", "POST", "detokenize"),
)
ENDPOINT_OF_ROUTE: Final = {(path, method): endpoint for path, method, endpoint in ROUTES}
