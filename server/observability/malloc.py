"""Returning freed memory to the system. Works with glibc; with another C library nothing happens.

By default glibc keeps freed blocks of up to 32 MiB, and never returns free memory below a small block that is in use: a
few very long prompts would increase the memory of the process for good.
"""

from __future__ import annotations

import asyncio
import ctypes
from typing import Any

# Constants of glibc's <malloc.h>.
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8
# Bytes from which a block is mapped, and so returned when it is freed. Chosen: requests of ordinary size stay below.
LARGE_BLOCK_BYTES = 1 << 20
# Heaps that glibc may keep. Chosen: one for the event loop and one for the judging threads.
MAX_ARENAS = 2
# Seconds between two trims. A trim takes milliseconds, in which other threads may wait for memory.
TRIM_INTERVAL_S = 30.0


def _glibc() -> Any:
    """The C library, or None if it is not glibc."""
    try:
        libc = ctypes.CDLL(None)
    except OSError:
        return None
    return libc if hasattr(libc, "malloc_trim") and hasattr(libc, "mallopt") else None


def return_large_blocks() -> None:
    """Make the whole process return large blocks as soon as they are freed."""
    if libc := _glibc():
        libc.mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)
        libc.mallopt(M_ARENA_MAX, MAX_ARENAS)


async def trim_periodically() -> None:
    """Return free memory between blocks every TRIM_INTERVAL_S, until cancelled."""
    libc = _glibc()
    while libc:
        await asyncio.sleep(TRIM_INTERVAL_S)
        await asyncio.to_thread(libc.malloc_trim, 0)
