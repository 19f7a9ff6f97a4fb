"""Memory that is done with goes back to the system. For glibc; elsewhere nothing happens.

By itself glibc keeps blocks of up to 32 MiB once one was freed, and never gives back what lies free below a small block
that stays: a few very long prompts would hold memory for good, in steps.
"""

from __future__ import annotations

import asyncio
import ctypes
from typing import Any

# Of glibc's <malloc.h>.
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8
LARGE_BLOCK = 1 << 20
ARENAS = 2
# It takes milliseconds, in which other threads may wait for memory.
INTERVAL_S = 30.0


def _glibc() -> Any:
    """The C library, or None where it is another one."""
    try:
        libc = ctypes.CDLL(None)
    except OSError:
        return None
    return libc if hasattr(libc, "malloc_trim") and hasattr(libc, "mallopt") else None


def keep_little() -> None:
    """Have large blocks returned at once, for the whole process."""
    if libc := _glibc():
        libc.mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)
        libc.mallopt(M_ARENA_MAX, ARENAS)


async def give_back() -> None:
    """Return what lies free between blocks, now and then, until cancelled."""
    libc = _glibc()
    while libc:
        await asyncio.sleep(INTERVAL_S)
        await asyncio.to_thread(libc.malloc_trim, 0)
