"""`GET /v1/models` of an upstream server: its model cards."""

from __future__ import annotations

from typing import Any

from lethe.server.errors import UpstreamFailed
from lethe.server.upstream.client import Upstream

ModelCard = dict[str, Any]


def model_cards(listing: Any) -> tuple[ModelCard, ...]:
    """The cards of a parsed model list; each has a string `id`. Raises ValueError if it isn't a model list."""
    try:
        return tuple({**card, "id": str(card["id"])} for card in listing["data"])
    except (KeyError, TypeError):
        raise ValueError("not a list of models") from None


async def fetch_model_cards(upstream: Upstream) -> tuple[ModelCard, ...]:
    """The cards of the models that a server serves; at least one. Raises GatewayError."""
    status, listing = await upstream.call("GET", "/v1/models")
    try:
        cards = model_cards(listing)
    except ValueError:
        cards = ()
    if not cards:
        raise UpstreamFailed(f"GET /v1/models returned {status} and no model", code="no_model")
    return cards
