"""Where to listen: sockets that are bound before anything is loaded, so that a taken port is told at once."""

from __future__ import annotations

import socket

from server.settings import SettingsError


def bound(host: str, port: int, variable: str, *, shared: bool = False) -> socket.socket:
    """A socket bound to that address, not listening yet. shared: other sockets of this gateway have it too.

    Raises SettingsError naming the variable when the port is taken.
    """
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        made.bind((host, port))
    except OSError as error:
        made.close()
        raise SettingsError(f"can't listen on {host}:{port}: {error.strerror} ({variable})") from None
    return made
