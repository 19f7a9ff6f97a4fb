"""`GET /v1/models`: the models of all replicas, as far as the client's key may use them."""

from __future__ import annotations

import orjson

from lethe.server.errors import UpstreamFailed
from lethe.server.http.api_keys import Key
from lethe.server.upstream.model_cards import model_cards


def permitted_models(raw: bytes, key: Key | None) -> bytes:
    """A list of models with only those that the key may use. Raises UpstreamFailed where it can't be read."""
    try:
        listing = orjson.loads(raw)
        models = [card for card in model_cards(listing) if key is None or key.may_use(card["id"])]
    except ValueError as error:  # orjson.JSONDecodeError is one
        raise UpstreamFailed("the upstream response to /v1/models is not a list of models", code="broken") from error
    return orjson.dumps({**listing, "data": models})
