"""A wire between a client and the gateway that hands on every byte as it comes, and keeps a record.

The clients read what they like and forgive the rest. The record is what was really said: `strict` reads it.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from dataclasses import dataclass, field
from typing import Self

import httptools


@dataclass
class Exchange:
    """One request and what was answered. Header names in lower case; `whole`: the answer came to its end."""

    method: str = ""
    path: str = ""
    sent: dict[str, str] = field(default_factory=dict)
    asked: bytes = b""
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    whole: bool = False


class _Connection:
    """Two sockets, and the exchanges on them in their order."""

    def __init__(self, client: socket.socket, server: socket.socket, log: list[Exchange]) -> None:
        self.sockets = (client, server)
        self.exchanges: list[Exchange] = []
        self.log = log
        self.requests = httptools.HttpRequestParser(_Requests(self))
        self.answers = httptools.HttpResponseParser(_Answers(self))


class _Requests:
    """httptools' callbacks for what the client sends."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    @property
    def _now(self) -> Exchange:
        return self._connection.exchanges[-1]

    def on_message_begin(self) -> None:
        self._connection.exchanges.append(Exchange())
        self._connection.log.append(self._now)

    def on_url(self, url: bytes) -> None:
        self._now.path += url.decode()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._now.sent[name.decode().lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._now.method = self._connection.requests.get_method().decode()

    def on_body(self, body: bytes) -> None:
        self._now.asked += body


class _Answers:
    """httptools' callbacks for what comes back."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self._at = -1

    @property
    def _now(self) -> Exchange:
        return self._connection.exchanges[self._at]

    def on_message_begin(self) -> None:
        if self._at < 0 or self._now.whole:
            self._at += 1

    def on_header(self, name: bytes, value: bytes) -> None:
        self._now.headers[name.decode().lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._now.status = self._connection.answers.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._now.body += body

    def on_message_complete(self) -> None:
        self._now.whole = self._now.status >= 200  # else the answer proper follows: "100 Continue"


class Tap:
    """Listens on `url` and hands on to the server at `target`, an http:// URL without a path."""

    def __init__(self, target: str) -> None:
        host, _, port = target.removeprefix("http://").rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._connections: list[_Connection] = []
        self._log: list[Exchange] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._accepting.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Shutting down wakes whoever waits at a socket; closing alone doesn't.
        for sock in [self._listener, *(sock for made in self._connections for sock in made.sockets)]:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        self._accepting.join()

    @property
    def exchanges(self) -> list[Exchange]:
        """Those since the last `clear`, in the order of asking."""
        return self._log[:]

    def clear(self) -> None:
        self._log.clear()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            made = _Connection(client, server, self._log)
            self._connections.append(made)
            threading.Thread(target=_pump, args=(client, server, made.requests), daemon=True).start()
            threading.Thread(target=_pump, args=(server, client, made.answers), daemon=True).start()


def _pump(
    source: socket.socket, sink: socket.socket, parser: httptools.HttpRequestParser | httptools.HttpResponseParser
) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            # On record before it is handed on: whoever has read an answer finds it there.
            parser.feed_data(data)
            sink.sendall(data)
    # Either side's end is the other's: a client that leaves is one that the gateway sees leaving.
    for sock in (source, sink):
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
