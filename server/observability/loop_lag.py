"""How late the event loop is: what blocks it makes every client wait."""

from __future__ import annotations

import asyncio
from collections import deque

from lethe.server.observability.metrics import Metrics

INTERVAL_S = 0.1
REMEMBERED_S = 10.0


async def watch(metrics: Metrics) -> None:
    """Keep `lethe_loop_lag_seconds` at the longest delay of the last ten seconds, until cancelled."""
    loop = asyncio.get_running_loop()
    lags: deque[float] = deque(maxlen=round(REMEMBERED_S / INTERVAL_S))
    while True:
        wanted = loop.time() + INTERVAL_S
        await asyncio.sleep(INTERVAL_S)
        lags.append(max(0.0, loop.time() - wanted))
        metrics.loop_lag.set(max(lags))
