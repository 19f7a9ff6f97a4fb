"""Memory that was freed between used blocks returns to the system."""

from __future__ import annotations

import asyncio
import contextlib
import platform
import re
from pathlib import Path

import pytest

from lethe.server.observability import malloc

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's own")
BLOCKS, SIZE = 40_000, 1024


def private_mib() -> float:
    told = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    return sum(map(int, re.findall(r"^Private_\w+:\s+(\d+) kB", told, re.MULTILINE))) / 1024


async def test_free_memory_below_a_used_block_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(malloc, "TRIM_INTERVAL_S", 0.01)
    before = private_mib()
    held = [bytes(SIZE) for _ in range(BLOCKS)]
    stays = held[-1], held[BLOCKS // 2]
    held.clear()
    giving = asyncio.ensure_future(malloc.trim_periodically())
    async with asyncio.timeout(10):
        while private_mib() > before + BLOCKS * SIZE / 2**20 / 4:
            await asyncio.sleep(0.02)
    giving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await giving
    assert stays


async def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(malloc, "_glibc", lambda: None)
    malloc.return_large_blocks()
    async with asyncio.timeout(1):
        await malloc.trim_periodically()
