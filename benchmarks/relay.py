"""A bare relay: a minimal Python proxy (uvicorn, aiohttp's client) that only copies bytes.

The yardstick for the CPU time of a forwarded request. It is no lower bound: Lethe's own HTTP client is cheaper than
aiohttp's. The relay has no limits, judging, error bodies or metrics, and does not notice client disconnects.
`benchmarks/proxy.py` starts it:

    python -m benchmarks.relay --port 8001 --upstream http://127.0.0.1:8000
"""

from __future__ import annotations

import argparse
from typing import Any

import aiohttp
import uvicorn

HOP_BY_HOP = (b"connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"te", b"trailer")
SET_BY_CLIENT = (*HOP_BY_HOP, b"host", b"content-length")


class Relay:
    """The ASGI application."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = [(name.decode(), value.decode()) for name, value in scope["headers"] if name not in SET_BY_CLIENT]
        assert self._session is not None
        async with self._session.request(
            scope["method"], self._upstream + scope["path"], headers=headers, data=body or None
        ) as response:
            forwarded = [(name, value) for name, value in response.raw_headers if name.lower() not in HOP_BY_HOP]
            await send({"type": "http.response.start", "status": response.status, "headers": forwarded})
            async for chunk in response.content.iter_any():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _lifespan(self, receive: Any, send: Any) -> None:
        await receive()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        )  # fmt: skip
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._session.close()
        await send({"type": "lifespan.shutdown.complete"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream", required=True)
    args = parser.parse_args()
    uvicorn.run(
        Relay(args.upstream), port=args.port, loop="uvloop", http="httptools", ws="none", access_log=False,
        log_level="warning", server_header=False, date_header=False, proxy_headers=False,
    )  # fmt: skip


if __name__ == "__main__":
    main()
