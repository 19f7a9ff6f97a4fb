"""One worker of several: a process that serves, what it shares with the others, and how they ask each other.

    python -m lethe.server.process.workers NUMBER COUNT FOLDER CONTROL KEYS TURNS      (as server/process/supervisor.py runs it)

All workers listen on one port, and the system hands each new connection to one of them. What has to be one for all
lies in FOLDER: metrics, and for each worker a socket ("door") by which the others ask it. Keys' usage and turns at the
audit file are files without a name, KEYS and TURNS, which the supervisor holds open: nobody can take them away.
The first worker has the admin port; a change made there is answered when every worker has taken it up.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from lethe.server.errors import Overloaded
from lethe.server.http.concurrency import KeyLimits, SharedUsage
from lethe.server.http.connection_limits import uvicorn_options
from lethe.server.observability import malloc, metrics
from lethe.server.observability.metrics import Metrics
from lethe.server.policy_store.store import Live
from lethe.server.process import sockets
from lethe.server.settings import of_one_worker
from lethe.server.settings import read as read_settings

log = logging.getLogger("lethe.workers")

# Longest wait for each other worker to take up a change: one after the other they read what has changed.
FOLLOW_S = 30.0
# Longest wait for another worker to bring its gauges up to date.
REFRESH_S = 1.0
# What ending takes beside open requests: the audit trail is written out.
CLOSE_S = 15.0
POLICIES, GAUGES = b"policies\n", b"gauges\n"
READY = b"ready\n"
# A fault repeats what was found in a file, however long that is.
FAULT_CHARS = 2000


@dataclass(frozen=True)
class Worker:
    """What makes this process one of several. keys: usage of keys; turns: turns at the audit file."""

    number: int
    count: int
    folder: Path
    door: socket.socket
    keys: Path
    turns: Path

    @classmethod
    def enter(cls, number: int, count: int, folder: Path, keys: Path, turns: Path) -> Worker:
        """Open the door. To be done before any policy is read: whoever finds it closed can be sure that this worker
        will read what is there then."""
        door = socket.socket(socket.AF_UNIX)
        place = _door(folder, number)
        for left in folder.glob(f"{place.name}.*"):  # by a dead one
            left.unlink()
        # Its name tells the process to whoever gets no answer.
        opened, link = place.with_suffix(f".{os.getpid()}"), place.with_suffix(".link")
        door.bind(str(opened))
        door.listen()
        link.symlink_to(opened.name)
        link.rename(place)
        return cls(number, count, folder, door, keys, turns)

    @property
    def is_first(self) -> bool:
        return self.number == 0

    def limits(self) -> KeyLimits:
        """Keys' limits, counted for all workers."""
        return KeyLimits(usage=SharedUsage(self.keys, self.number, self.count))

    def tells(self, record: Mapping[str, Any]) -> bool:
        """Whether this worker is to put a change of policies on record: the first that asks, once for each version."""
        if "version" not in record:  # it could not be kept, so nothing tells it from others
            return self.is_first
        try:
            (self.folder / f"told-{record['version']}-{record['hash']}").touch(exist_ok=False)
        except FileExistsError:
            return False
        except OSError:
            pass  # better twice than never
        return True

    def show_gauges(self) -> None:
        """This worker serves."""
        metrics.show(counts(self.folder), self.number)

    @asynccontextmanager
    async def answering(self, live: Live | None, own: Metrics) -> AsyncIterator[None]:
        """Answer the other workers, as long as this one runs."""

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                if await reader.readline() == POLICIES and live is not None:
                    await asyncio.to_thread(live.poll)
                own.refresh()
                writer.write(f"{'' if live is None else live.state}\n".encode())
                await writer.drain()
            writer.close()

        async with await asyncio.start_unix_server(answer, sock=self.door):
            yield

    def refresh_gauges(self) -> None:
        """Have the other workers bring their gauges up to date."""
        for number in self._others():
            with contextlib.suppress(OSError):  # starting, or gone
                self._ask(number, GAUGES, REFRESH_S)

    def follow(self, live: Live) -> list[int]:
        """Wait until all other workers serve the policies that this one serves; which of them had to be ended.

        One that doesn't take them up is killed, for it would go on answering by older ones; it is started again, and
        reads what is there. Raises Overloaded when even that is in vain.
        """
        until, ended = time.monotonic() + FOLLOW_S * (self.count - 1), list[int]()
        for number in self._others():
            fault: OSError | None = None
            while True:
                left_s = until - time.monotonic()
                try:
                    pid, state = self._ask(number, POLICIES, max(left_s, 1.0))
                except ConnectionRefusedError:
                    break
                except OSError as error:  # no door yet, or none any more; no descriptor is left
                    pid, state, fault = 0, None, error
                if state == live.state:
                    break
                if left_s < 0 and pid and number not in ended:
                    log.error("worker %d has not taken up the policies and is ended", number)
                    ended.append(number)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                elif left_s < -CLOSE_S:
                    log.error("worker %d can't be asked: %s", number, fault or "no answer")
                    raise Overloaded(
                        f"the change is made, but worker {number} may still answer by what was before it",
                        code="not_followed",
                        retry_after_s=CLOSE_S,
                    )
                time.sleep(0.05)
        return ended

    def _others(self) -> Iterator[int]:
        return (number for number in range(self.count) if number != self.number)

    def _ask(self, number: int, what: bytes, wait_s: float) -> tuple[int, str | None]:
        """A worker's process, and what it answers; None: nothing. Raises OSError when its door is not open:
        ConnectionRefusedError when its process is gone."""
        door = self.folder / _door(self.folder, number).readlink()
        with socket.socket(socket.AF_UNIX) as asked:
            asked.settimeout(wait_s)
            try:
                asked.connect(str(door))
                asked.sendall(what)
                with asked.makefile() as answer:
                    return _process(door), answer.readline().strip()
            # The first: so many were before us, and nobody has let them in.
            except (BlockingIOError, TimeoutError, ConnectionResetError, BrokenPipeError):
                return _process(door), None


def _door(folder: Path, number: int) -> Path:
    return folder / f"door-{number}"


def _process(door: Path) -> int:
    return int(door.suffix[1:])


def counts(folder: Path) -> Path:
    """Where the workers' metrics are."""
    return folder / "metrics"


def open_file(number: int) -> Path:
    """A file that this process holds open, to be opened once more: locks belong to those who opened it."""
    return Path(f"/proc/self/fd/{number}")


class _Server(uvicorn.Server):
    """Tells the supervisor when it serves."""

    control: socket.socket

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.control.sendall(READY)


def main(arguments: Sequence[str]) -> int:
    """Serve until SIGTERM, SIGINT or the supervisor's end. What stops the start is told to the supervisor."""
    number, count, folder = int(arguments[0]), int(arguments[1]), Path(arguments[2])
    control = socket.socket(fileno=int(arguments[3]))
    keys, turns = (open_file(int(argument)) for argument in arguments[4:])
    try:
        settings = of_one_worker(read_settings())
        most_s = settings.drain_timeout_s + CLOSE_S
        threading.Thread(target=_end_with, args=(control, folder, most_s), name="lethe-control", daemon=True).start()
        logging.basicConfig(
            level=settings.log_level.upper(),
            format=f"%(asctime)s %(levelname)s %(name)s: worker {number}: %(message)s",
        )
        malloc.keep_little()
        metrics.share(counts(folder), number)
        own = Metrics(counts(folder))
        from lethe.server.app import create_app

        app = create_app(settings, metrics=own, worker=Worker.enter(number, count, folder, keys, turns))
        listening = sockets.bound(settings.host, settings.port, "LETHE_PORT", shared=True)
    except (ValueError, OSError) as error:
        fault = str(error)
        if len(fault) > FAULT_CHARS:
            fault = f"{fault[: FAULT_CHARS // 2]} … {fault[-FAULT_CHARS // 2 :]}"
        control.sendall(json.dumps(fault).encode() + b"\n")
        return 2
    except KeyboardInterrupt:
        return 130
    server = _Server(
        uvicorn.Config(
            app,
            loop="uvloop",
            log_config=None,
            timeout_graceful_shutdown=settings.drain_timeout_s,
            **uvicorn_options(settings, own),
        )
    )
    server.control = control
    with contextlib.suppress(KeyboardInterrupt):
        server.run([listening])
    return 0 if server.started else 3


def _end_with(control: socket.socket, folder: Path, most_s: float) -> None:
    """When the supervisor is gone, nobody else will end this process, nor tidy up. most_s: the end takes no longer."""
    with contextlib.suppress(OSError):  # it was killed before it had read all
        control.recv(1)
    shutil.rmtree(folder, ignore_errors=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(most_s)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
