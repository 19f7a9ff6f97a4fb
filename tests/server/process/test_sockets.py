"""Ports are reserved for one gateway before anything is loaded."""

from __future__ import annotations

import socket

import pytest

from lethe.evaluation.serving import free_port
from lethe.server.process.sockets import bind_socket, reserve_address
from lethe.server.settings import SettingsError


def test_a_port_belongs_to_one_gateway_and_to_all_its_workers() -> None:
    port = free_port()
    with (
        bind_socket("127.0.0.1", port, "LETHE_PORT", shared=True),
        bind_socket("127.0.0.1", port, "LETHE_PORT", shared=True) as one,
    ):
        one.listen()
        with pytest.raises(SettingsError, match=rf"can't listen on 127.0.0.1:{port}: .* \(LETHE_PORT\)"):
            bind_socket("127.0.0.1", port, "LETHE_PORT")
    with bind_socket("127.0.0.1", port, "LETHE_PORT") as one:
        one.listen()
        with pytest.raises(SettingsError):
            bind_socket("127.0.0.1", port, "LETHE_PORT", shared=True)


@pytest.mark.parametrize("shared", [True, False])
def test_a_reserved_address_is_exclusive_before_anyone_listens(shared: bool) -> None:
    port = free_port()
    with reserve_address("127.0.0.1", port, "LETHE_PORT", shared=shared):
        with pytest.raises(SettingsError, match=rf"localhost:{port}: .* in use \(LETHE_PORT\)"):
            reserve_address("localhost", port, "LETHE_PORT", shared=shared).__enter__()
        with reserve_address("127.0.0.1", port + 1, "LETHE_PORT"):
            pass
        for _ in range(2):  # a worker, and the one in its place
            with bind_socket("127.0.0.1", port, "LETHE_PORT", shared=shared, listen=True):
                pass
    with reserve_address("127.0.0.1", port, "LETHE_PORT", shared=shared):
        pass


def test_an_address_in_use_cannot_be_reserved() -> None:
    port = free_port()
    with (
        bind_socket("127.0.0.1", port, "LETHE_PORT", shared=True, listen=True),
        pytest.raises(SettingsError, match="LETHE_PORT"),
    ):
        reserve_address("127.0.0.1", port, "LETHE_PORT", shared=True).__enter__()


def test_listening_on_a_port_in_use_is_an_error() -> None:
    port = free_port()
    with (
        bind_socket("127.0.0.1", port, "LETHE_ADMIN_PORT") as one,
        bind_socket("127.0.0.1", port, "LETHE_ADMIN_PORT", listen=True),
        pytest.raises(OSError),
    ):
        one.listen()
    with bind_socket("127.0.0.1", port, "LETHE_ADMIN_PORT") as one:
        one.listen()
        with pytest.raises(SettingsError, match="LETHE_ADMIN_PORT"):
            bind_socket("127.0.0.1", port, "LETHE_ADMIN_PORT", listen=True)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
def test_workers_listen_on_the_same_addresses_as_one_process() -> None:
    port = free_port()
    with bind_socket("::", port, "LETHE_PORT", shared=True, listen=True), pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 5)
