"""Free ports, and servers that do not start."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from lethe.evaluation.serving import StartError, free_port, require_port, running


def test_a_free_port_is_below_the_ephemeral_range() -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in {free_port() for _ in range(50)}:
        assert port + 1 < lowest
        require_port(port, "LETHE_PORT")
        require_port(port + 1, "LETHE_ADMIN_PORT")


def test_a_port_in_use_is_reported_with_its_make_variable() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StartError, match=rf"port {port} is in use; choose another with DEMO_PORT=PORT"):
            require_port(port, "DEMO_PORT")


def test_a_server_that_exits_is_reported_with_status_and_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(StartError, match=r"echo exited with status 3:\nno such thing\n"):
        command = ["sh", "-c", "echo no such thing; exit 3"]
        with running("echo", command, f"http://127.0.0.1:{free_port()}/", log, env={}):
            raise AssertionError("the server did not start")
