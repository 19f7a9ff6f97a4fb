"""Listening sockets, bound before anything is loaded, so that a port in use is reported at once."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from lethe.server.settings import SettingsError


def bind_socket(host: str, port: int, variable: str, *, shared: bool = False, listen: bool = False) -> socket.socket:
    """Return a socket bound to the address.

    variable: the setting to name in an error. shared: several processes of this gateway listen on the port. listen:
    start listening now. Several sockets can be bound to one port until one of them listens; `reserve_address` prevents
    that. Raises SettingsError if the port is in use.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if bound.family == socket.AF_INET6:
            # As with a single process under uvloop, `::` means IPv6 only.
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    try:
        bound.bind((host, port))
        if listen:
            bound.listen()
    except OSError as error:
        bound.close()
        raise _cannot_listen(host, port, variable, error) from None
    return bound


@contextmanager
def reserve_address(host: str, port: int, variable: str, *, shared: bool = False) -> Iterator[None]:
    """Reserve an address for this process's children inside the block. Raises SettingsError if it is in use.

    Binding alone would not exclude a second gateway of several workers: nobody listens while policies are loaded, and
    SO_REUSEPORT admits all processes of one user. So an abstract Unix socket, which disappears with this process, marks
    the address as reserved.
    """
    with bind_socket(host, port, variable, shared=shared) as holder, socket.socket(socket.AF_UNIX) as marker:
        address, port = holder.getsockname()[:2]
        try:
            marker.bind(f"\0lethe {address} {port}")
        except OSError as error:
            raise _cannot_listen(host, port, variable, error) from None
        # Any process that listens there now doesn't belong to this gateway.
        bind_socket(host, port, variable).close()
        yield


def _cannot_listen(host: str, port: int, variable: str, error: OSError) -> SettingsError:
    return SettingsError(f"can't listen on {host}:{port}: {error.strerror} ({variable})")
