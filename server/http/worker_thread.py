"""A thread for work on large bodies, which would block the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

# Bytes below which work is done on the event loop at once: waking a thread takes longer than reading such a body.
INLINE_BYTES = 32_768


class LargeBodyThread:
    """Runs one piece of work at a time. It holds the interpreter lock: more threads would delay the event loop."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="lethe-read")

    async def run(self, size: int, work: Callable[..., T], *arguments: Any) -> T:
        """The result of `work(*arguments)`; size: bytes that it works on."""
        if size < INLINE_BYTES:
            return work(*arguments)
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)

    def close(self) -> None:
        """Start no more work."""
        self._executor.shutdown(wait=False, cancel_futures=True)
