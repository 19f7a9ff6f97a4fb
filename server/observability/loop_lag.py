"""Delay of the event loop: what blocks the loop delays every client."""

from __future__ import annotations

import asyncio
from collections import deque

from lethe.server.observability.metrics import Metrics

# Seconds between two measurements. Chosen: blocks of a tenth of a second are noticed.
INTERVAL_S = 0.1
# Seconds over which the maximum is shown. Chosen: a scrape interval of 10 s misses no block.
WINDOW_S = 10.0


async def measure_loop_lag(metrics: Metrics) -> None:
    """Set `lethe_loop_lag_seconds` to the longest delay of the last WINDOW_S, until cancelled."""
    loop = asyncio.get_running_loop()
    lags: deque[float] = deque(maxlen=round(WINDOW_S / INTERVAL_S))
    while True:
        expected = loop.time() + INTERVAL_S
        await asyncio.sleep(INTERVAL_S)
        lags.append(max(0.0, loop.time() - expected))
        metrics.loop_lag.set(max(lags))
