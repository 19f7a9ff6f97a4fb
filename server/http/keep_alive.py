"""Comments in streams while the gateway has nothing to send: proxies close connections that are silent for long."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable

from lethe.server.http.exchange import Exchange

# Streams are checked this often in the time after which a comment is due. Chosen: none comes more than a quarter later.
CHECKS_PER_SILENCE = 4


async def send_comments(requests: Iterable[Exchange], silence_s: float) -> None:
    """Send a comment on each stream that was silent for `silence_s` seconds, until cancelled.

    requests: those in flight; it changes while this runs.
    """
    sending: set[Exchange] = set()
    async with asyncio.TaskGroup() as group:
        while True:
            await asyncio.sleep(silence_s / CHECKS_PER_SILENCE)
            for request in list(requests):
                if request.response.comment_is_due(silence_s) and request not in sending:
                    # In a task of its own: a client that does not read must not hold up the others.
                    sending.add(request)
                    group.create_task(_send_comment(request, sending))


async def _send_comment(request: Exchange, sending: set[Exchange]) -> None:
    with contextlib.suppress(OSError):  # the client has disconnected
        await request.response.send_comment()
    sending.discard(request)
