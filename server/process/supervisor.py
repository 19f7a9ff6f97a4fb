"""The supervisor of several workers: `lethe serve` with LETHE_WORKERS of two or more. It serves no requests itself.

uvicorn's own supervisor lacks four things: an error at start is reported once and stops the start; a worker that dies
repeatedly is restarted with growing pauses; the share of a dead worker is removed from the workers' common state; and
workers notice when the supervisor is killed.
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

from lethe.server.admission.rate_limits import SharedKeyUsage
from lethe.server.observability import metrics
from lethe.server.process import sockets, worker_main, workers
from lethe.server.settings import Settings, SettingsError, settings_per_worker

log = logging.getLogger("lethe.workers")

# Seconds before a dead worker is restarted. Chosen: the pause doubles, up to the maximum, each time the worker lived
# for less than STEADY_S.
FIRST_PAUSE_S, MAX_PAUSE_S = 0.5, 30.0
STEADY_S = 60.0  # seconds; a choice
# Bytes of the folder's path: the path of a Unix socket has at most 107 bytes, and the file names need 19.
MAX_FOLDER_BYTES = 88
# Variables that set the number of threads of numeric libraries; by default each worker would start one per core.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")


def serve_with_workers(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT, and return an exit status. Raises SettingsError for an error at start."""
    if sys.platform != "linux":
        raise SettingsError("LETHE_WORKERS: several processes on one port require Linux")
    settings_per_worker(settings)
    with contextlib.ExitStack() as stack:
        stack.enter_context(sockets.reserve_address(settings.host, settings.port, "LETHE_PORT", shared=True))
        if settings.admin_address is not None:
            stack.enter_context(sockets.reserve_address(*settings.admin_address, "LETHE_ADMIN_PORT"))
        supervisor = Supervisor(settings, stack.enter_context(_shared_folder()))
        asyncio.run(supervisor.run())
    if supervisor.fault:
        raise SettingsError(supervisor.fault)
    if supervisor.signal == signal.SIGTERM:
        # End as a process without a signal handler would.
        signal.raise_signal(signal.SIGTERM)
    return 0


@contextlib.contextmanager
def _shared_folder() -> Iterator[Path]:
    """A temporary folder for what the workers share. Raises SettingsError if its path is too long for sockets."""
    with tempfile.TemporaryDirectory(prefix="lethe-", ignore_cleanup_errors=True) as folder:
        if len(os.fsencode(folder)) > MAX_FOLDER_BYTES:
            raise SettingsError(f"the path {folder} is too long for Unix sockets: set TMPDIR to a shorter one")
        handle = os.open(folder, os.O_RDONLY)
        try:
            # Cleaners of temporary files (systemd-tmpfiles) skip locked folders.
            fcntl.flock(handle, fcntl.LOCK_SH)
            yield Path(folder)
        finally:
            os.close(handle)


class Supervisor:
    """Starts and restarts the workers. fault: the error that stopped the start, as a worker reported it."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.fault = ""
        self.signal: int | None = None
        self._settings = settings
        self._folder = folder
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._ready: set[int] = set()
        self._stopping = asyncio.Event()
        # While it runs: descriptors of the anonymous files, and the contents of the first.
        self._shared_files: list[int] = []
        self._usage: SharedKeyUsage

    async def run(self) -> None:
        """Keep all workers running until a signal, or until one fails at its first start."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        with contextlib.ExitStack() as stack:
            for name in ("lethe-keys", "lethe-turns"):
                self._shared_files.append(os.memfd_create(name))
                stack.callback(os.close, self._shared_files[-1])
            self._usage = SharedKeyUsage(workers.open_file_path(self._shared_files[0]), 0, self._settings.workers)
            stack.callback(self._usage.close)
            await asyncio.gather(*(self._keep_running(number) for number in range(self._settings.workers)))

    def _stop(self, received: int | None = None) -> None:
        """Stop all workers gracefully: they finish their requests, up to a limit."""
        self.signal = self.signal or received
        if not self._stopping.is_set():
            self._stopping.set()
            limit_s = self._settings.drain_timeout_s + workers.CLOSE_S
            asyncio.get_running_loop().call_later(limit_s, self._signal_all, signal.SIGKILL)
            self._signal_all(signal.SIGTERM)

    def _signal_all(self, number: int) -> None:
        for process in self._running.values():
            _send_signal(process, number)

    async def _keep_running(self, number: int) -> None:
        """Run worker `number`, and restart it when it dies."""
        pause_s = 0.0
        while not self._stopping.is_set():
            started = time.monotonic()
            status = await self._run_once(number)
            self._clear_shared_state(number)
            if self._stopping.is_set():
                return
            if number not in self._ready:
                self._report_fault(number, f"worker {number} failed at start with status {status}")
                self._stop()
                return
            pause_s = min(2 * pause_s, MAX_PAUSE_S) if time.monotonic() - started < STEADY_S else 0.0
            pause_s = max(pause_s, FIRST_PAUSE_S)
            log.error("worker %d ended with status %d; restarting it in %g s", number, status, pause_s)
            try:
                async with asyncio.timeout(pause_s):
                    await self._stopping.wait()
            except TimeoutError:
                pass

    async def _run_once(self, number: int) -> int:
        """Run worker `number` until it ends, and return its exit status."""
        own_end, worker_end = socket.socketpair()
        with worker_end:
            descriptors = [worker_end.fileno(), *self._shared_files]
            arguments = [number, self._settings.workers, self._folder, *descriptors]
            command = [sys.executable, "-P", "-m", "lethe.server.process.worker_main", *map(str, arguments)]
            try:
                process = await asyncio.create_subprocess_exec(
                    *command, env=worker_environment(self._settings.workers), pass_fds=descriptors
                )
            except OSError as error:  # no memory or too many processes, which may be temporary
                own_end.close()
                self._report_fault(number, str(error))
                return 1
        self._running[number] = process
        if self._stopping.is_set():
            _send_signal(process, signal.SIGTERM)
        reader, writer = await asyncio.open_connection(sock=own_end)
        try:
            message = await _read_line(reader)
            if message == worker_main.READY:
                self._ready.add(number)
                log.info("worker %d serves", number)
            elif message.endswith(b"\n"):  # otherwise it was killed while it sent it
                self._report_fault(number, json.loads(message))
            return await process.wait()
        finally:
            del self._running[number]
            writer.close()

    def _report_fault(self, number: int, fault: str) -> None:
        if number in self._ready:
            log.error("worker %d can't be started: %s", number, fault)
        else:
            self.fault = self.fault or fault

    def _clear_shared_state(self, number: int) -> None:
        """Remove a dead worker's share from the common state."""
        self._usage.clear_worker(number)
        try:
            metrics.remove_worker_gauges(workers.metrics_folder(self._folder), number)
        except OSError as error:
            log.error("the gauges of worker %d can't be removed: %s", number, error)


async def _read_line(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readline()
    except ValueError:  # longer than any message of a worker
        return b""


def _send_signal(process: asyncio.subprocess.Process, number: int) -> None:
    """Send a signal to a running process.

    Process.send_signal polls the exit status, which is then lost for `wait`, and fails for a process that has ended.
    """
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


def worker_environment(count: int, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of a worker: that of this process, with threads for its share of the cores."""
    share = str(max(1, len(os.sched_getaffinity(0)) // count))
    return {**dict.fromkeys(THREAD_VARIABLES, share), **environ}
