"""The main function of a worker process (`server/process/workers.py`), started by `server/process/supervisor.py`.

    python -m lethe.server.process.worker_main NUMBER COUNT FOLDER CONTROL KEY_USAGE AUDIT_LOCK

NUMBER of COUNT workers; FOLDER for what they share; the rest are file descriptors: CONTROL, a socket to the supervisor,
and two anonymous files.
"""

from __future__ import annotations

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
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from lethe.server.admission.connection_limits import uvicorn_options
from lethe.server.observability import malloc, metrics
from lethe.server.observability.metrics import Metrics
from lethe.server.process import sockets
from lethe.server.process.workers import CLOSE_S, Worker, metrics_folder, open_file_path
from lethe.server.settings import read_settings, settings_per_worker

# What a worker sends to the supervisor when it serves.
READY = b"ready\n"
# Characters of an error message that are sent to the supervisor; a message may repeat a whole file.
MAX_FAULT_CHARS = 2000


class _ReadyServer(uvicorn.Server):
    """Tells the supervisor when it serves."""

    control: socket.socket

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.control.sendall(READY)


def main(arguments: Sequence[str]) -> int:
    """Serve until SIGTERM, SIGINT or the supervisor's death. Sends an error at start to the supervisor."""
    number, count, folder = int(arguments[0]), int(arguments[1]), Path(arguments[2])
    control = socket.socket(fileno=int(arguments[3]))
    key_usage, audit_lock = (open_file_path(int(argument)) for argument in arguments[4:])
    try:
        settings = settings_per_worker(read_settings())
        limit_s = settings.drain_timeout_s + CLOSE_S
        watch = threading.Thread(
            target=_end_with_supervisor, args=(control, folder, limit_s), name="lethe-control", daemon=True
        )
        watch.start()
        logging.basicConfig(
            level=settings.log_level.upper(),
            format=f"%(asctime)s %(levelname)s %(name)s: worker {number}: %(message)s",
        )
        malloc.return_large_blocks()
        metrics.use_worker_files(metrics_folder(folder), number)
        own_metrics = Metrics(metrics_folder(folder))
        # Imported only now, so that an interrupt or error during the import is handled here (it takes a second).
        from lethe.server.app import create_app

        worker = Worker.enter(number, count, folder, key_usage, audit_lock)
        app = create_app(settings, metrics=own_metrics, worker=worker)
        listening = sockets.bind_socket(settings.host, settings.port, "LETHE_PORT", shared=True)
    except (ValueError, OSError) as error:
        fault = str(error)
        if len(fault) > MAX_FAULT_CHARS:
            fault = f"{fault[: MAX_FAULT_CHARS // 2]} … {fault[-MAX_FAULT_CHARS // 2 :]}"
        control.sendall(json.dumps(fault).encode() + b"\n")
        return 2
    except KeyboardInterrupt:
        return 130
    server = _ReadyServer(
        uvicorn.Config(
            app,
            loop="uvloop",
            log_config=None,
            timeout_graceful_shutdown=settings.drain_timeout_s,
            **uvicorn_options(settings, own_metrics),
        )
    )
    server.control = control
    with contextlib.suppress(KeyboardInterrupt):
        server.run([listening])
    return 0 if server.started else 3


def _end_with_supervisor(control: socket.socket, folder: Path, limit_s: float) -> None:
    """End this process when the supervisor has died, and delete its folder. limit_s: time for a graceful shutdown."""
    with contextlib.suppress(OSError):  # the supervisor was killed before it had read everything
        control.recv(1)
    shutil.rmtree(folder, ignore_errors=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(limit_s)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
