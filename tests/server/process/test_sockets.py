"""Ports are taken before anything is loaded, by one gateway."""

from __future__ import annotations

import socket

import pytest

from lethe.evaluation.demo.serving import free_port
from lethe.server.process.sockets import bound, kept
from lethe.server.settings import SettingsError


def test_a_port_belongs_to_one_gateway_and_to_all_its_workers() -> None:
    port = free_port()
    with (
        bound("127.0.0.1", port, "LETHE_PORT", shared=True),
        bound("127.0.0.1", port, "LETHE_PORT", shared=True) as one,
    ):
        one.listen()
        with pytest.raises(SettingsError, match=rf"can't listen on 127.0.0.1:{port}: .* \(LETHE_PORT\)"):
            bound("127.0.0.1", port, "LETHE_PORT")
    with bound("127.0.0.1", port, "LETHE_PORT") as one:
        one.listen()
        with pytest.raises(SettingsError):
            bound("127.0.0.1", port, "LETHE_PORT", shared=True)


@pytest.mark.parametrize("shared", [True, False])
def test_what_is_kept_is_for_nobody_else_even_while_nobody_listens(shared: bool) -> None:
    port = free_port()
    with kept("127.0.0.1", port, "LETHE_PORT", shared=shared):
        with pytest.raises(SettingsError, match=rf"localhost:{port}: .* in use \(LETHE_PORT\)"):
            kept("localhost", port, "LETHE_PORT", shared=shared).__enter__()
        with kept("127.0.0.1", port + 1, "LETHE_PORT"):
            pass
        for _ in range(2):  # a worker, and the one in its place
            with bound("127.0.0.1", port, "LETHE_PORT", shared=shared, listen=True):
                pass
    with kept("127.0.0.1", port, "LETHE_PORT", shared=shared):
        pass


def test_nothing_is_kept_where_somebody_listens() -> None:
    port = free_port()
    with (
        bound("127.0.0.1", port, "LETHE_PORT", shared=True, listen=True),
        pytest.raises(SettingsError, match="LETHE_PORT"),
    ):
        kept("127.0.0.1", port, "LETHE_PORT", shared=True).__enter__()


def test_who_is_late_to_listen_is_told() -> None:
    port = free_port()
    with (
        bound("127.0.0.1", port, "LETHE_ADMIN_PORT") as one,
        bound("127.0.0.1", port, "LETHE_ADMIN_PORT", listen=True),
        pytest.raises(OSError),
    ):
        one.listen()
    with bound("127.0.0.1", port, "LETHE_ADMIN_PORT") as one:
        one.listen()
        with pytest.raises(SettingsError, match="LETHE_ADMIN_PORT"):
            bound("127.0.0.1", port, "LETHE_ADMIN_PORT", listen=True)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
def test_workers_listen_where_one_process_would() -> None:
    port = free_port()
    with bound("::", port, "LETHE_PORT", shared=True, listen=True), pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 5)
