"""Which names a command looks up: it runs in a network namespace of its own, whose only resolver writes down names.

    unshare --map-root-user --net --mount python -m tests.name_lookups OUTPUT COMMAND …

Writes the names that were looked up to OUTPUT, one a line, and exits with the command's status. Nothing outside the
namespace can be reached; the loopback address can.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

# linux/sockios.h and linux/if.h: set an interface's flags; the flag "up".
SIOCSIFFLAGS, IFF_UP = 0x8914, 0x1
# Bytes of a DNS message's header, after which the first question's name begins (RFC 1035, 4.1).
DNS_HEADER_BYTES = 12
UNSHARE = ("unshare", "--map-root-user", "--net", "--mount")


def unavailable() -> str | None:
    """Why no command can be run in a namespace here; None if it can."""
    try:
        done = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, check=False)
    except OSError as error:
        return f"unshare can't be run: {error}"
    return f"no network namespace can be made here: {done.stderr.strip()}" if done.returncode else None


def names_looked_up(command: Sequence[str], folder: Path, **options: object) -> list[str]:
    """Run a command in a namespace and return the names that it looked up. Fails if the command fails."""
    output = folder / "names.txt"
    inside = [sys.executable, "-m", "tests.name_lookups", str(output), *command]
    done = subprocess.run([*UNSHARE, *inside], capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    return output.read_text(encoding="utf-8").split()


def _start_loopback() -> None:
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))


def _use_resolver(address: str) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".conf", delete=False) as file:
        file.write(f"nameserver {address}\noptions timeout:1 attempts:1\n")
    target = Path("/etc/resolv.conf").resolve()
    subprocess.run(["mount", "--bind", file.name, str(target)], check=True)


def _question(message: bytes) -> str:
    labels, place = [], DNS_HEADER_BYTES
    while message[place]:
        labels.append(message[place + 1 : place + 1 + message[place]].decode("ascii", "replace"))
        place += 1 + message[place]
    return ".".join(labels)


def _answer_lookups(server: socket.socket, names: list[str]) -> None:
    while True:
        message, client = server.recvfrom(4096)
        names.append(_question(message))
        # A response without answers and with the code "no such name".
        server.sendto(message[:2] + b"\x81\x83" + message[4:6] + bytes(6) + message[DNS_HEADER_BYTES:], client)


def main(output: str, *command: str) -> int:
    """Run the command; see the module's docstring."""
    _start_loopback()
    _use_resolver("127.0.0.1")
    names: list[str] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 53))
        threading.Thread(target=_answer_lookups, args=(server, names), daemon=True).start()
        status = subprocess.run(command, check=False).returncode
        Path(output).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
