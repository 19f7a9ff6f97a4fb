"""Several workers, watched: `lethe serve` with LETHE_WORKERS from two on. It serves nothing itself.

uvicorn's own supervisor would do but for four things: a fault at the start is to be said once and to stop the start, a
worker that dies again and again is to be started ever more rarely, the workers have something in common that a dead
one's share is to be taken out of, and they are to notice when whoever watches them is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from lethe.server.http.concurrency import SharedUsage
from lethe.server.observability import metrics
from lethe.server.process import sockets, workers
from lethe.server.settings import Settings, SettingsError, of_one_worker

log = logging.getLogger("lethe.workers")

# Until a worker that died is started again; twice as long each time, if it lived for less than STEADY_S.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
STEADY_S = 60.0
# A socket's name has at most 107 bytes; a door's takes the rest.
MOST_FOLDER_BYTES = 88
# What computes in threads of its own would start one a core, in each worker.
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; an exit status. Raises SettingsError for what stops the start."""
    if sys.platform != "linux":
        raise SettingsError("LETHE_WORKERS: several processes on one port take Linux")
    of_one_worker(settings)
    with contextlib.ExitStack() as stack:
        stack.enter_context(sockets.kept(settings.host, settings.port, "LETHE_PORT", shared=True))
        if settings.admin_address is not None:
            stack.enter_context(sockets.kept(*settings.admin_address, "LETHE_ADMIN_PORT"))
        supervisor = Supervisor(settings, stack.enter_context(_folder()))
        asyncio.run(supervisor.run())
    if supervisor.fault:
        raise SettingsError(supervisor.fault)
    if supervisor.signal == signal.SIGTERM:
        # As any process ends that does nothing about it.
        signal.raise_signal(signal.SIGTERM)
    return 0


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """A folder for what the workers share. Raises SettingsError where sockets can't have a name in it."""
    with tempfile.TemporaryDirectory(prefix="lethe-", ignore_cleanup_errors=True) as folder:
        if len(os.fsencode(folder)) > MOST_FOLDER_BYTES:
            raise SettingsError(f"sockets can't have names as long as {folder}/…: set TMPDIR to a shorter one")
        handle = os.open(folder, os.O_RDONLY)
        try:
            # Whoever clears old files away (systemd-tmpfiles) leaves out what is locked.
            fcntl.flock(handle, fcntl.LOCK_SH)
            yield Path(folder)
        finally:
            os.close(handle)


class Supervisor:
    """fault: what stopped the start, in a worker's words."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.fault = ""
        self.signal: int | None = None
        self._settings = settings
        self._folder = folder
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._ready: set[int] = set()
        self._over = asyncio.Event()
        # While it runs: files without a name, and what is in the first.
        self._shared: list[int] = []
        self._usage: SharedUsage

    async def run(self) -> None:
        """Keep all workers running until a signal, or until one can't be started at all."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end, number)
        with contextlib.ExitStack() as stack:
            for name in ("lethe-keys", "lethe-turns"):
                self._shared.append(os.memfd_create(name))
                stack.callback(os.close, self._shared[-1])
            self._usage = SharedUsage(workers.open_file(self._shared[0]), 0, self._settings.workers)
            stack.callback(self._usage.close)
            await asyncio.gather(*(self._keep(number) for number in range(self._settings.workers)))

    def _end(self, received: int | None = None) -> None:
        """End all workers: they finish what they are at."""
        self.signal = self.signal or received
        if not self._over.is_set():
            self._over.set()
            most_s = self._settings.drain_timeout_s + workers.CLOSE_S
            asyncio.get_running_loop().call_later(most_s, self._send, signal.SIGKILL)
            self._send(signal.SIGTERM)

    def _send(self, number: int) -> None:
        for process in self._running.values():
            _signal(process, number)

    async def _keep(self, number: int) -> None:
        """Have worker `number` running, time and again."""
        pause_s = 0.0
        while not self._over.is_set():
            began = time.monotonic()
            status = await self._once(number)
            self._tidy_up(number)
            if self._over.is_set():
                return
            if number not in self._ready:
                self._failed(number, f"worker {number} ended at its start with status {status}")
                self._end()
                return
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S) if time.monotonic() - began < STEADY_S else 0.0
            pause_s = max(pause_s, FIRST_PAUSE_S)
            log.error("worker %d ended with status %d; it is started again in %g s", number, status, pause_s)
            try:
                async with asyncio.timeout(pause_s):
                    await self._over.wait()
            except TimeoutError:
                pass

    async def _once(self, number: int) -> int:
        """Run worker `number` to its end; its exit status."""
        ours, its = socket.socketpair()
        with its:
            handed_on = [its.fileno(), *self._shared]
            given = [number, self._settings.workers, self._folder, *handed_on]
            command = [sys.executable, "-P", "-m", "lethe.server.process.workers", *map(str, given)]
            try:
                process = await asyncio.create_subprocess_exec(
                    *command, env=environment(self._settings.workers), pass_fds=handed_on
                )
            except OSError as error:  # no memory or too many processes: it may go by
                ours.close()
                self._failed(number, str(error))
                return 1
        self._running[number] = process
        if self._over.is_set():
            _signal(process, signal.SIGTERM)
        reader, writer = await asyncio.open_connection(sock=ours)
        try:
            said = await _line(reader)
            if said == workers.READY:
                self._ready.add(number)
                log.info("worker %d serves", number)
            elif said.endswith(b"\n"):  # or it was killed while it said it
                self._failed(number, json.loads(said))
            return await process.wait()
        finally:
            del self._running[number]
            writer.close()

    def _failed(self, number: int, fault: str) -> None:
        if number in self._ready:
            log.error("worker %d can't be started: %s", number, fault)
        else:
            self.fault = self.fault or fault

    def _tidy_up(self, number: int) -> None:
        """What a dead worker leaves in what all have in common."""
        self._usage.leave_out(number)
        try:
            metrics.leave_out(workers.counts(self._folder), number)
        except OSError as error:
            log.error("the gauges of worker %d can't be left out: %s", number, error)


async def _line(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readline()
    except ValueError:  # no worker says as much
        return b""


def _signal(process: asyncio.subprocess.Process, number: int) -> None:
    """Unlike `send_signal`: that asks for the exit status, which is then lost to whoever waits for it, and fails on a
    process that has ended."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


def environment(count: int, given: Mapping[str, str] = os.environ) -> dict[str, str]:
    """A worker's: the same code as here, and no more threads than its share of the cores."""
    share = str(max(1, len(os.sched_getaffinity(0)) // count))
    return {**dict.fromkeys(THREADS, share), **given}
