"""Reading the list of models."""

from __future__ import annotations

from typing import Any

import pytest

from lethe.server.errors import UpstreamFailed
from lethe.server.upstream.client import Upstream
from lethe.server.upstream.model_cards import fetch_model_cards, model_cards
from tests.server.upstream.test_client import json_answer, serving


def test_cards_keep_their_fields_and_get_string_ids() -> None:
    assert model_cards({"data": [{"id": 7, "root": "x"}]}) == ({"id": "7", "root": "x"},)
    assert model_cards({"data": []}) == ()


@pytest.mark.parametrize("listing", [None, "text", [], {}, {"data": None}, {"data": [1]}, {"data": [{"name": "m"}]}])
def test_anything_else_is_not_a_list_of_models(listing: Any) -> None:
    with pytest.raises(ValueError, match="not a list of models"):
        model_cards(listing)


@pytest.mark.parametrize("body", [b'{"data": []}', b"{}", b"[1]"])
async def test_a_server_without_models_is_upstream_failed(body: bytes) -> None:
    async with serving(json_answer(body)) as server:
        upstream = Upstream(server.url, connect_timeout_s=5, read_timeout_s=5)
        try:
            with pytest.raises(UpstreamFailed, match="returned 200 and no model"):
                await fetch_model_cards(upstream)
        finally:
            await upstream.close()
