"""The client side of the gateway: routes, reading requests, and sending responses.

Which requests are let in is decided in `server/admission/`. This folder doesn't know how a request is judged or
rewritten (`server/guard/`), or how a replica is chosen (`server/upstream/`). Begin with `gateway.py`, which follows one
request from top to bottom.
"""
