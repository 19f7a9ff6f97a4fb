"""Where to listen: sockets that are bound before anything is loaded, so that a taken port is told at once."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from lethe.server.settings import SettingsError


def bound(host: str, port: int, variable: str, *, shared: bool = False, listen: bool = False) -> socket.socket:
    """A socket bound to that address. shared: several of this gateway listen there. listen: this one does, at once.

    Raises SettingsError naming the variable when the port is taken. As long as nobody listens, several sockets can be
    bound to one port: only one that listens, or `kept`, takes it from others.
    """
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if made.family == socket.AF_INET6:
            # As uvloop has it for one process: `::` is IPv6 alone.
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    try:
        made.bind((host, port))
        if listen:
            made.listen()
    except OSError as error:
        made.close()
        raise _taken(host, port, variable, error) from None
    return made


@contextmanager
def kept(host: str, port: int, variable: str, *, shared: bool = False) -> Iterator[None]:
    """Keep an address for this process's children: they listen there, and no other gateway of several workers does.

    The port alone would not tell two of them apart: nobody listens while policies are read, and then SO_REUSEPORT lets
    all of one user's processes in. So it has a name as well, which goes with this process. Raises SettingsError.
    """
    with bound(host, port, variable, shared=shared) as holder, socket.socket(socket.AF_UNIX) as name:
        address, port = holder.getsockname()[:2]
        try:
            name.bind(f"\0lethe {address} {port}")
        except OSError as error:
            raise _taken(host, port, variable, error) from None
        # Whoever listens there now has nothing to do with this gateway.
        bound(host, port, variable).close()
        yield


def _taken(host: str, port: int, variable: str, error: OSError) -> SettingsError:
    return SettingsError(f"can't listen on {host}:{port}: {error.strerror} ({variable})")
