"""One of several worker processes: what it shares with the others, and how they communicate.

All workers listen on one port, and the kernel passes each new connection to one of them. A common folder holds the
metrics files, and for each worker a Unix socket on which it answers the others. The usage of API keys and the lock of
the audit file are anonymous files that the supervisor holds open, so that nobody can delete them. The first worker has
the admin port. It answers a change when every worker has reloaded its policies. `server/process/worker_main.py` runs a
worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lethe.server.admission.rate_limits import KeyLimits, SharedKeyUsage
from lethe.server.errors import Overloaded
from lethe.server.observability import metrics
from lethe.server.observability.metrics import Metrics
from lethe.server.policy_store.store import PolicyStore

log = logging.getLogger("lethe.workers")

# Seconds for each other worker to reload policies. Chosen: they read the files one after another, which takes seconds
# for large artifacts.
RELOAD_TIMEOUT_S = 30.0
# Seconds for another worker to update its gauges, a choice below the usual scrape timeout of 10 s.
GAUGES_TIMEOUT_S = 1.0
# Seconds that shutdown takes besides open requests (the audit log is written out), and that a restart takes.
CLOSE_S = 15.0
# Seconds between two attempts to reach another worker.
RETRY_S = 0.05
# The requests that workers send to each other.
POLICIES, GAUGES = b"policies\n", b"gauges\n"


@dataclass(frozen=True)
class Worker:
    """This process as one of several.

    socket: answers the other workers. key_usage: file with the usage of API keys. audit_lock: lock of the audit file.
    """

    number: int
    count: int
    folder: Path
    socket: socket.socket
    key_usage: Path
    audit_lock: Path

    @classmethod
    def enter(cls, number: int, count: int, folder: Path, key_usage: Path, audit_lock: Path) -> Worker:
        """Open the socket. Must happen before policies are read: while it is closed, others can rely on this worker
        reading the current files."""
        listening = socket.socket(socket.AF_UNIX)
        link = _socket_link(folder, number)
        for stale in folder.glob(f"{link.name}.*"):  # of a dead predecessor
            stale.unlink()
        # The process id is part of the name, so that a worker that doesn't answer can be killed.
        path, new_link = link.with_suffix(f".{os.getpid()}"), link.with_suffix(".link")
        listening.bind(str(path))
        listening.listen()
        new_link.symlink_to(path.name)
        new_link.rename(link)
        return cls(number, count, folder, listening, key_usage, audit_lock)

    @property
    def is_first(self) -> bool:
        return self.number == 0

    def limits(self) -> KeyLimits:
        """Limits of API keys, counted over all workers."""
        return KeyLimits(shared=SharedKeyUsage(self.key_usage, self.number, self.count))

    def should_record(self, record: Mapping[str, Any]) -> bool:
        """Whether this worker must write the audit record of a policy change: the first to call, once per version."""
        if "version" not in record:  # it could not be saved and has no number
            return self.is_first
        try:
            (self.folder / f"recorded-{record['version']}-{record['hash']}").touch(exist_ok=False)
        except FileExistsError:
            return False
        except OSError:
            pass  # a record written twice is better than none
        return True

    def publish_gauges(self) -> None:
        """Publish this worker's gauges from now on."""
        metrics.mark_serving(metrics_folder(self.folder), self.number)

    @asynccontextmanager
    async def serve_other_workers(self, store: PolicyStore | None, own_metrics: Metrics) -> AsyncIterator[None]:
        """Answer the requests of the other workers (reload policies, refresh gauges) inside the block."""

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                if await reader.readline() == POLICIES and store is not None:
                    await asyncio.to_thread(store.poll)
                own_metrics.refresh()
                writer.write(f"{'' if store is None else store.state}\n".encode())
                await writer.drain()
            writer.close()

        async with await asyncio.start_unix_server(answer, sock=self.socket):
            yield

    def refresh_gauges(self) -> None:
        """Make the other workers update their gauges."""
        for number in self._others():
            with contextlib.suppress(OSError):  # starting, or dead
                self._request(number, GAUGES, GAUGES_TIMEOUT_S)

    def wait_for_reload(self, store: PolicyStore) -> list[int]:
        """Wait until all other workers use the same policies as this one. Return the workers that had to be killed.

        A worker that doesn't reload is killed, because it would serve by older policies; the supervisor restarts it
        and it reads the current files. Raises Overloaded if a worker can't be reached or killed.
        """
        deadline, killed = time.monotonic() + RELOAD_TIMEOUT_S * (self.count - 1), list[int]()
        for number in self._others():
            fault: OSError | None = None
            while True:
                remaining_s = deadline - time.monotonic()
                try:
                    pid, state = self._request(number, POLICIES, max(remaining_s, 1.0))
                except ConnectionRefusedError:
                    break
                except OSError as error:  # no socket yet or any more, or no free file descriptor
                    pid, state, fault = 0, None, error
                if state == store.state:
                    break
                if remaining_s < 0 and pid and number not in killed:
                    log.error("worker %d did not reload policies within %g s; killing it", number, RELOAD_TIMEOUT_S)
                    killed.append(number)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                elif remaining_s < -CLOSE_S:
                    log.error("worker %d can't be reached: %s", number, fault or "no answer")
                    raise Overloaded(
                        f"the change is made, but worker {number} may still use the previous policies",
                        code="not_followed",
                        retry_after_s=CLOSE_S,
                    )
                time.sleep(RETRY_S)
        return killed

    def _others(self) -> Iterator[int]:
        return (number for number in range(self.count) if number != self.number)

    def _request(self, number: int, request: bytes, timeout_s: float) -> tuple[int, str | None]:
        """Return a worker's process id and its answer (None: no answer).

        Raises OSError if its socket is not open: ConnectionRefusedError if its process is dead.
        """
        path = self.folder / _socket_link(self.folder, number).readlink()
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout_s)
            try:
                connection.connect(str(path))
                connection.sendall(request)
                with connection.makefile() as answer:
                    return _process_id(path), answer.readline().strip()
            # BlockingIOError: the queue of connections is full, because the worker accepts none.
            except (BlockingIOError, TimeoutError, ConnectionResetError, BrokenPipeError):
                return _process_id(path), None


def _socket_link(folder: Path, number: int) -> Path:
    return folder / f"door-{number}"


def _process_id(path: Path) -> int:
    return int(path.suffix[1:])


def metrics_folder(folder: Path) -> Path:
    """The folder of the workers' metrics files."""
    return folder / "metrics"


def open_file_path(descriptor: int) -> Path:
    """A path that opens a file of this process again: flock locks belong to an open file, not to a process."""
    return Path(f"/proc/self/fd/{descriptor}")
