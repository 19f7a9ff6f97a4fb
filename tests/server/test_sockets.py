"""Ports are taken before anything is loaded, by one gateway."""

from __future__ import annotations

import pytest

from evaluation.serving import free_port
from server.settings import SettingsError
from server.sockets import bound


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
