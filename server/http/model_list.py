"""`GET /v1/models`: the models of all replicas, as far as the client's key may use them."""

from __future__ import annotations

import orjson

from lethe.server.errors import UpstreamFailed
from lethe.server.http.exchange import Headers, RequestContext
from lethe.server.upstream.pool import ReplicaPool


async def model_list(pool: ReplicaPool, request: RequestContext, headers: Headers) -> bytes | None:
    """The list as JSON; None where any replica's own answer is right, so that it can be relayed.

    headers: those of the request for upstream. Raises UpstreamFailed where a replica's list can't be read.
    """
    key, models = request.key, pool.merged_model_list()
    if models is None and (key is None or key.models is None):
        return None
    if models is None:
        async with pool.open("GET", request.path.encode(), headers, None) as response:
            models = await response.read()
        if models is None:
            raise UpstreamFailed("the model server's list of models is too long", code="too_long")
    try:
        listing = orjson.loads(models)
        permitted = [model for model in listing["data"] if key is None or key.may_use(model["id"])]
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise UpstreamFailed("the model server's list of models can't be read", code="broken") from error
    return orjson.dumps({**listing, "data": permitted})
