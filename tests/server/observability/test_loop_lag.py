"""The event loop's delay is measured when something blocks it."""

from __future__ import annotations

import asyncio
import time

from lethe.server.observability import loop_lag
from lethe.server.observability.metrics import Metrics


async def test_a_blocked_event_loop_is_measured() -> None:
    metrics = Metrics()
    watching = asyncio.ensure_future(loop_lag.measure_loop_lag(metrics))
    await asyncio.sleep(0.01)
    time.sleep(loop_lag.INTERVAL_S + 0.3)
    await asyncio.sleep(2 * loop_lag.INTERVAL_S)
    seen = metrics.registry.get_sample_value("lethe_loop_lag_seconds")
    watching.cancel()
    assert seen is not None and 0.25 < seen < 10
