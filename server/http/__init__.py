"""The client side of the gateway: connections, API keys, limits, reading requests, and sending responses.

It doesn't know how a request is judged or rewritten (`server/guard/`), or how a replica is chosen
(`server/upstream/`). Begin with `gateway.py`, which follows one request from top to bottom.
"""
